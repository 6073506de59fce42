"""What the papers claim, and what this book's results say of it.

>>> from rdc.findings import claims, judge
>>> judge(claims()["A2"]).verdict
'holds'
"""

__all__ = ["Claim", "Finding", "claims", "judge", "rate", "write_claims"]

import json
from pathlib import Path

from rdc.findings.claim import Claim, Finding, judge
from rdc.findings.side import rate
from rdc.runs.record import write_atomic


def claims() -> dict[str, Claim]:
    """Return all claims by their id, in order."""
    from rdc.findings import certified, colour, guidance, robust_classification, robust_evaluation

    parts = (robust_classification, robust_evaluation, colour, certified, guidance)
    return {claim.id: claim for part in parts for claim in part.CLAIMS}


def write_claims(path: str | Path, folder: str | Path | None = None) -> list[Finding]:
    """Judge all claims and write the list as JSON.

    Arguments:
        path: The file.
        folder: Where the results are; by default those of the book.
    """
    found = [judge(claim, folder) for claim in claims().values()]
    write_atomic(Path(path), (json.dumps([one.entry() for one in found], indent=1, ensure_ascii=False) + "\n").encode())
    return found
