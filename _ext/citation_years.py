"""Letters after the year of works whose citations would be alike: Chen et al. [2024a] and [2024b], in the references, too."""

import string
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from pybtex.database import Entry
from sphinx.application import Sphinx


def cited(entry: Entry) -> tuple[str, str]:
    """What a citation shows of a work: its authors, all of up to two and the first of more, and its year."""
    names = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names), entry.fields.get("year", "")


def letter(entries: Iterable[Entry]) -> None:
    """Tell works with one citation apart, in the order of the list."""
    for (authors, year), same in groupby(sorted(entries, key=cited), key=cited):
        works = list(same)
        if authors and year and len(works) > 1:
            for work, one in zip(works, string.ascii_lowercase, strict=False):
                work.fields["year"] = f"{year}{one}"


def works(app: Sphinx) -> None:
    """Once sphinxcontrib.bibtex has read the list; a list that it kept from an earlier build has its letters."""
    letter(app.env.get_domain("cite").bibdata.data.entries.values())  # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", works, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
