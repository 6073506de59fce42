"""The stored results of experiments and the verdicts on claims, as a chapter shows them."""

__all__ = ["audits", "claims_table", "gradients_table", "stored_cells", "stored_rows", "stored_table"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdc.experiments import experiment
from rdc.findings import Finding, claims, judge
from rdc.notebook.tables import show_table
from rdc.runs.record import book_folder
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store
from rdc.runs.table import Entry, results, unions

NOTHING = "not run here: the results have no rows for this yet."


def stored_rows(*names: str, folder: str | Path | None = None) -> list[Entry]:
    """Return the entries of some experiments, and the union of the attacks on each defence; nothing of what was not run.

    Arguments:
        names: Of the experiments.
        folder: Where the results are; by default the book's own.

    Raises:
        ValueError: if there is no such experiment, or its file is damaged.
    """
    found = [entry for name in names for entry in results(name, experiment(name).rows, folder)]
    return found + unions(found)


def stored_cells(name: str, folder: str | Path | None = None, **words: Any) -> list[Found]:
    """Return what is known of each row of an experiment, in order; without rows that were not run.

    Arguments:
        name: Of the experiment.
        folder: Where the results are; by default the book's own.
        words: Only rows with these words (``Row.about``).

    Raises:
        ValueError: if there is no such experiment, or its file is damaged.
    """
    store = Store.read((book_folder("results") if folder is None else Path(folder)) / f"{name}.jsonl")
    wanted = [row for row in experiment(name).rows if all(row.about.get(k) == v for k, v in words.items())]
    return [found for found in map(store.of, wanted) if found.n]


def stored_table(rows: Sequence[Entry], title: str) -> Any:
    """Return entries as a table that a notebook displays; what is the same in all of them stands in the caption.

    Arguments:
        rows: Entries of :func:`stored_rows`.
        title: Of the table.
    """
    import pandas as pd

    if not rows:
        return f"{title}: {NOTHING}"
    found = pd.DataFrame([in_words(row) for row in rows])
    same = [c for c in found if c not in ("robust", "clean") and found[c].nunique() == 1]
    caption = ", ".join(f"{c} {found[c].iloc[0]}" for c in same if found[c].iloc[0] != "-")
    return found.drop(columns=same).style.hide(axis="index").set_caption(f"{title}: {caption}")


def gradients_table(rows: Sequence[Entry], caption: str, *about: str) -> None:
    """Display how many images stay right under each gradient of the attacker, and under all of them; a line for each setting.

    What has only one gradient, its own, has it under *all*.

    Arguments:
        rows: Entries of :func:`stored_rows`, of images that are the same in a setting.
        caption: Of the table.
        about: What tells the settings apart, as columns: keys of ``in_words``, such as ``"N"`` or ``"moved, L2"``.
    """
    names = {row["gradient"]: row["gradient"] for row in rows if row["gradient"] not in ("plain", "union")}
    names |= {"plain": "all", "union": "all"}
    lines: dict[tuple[str, ...], dict[str, str | None]] = {}
    for row in rows:
        words, robust = in_words(row), Accuracy(**row["robust"])
        empty = {name: words[name] for name in (*about, "clean")} | dict.fromkeys(names.values())
        line = lines.setdefault(tuple(words[name] for name in about), empty)
        line[names[row["gradient"]]] = f"{robust.correct}/{robust.n}"
    show_table(list(lines.values()), caption)


def audits(name: str, folder: str | Path | None = None) -> list[dict[str, str]]:
    """Return what the audits of an experiment found: a line for each attack, in words, without checks that were not run.

    An audit that fails a check says that the attack is *not to be believed*: what it leaves standing is no evidence.

    Arguments:
        name: Of the experiment.
        folder: Where the results are; by default the book's own.
    """
    lines = []
    for found in stored_cells(name, folder):
        for words in {id(line): line.words for line in found.lines.values()}.values():
            ran = {check: said for check, said in words.items() if not said.startswith("warn: not run")}
            odd = {check: said for check, said in ran.items() if not said.startswith("pass")}
            lines.append({
                "attack on": found.row.about["attack on"],
                "checks passed": f"{len(ran) - len(odd)} of {len(ran)}",
                "what was found": "; ".join(f"{check}: {said.partition(': ')[2]}" for check, said in odd.items()) or "-",
                "to be believed": "no" if any(said.startswith("fail") for said in odd.values()) else "yes",
            })  # fmt: skip
    return lines


def in_words(row: Entry) -> dict[str, str]:
    """Return what an entry says, by column."""
    moved, budget, sigma = row.get("displacement"), row.get("budget"), row.get("sigma")
    return {
        "model": row["model"],
        "LM": row.get("lm") or "-",
        "N": str(row.get("N") or "-"),
        "budget": "none" if budget is None else f"{255 * budget:.3g}/255",
        "sigma": "-" if not sigma else f"{sigma[0]:g} to {sigma[1]:g}",
        "levels": row.get("timesteps") or "-",
        "noise": row["noise"],
        "judged by": row["protocol"],
        "gradient": row["gradient"],
        "EOT": str(row["eot"]),
        "attack": row["attack"],
        "threat": threat(row),
        "moved, L2": f"{moved['L2']:.2f}" if moved else "-",
        "clean": f"{row['clean']['correct']}/{row['clean']['n']}",
        "robust": str(Accuracy(**row["robust"])),
    }


def threat(row: Entry) -> str:
    """Return norm and radius of an entry, in grey levels for Linf."""
    return f"{row['norm']} {255 * row['eps']:.3g}/255" if row["norm"] == "Linf" else f"{row['norm']} {row['eps']:.3g}"


def claims_table(*ids: str, folder: str | Path | None = None) -> Any:
    """Return the verdicts on some claims as a table that a notebook displays.

    Arguments:
        ids: Of the claims, see :mod:`rdc.findings`.
        folder: Where the results are; by default the book's own.
    """
    import pandas as pd

    found = pd.DataFrame([line(judge(claims()[name], folder)) for name in ids])
    left = [{"selector": "td, th", "props": [("text-align", "left"), ("white-space", "normal")]}]
    caption = "What the papers claim, and what the results say of it"
    return found.style.hide(axis="index").set_table_styles(left).set_caption(caption)


def line(found: Finding) -> dict[str, str]:
    """Return a finding in four columns."""
    about = found.entry()
    interval = "" if about["low"] is None else f" [{about['low']:+.2f}, {about['high']:+.2f}]"
    return {"": about["id"], "claim": about["claim"], "verdict": about["verdict"], "evidence": about["sentence"] + interval}
