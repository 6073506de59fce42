"""The command ``rdc findings``: what the papers claim, and what the stored results say of it."""

__all__ = ["findings_command"]

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rdc.cli.options import writable
from rdc.cli.report import results_folder
from rdc.experiments import unknown


def findings_command(
    ids: Annotated[Positional[tuple[str, ...]], arg(help="Of the claims, such as A16; by default all.")] = (),
    folder: Annotated[Path | None, arg(help="Folder of the results; by default that of the book.")] = None,
    out: Annotated[Path | None, arg(help="File to write the whole list to, as JSON.")] = None,
    figure: Annotated[Path | None, arg(help="File to draw the headline to, as SVG.")] = None,
) -> None:
    """Judge the claims of the papers by the stored results, with the one rule of the book.

    For example:
      rdc findings A8 A16
      rdc findings --out results/claims.json --figure book/headline.svg
    """
    from rdc.findings import claims, judge, write_claims

    for option, file in {"--out": out, "--figure": figure}.items():
        if file is not None:
            writable(file, option=option)
    folder, known = None if folder is None else results_folder(folder), claims()
    names = {name.lower(): name for name in known}
    if odd := [name for name in ids if name.lower() not in names]:
        raise unknown("claim", odd[0], known, "rdc findings")
    for name in [names[each.lower()] for each in ids] or known:
        found = judge(known[name], folder)
        print(f"{name:5} {found.verdict:14} {known[name].text}\n      {found.entry()['sentence']}")
    if out is not None:
        write_claims(out, folder)
    if figure is not None:
        from rdc.findings.figure import save_headline

        save_headline(figure, folder, ground="white")
