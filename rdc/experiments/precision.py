"""Does the gradient of a defence in bfloat16 still point where that in float32 points?

One gradient of the margin at each of the first test images. "released" is the reading of the released code, noise is fixed. In
bfloat16 are the denoisers, as where a device multiplies it natively and nobody objects.
"""

from typing import Any

from rdc.runs.cell import Row

LM = {"lm": "released", "steps": 5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DC": ("dc", {}),
    "RDC, BPDA": ("rdc", LM | {"gradient": "bpda"}),
    "RDC, exact": ("rdc", LM | {"gradient": "exact"}),
    "RDC, smoothed": ("rdc", LM | {"gradient": "smoothed 0.3"}),
    "DiffPure + CNN": ("diffpure", {"gradient": "exact"}),
}


def row(name: str) -> Row:
    """Return a row."""
    model, options = MODELS[name]
    arguments = {"dtype": "bfloat16"}
    return Row(model, options, None, arguments, n=32, block=8, task="precision", about={"model": name, "dtype": "bfloat16"})


ROWS = tuple(map(row, MODELS))
