"""When two runs say the same of a cell: yes and no, counts and words exactly, other numbers to rounding."""

__all__ = ["alike", "differences"]

from math import isclose

from rdc.runs.cell import Line, Outcome


def differences(line: Line, found: Outcome) -> tuple[int, ...]:
    """Return the images of a line about which a new outcome says something else; all of them if a count, mean or word differs."""
    odd: set[int] = set()
    for name in line.bits.keys() & found.bits.keys():
        odd |= {i for (i, was), now in zip(line.outcome(name).items(), found.bits[name], strict=True) if was != bool(now)}
    for name in line.values.keys() & found.values.keys():
        odd |= {i for (i, was), now in zip(line.value(name).items(), found.values[name], strict=True) if not alike(was, now)}
    counts = any(line.counts[name] != found.counts[name] for name in line.counts.keys() & found.counts.keys())
    means = any(not alike(line.means[name], found.means[name]) for name in line.means.keys() & found.means.keys())
    words = any(line.words[name] != found.words[name] for name in line.words.keys() & found.words.keys())
    return tuple(range(*line.images)) if counts or means or words else tuple(sorted(odd))


def alike(a: float | None, b: float | None) -> bool:
    """Return whether two numbers agree to rounding, or are both none."""
    return a is b if a is None or b is None else isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
