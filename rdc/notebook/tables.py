"""Tables of a chapter: rows of words and numbers, and verdicts."""

__all__ = ["show_table", "show_verdicts"]

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rdc.runs.verdict import Verdict

_ids = itertools.count()


def show_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    """Display rows as a table: numbers with three digits, a dash where there is nothing; its HTML is the same in every run."""
    import pandas as pd
    from IPython.display import display

    frame = pd.DataFrame(list(rows), dtype=object)
    styled = frame.style.hide(axis="index").format(precision=3, na_rep="-").set_uuid(f"t{next(_ids)}")
    left = {"selector": "caption, th, td", "props": [("text-align", "left")]}
    display(styled.set_table_styles([left]).set_caption(caption) if caption else styled)


def show_verdicts(verdicts: Mapping[str, Verdict], caption: str = "What the paper claims, and what the cells say") -> None:
    """Display what the one rule says of some claims, by their words."""
    rows = []
    for claim, v in verdicts.items():
        ends = f"{v.value:+.2f} [{v.interval[0]:+.2f}, {v.interval[1]:+.2f}]"
        rows.append({"claim": claim, "verdict": v.outcome, "difference or rate": ends, "from": v.reason})
    show_table(rows, caption)
