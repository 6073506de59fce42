"""The options of a model on the command line: the common ones by a flag of their own, any by ``--set key=value``."""

__all__ = ["ModelFlags", "build_model", "source_of", "takes"]

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn
from tyro.conf import UseAppendAction, arg

from rdc.cli.images import trained_on
from rdc.denoise.pickle_limits import check_cost
from rdc.quantities import count

if TYPE_CHECKING:
    from rdc.models.registry import Option

#: Whole numbers that are no counts, and counts that may be zero.
LABELS, ZERO = ("seed", "label"), {("sbgc", "draws"): 0}


@dataclass(frozen=True)
class ModelFlags:
    """Options of the model; left out, each is that of the model (``rdc models NAME`` lists all)."""

    lm: Annotated[
        Literal["released", "clamped", "printed", "mean-l1", "mi-fgsm", "expectation"] | None,
        arg(help="Reading of likelihood maximisation."),
    ] = None
    gradient: Annotated[
        str | None,
        arg(help="Gradient of what precedes the classifier: exact, bpda, denoise; of LM also transfer, smoothed, smoothed W."),
    ] = None
    steps_lm: Annotated[int | None, arg(help="Steps of likelihood maximisation, or of DiffPure.")] = None
    denoiser: Annotated[
        str | None,
        arg(
            help="heads (shipped, all classes in one pass), single-head (shipped), a checkpoint, a .safetensors or a "
            "published .pkl file, or 'optimal' (the closed form over the train split)."
        ),
    ] = None
    levels: Annotated[int | None, arg(help="Number of noise levels.")] = None
    sigma_min: Annotated[str | None, arg(help="Lowest noise level, model units.")] = None
    draws: Annotated[int | None, arg(help="Noise draws per level.")] = None
    noise: Annotated[
        Literal["shared", "fresh", "per_class", "antithetic"] | None,
        arg(help="shared: fixed, known to the attacker. fresh: new at every call."),
    ] = None
    set: Annotated[
        UseAppendAction[tuple[str, ...]], arg(aliases=["-s"], metavar="KEY=VALUE", help="Any option; may be repeated.")
    ] = ()

    def given(self) -> dict[str, Any]:
        """The options that were given, by their names.

        Raises:
            ValueError: if one is given twice, or is no ``key=value``.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "set"}
        found = {{"steps_lm": "steps"}.get(name, name): value for name, value in found.items() if value is not None}
        for text in self.set:
            name, sign, value = text.partition("=")
            name = name.strip().replace("-", "_")
            if not sign or not name:
                raise ValueError(f"--set takes key=value, got {text!r}")
            if name in found:
                raise ValueError(f"the option {name} is given twice")
            found[name] = value
        return found


def build_model(model: str, data: str, flags: ModelFlags, seed: int, device: torch.device) -> nn.Module:
    """The model of a name with the options of the command line, and the seed of the command if it takes one."""
    from rdc.models import build

    return build(model, trained_on(data), device, **options_for(model, flags.given(), seed=seed))


def source_of(model: str) -> dict[str, str]:
    """A digest of the file of a user's model that was loaded, for the header of its rows; nothing for other models.

    Only the module that ``module:function`` names is read, not what it imports.
    """
    from rdc.models import names_user_model

    name = model.partition(":")[0]
    file = getattr(sys.modules.get(name), "__file__", None) if names_user_model(model) else None
    return {} if file is None else {"source": hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()}


@contextmanager
def takes(model: str, data: str, x: torch.Tensor) -> Iterator[None]:
    """Within the block an error of a user's model that speaks of sizes is one line that names the images."""
    from rdc.models import names_user_model

    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0]
        if not names_user_model(model) or not re.search(r"\b(size|shapes?|channels)\b", text):
            raise
        raise ValueError(f"the model does not take images of shape {tuple(x.shape[1:])} of {data}: {text}") from error


def options_for(model: str, given: dict[str, Any], **standard: Any) -> dict[str, Any]:
    """The options for a model: the given ones, checked, and of the standard ones those that it knows.

    Fixed noise goes without saying.

    Raises:
        ValueError: if the model is a file and no module, a count is too small, there are too few or too many numbers, or a range
            is given to levels without one; if a published file cannot be read in time and memory that fit its size.
    """
    from rdc.models import names_user_model, options_of

    file, colon, made = model.partition(":")
    if colon and file.endswith(".py"):
        raise ValueError(f"--model {model} names a file; name its module, as Python imports it: {Path(file).stem}:{made}")
    for path in (str(value) for value in (model, *given.values()) if str(value).endswith(".pkl")):
        if Path(path).is_file():
            check_cost(Path(path))
    known = options_of(model)
    given = left_out(model, given, ("levels", "draws")) if names_user_model(model) else given
    kept = {k: v for k, v in given.items() if k in known or (k, v) != ("noise", "shared")}
    for name in (k for k in kept if k in known):
        check_size(model, known[name], kept[name])
    ends = [name for name in ("sigma_min", "sigma_max") if kept.get(name, "none") != "none"]
    if ends and str(kept.get("kind")).startswith("vp"):
        raise ValueError(f"the levels of kind {kept['kind']} are time steps, which have no range; leave out {', '.join(ends)}")
    return {k: v for k, v in standard.items() if k in known} | kept


def left_out(model: str, given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return options without those of some names that a model does not have, and say so: command lines may be of any model."""
    from rdc.models import options_of

    unused = [name for name in names if name in given and name not in options_of(model)]
    if unused:
        print(f"{model} makes nothing of {', '.join(unused)}; left out")
    return {name: value for name, value in given.items() if name not in unused}


def check_size(model: str, option: "Option", value: Any) -> None:
    """Raise if a count is too small, or there are not as many numbers as the model has by default."""
    from rdc.models.values import parsed

    name = f"{option.name} of {model}"
    found = parsed(value, option.kind, name)
    if option.name not in LABELS and type(found) is int:
        count(found, name, ZERO.get((model, option.name), 1))
    if isinstance(found, tuple) and isinstance(option.default, tuple) and len(found) != len(option.default):
        raise ValueError(f"{name} must be {len(option.default)} numbers, got {len(found)}")
