"""Tables of a chapter: rows of words and numbers, and verdicts."""

__all__ = ["out_of", "show_table", "show_verdicts", "spoken"]

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rdc.runs.statistics import Accuracy
from rdc.runs.verdict import Verdict

#: What tables call the models that commands and rows name in short.
SPOKEN = {
    "cnn": "CNN", "at-linf": "AT, Linf", "at-l2": "AT, L2", "dc": "DC", "dc-floor": "DC, floor", "rdc": "RDC",
    "rdc-floor": "RDC, floor", "lm-cnn": "LM + CNN", "lm-at": "LM + AT", "diffpure": "DiffPure", "diffpure-dc": "DiffPure + DC",
}  # fmt: skip
STRICT = "intervals at the level of the correction; without a bound an exact test decides, which is stricter"
_ids = itertools.count()


def spoken(model: str) -> str:
    """Return what tables call a model: ``LM + CNN`` for ``lm-cnn``."""
    return SPOKEN.get(model, model)


def out_of(rate: Accuracy) -> str:
    """Return ``k/n`` of a rate."""
    return f"{rate.correct}/{rate.n}"


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
        rows.append({"claim": claim, "verdict": v.outcome, "difference or rate": ends, "counts": v.reason})
    show_table(rows, f"{caption} ({STRICT})")
