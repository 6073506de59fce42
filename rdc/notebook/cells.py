"""What the cells of a chapter call: checks of its parameters, of its claims and of its sizes, and values pasted into the book."""

__all__ = ["check_parameters", "claim", "glue", "needs"]

import inspect
from collections.abc import Iterator
from typing import Any

from rdc.notebook.parameters import Parameter, check_values, declared, profile_values, profiles

PASTE = "application/papermill.record/"  # the prefix that myst-nb looks for


def check_parameters() -> None:
    """Check what papermill set against the parameters cell; call it in the first cell after that.

    A radius given as ``"8/255"``, where its type is ``str | float``, becomes a number.

    Raises:
        ValueError: if a name is unknown to the parameters cell, or a value is not of its type.
    """
    for known, given in _injected():
        skipped = {key for path in profiles().glob("*.yaml") for key in profile_values(path.stem)} - known.keys()
        values = check_values({name: p.default for name, p in given.items() if name not in skipped}, known)
        _shell().user_ns.update(values)


def claim(holds: object, text: str = "") -> None:
    """Check a claim of the prose; with other parameters than the tutorial's, print that it does not hold instead of raising.

    Arguments:
        holds: Whether it holds.
        text: What the text says; by default the line of code.

    Raises:
        AssertionError: if it does not hold with the parameters of the parameters cell.
    """
    if holds:
        return
    if not text:
        frame = inspect.currentframe()
        context = inspect.getframeinfo(frame.f_back).code_context if frame is not None and frame.f_back is not None else None
        text = context[0].strip() if context else "a claim"
    changed = [f"{name} = {p.default!r}" for known, given in _injected() for name, p in given.items()
               if name in known and p.default != known[name].default]  # fmt: skip
    if not changed:
        raise AssertionError(f"this does not hold: {text}")
    print(f"With {', '.join(changed)} this does not hold: {text}")


def needs(holds: object, text: str) -> None:
    """Stop a chapter whose sizes are too small for what it does.

    Raises:
        ValueError: with ``text``, if not ``holds``; it says which parameter is too small, and what to take.
    """
    if not holds:
        raise ValueError(text)


def glue(name: str, value: Any) -> None:
    """Store ``value`` as ``name`` in this notebook's outputs; array scalars become Python numbers, which format well."""
    from IPython.display import display

    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    data, meta = _shell().display_formatter.format(value)
    record = {"scrapbook": {"name": name, "mime_prefix": PASTE}}
    display({PASTE + kind: text for kind, text in data.items()}, metadata={**meta, **record}, raw=True)


def _injected() -> Iterator[tuple[dict[str, Parameter], dict[str, Parameter]]]:
    """The parameters cell and what papermill injected after it, if it did."""
    inputs = shell.user_ns["In"] if (shell := _shell()) else []
    for cell, injected in zip(inputs, inputs[1:], strict=False):
        if injected.startswith("# Parameters\n"):  # papermill's own cell, right after the parameters cell
            yield declared(cell), declared(injected)


def _shell() -> Any:
    """IPython's shell; None outside a notebook."""
    from IPython.core.getipython import get_ipython

    return get_ipython()
