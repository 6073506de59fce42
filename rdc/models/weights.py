"""Which checkpoints a model is made of: names, and hashes of their tensors."""

__all__ = ["checkpoints_of"]

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

#: Options that name a denoiser or a network.
DENOISERS, NETWORKS = ("denoiser", "unconditional", "fast", "slow"), ("network",)
#: Models with a network that no option names.
IMPLIED = {"lm-cnn": "cnn"}
PICKLE = ".pkl"  # of a published denoiser


def checkpoints_of(name: str, data: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the first 12 digits of the hash of the tensors of every file of weights behind a model, by its name.

    What is trained on the spot, or follows from the data, has none; a file that is not here is ``missing``.

    Raises:
        ValueError: if there is no such model, or a file is no checkpoint.
    """
    from rdc.classify.baselines import BASELINES
    from rdc.classify.reference import KINDS
    from rdc.models import entry
    from rdc.models.user import names_user_model

    if names_user_model(name):
        return {}
    found = entry(name)
    values = {option.name: option.default for option in found.options.values()} | dict(options)
    if name in (*KINDS, *BASELINES) or name in IMPLIED:
        values["network"] = IMPLIED.get(name, name)
    if name == "race":
        values |= {"fast": "heads", "slow": "single-head"}
    if isinstance(getattr(found.make, "args", None), tuple):  # the diffusion classifier of a checkpoint
        values["denoiser"] = name
    files = [denoiser_file(values[o], data) for o in DENOISERS if values.get(o)]
    files += [network_file(values[o], data) for o in NETWORKS if values.get(o)]
    return {path.stem: digest_of(path, kind) if path.exists() else "missing" for path, kind in filter(None, files)}


def denoiser_file(name: str, data: str) -> tuple[Path, str] | None:
    """Return the file of a denoiser, and its kind; None for the optimal one."""
    from rdc.denoise.checkpoints import locate
    from rdc.denoise.published import KIND, kind_of
    from rdc.models.parts import SHIPPED

    if name == "optimal":
        return None
    path = Path(name) if name.endswith(PICKLE) else locate(SHIPPED[name][data] if name in SHIPPED else name)
    return path, KIND if path.suffix == PICKLE or kind_of(path) == KIND else "denoiser"


def network_file(name: str, data: str) -> tuple[Path, str] | None:
    """Return the file of a network of the book, and its kind; None for any other name."""
    from rdc.classify import baselines
    from rdc.classify.reference import KIND, KINDS, reference_file

    if name in baselines.BASELINES:
        return baselines.SHIPPED / f"{'fashion-mini' if data == 'fashion' else data}-{name}.safetensors", baselines.KIND
    return (reference_file(name, data), KIND) if name in KINDS else None


def file_digest(path: Path) -> str:
    """Return the start of the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@cache
def digest_of(path: Path, kind: str) -> str:
    """Return the start of the hash of the tensors of a checkpoint, which is checked; of a published ``.pkl`` that of the file."""
    from rdc.denoise.checkpoints import read_checkpoint

    if path.suffix == PICKLE:
        return file_digest(path)
    return str(read_checkpoint(path, kind)[1]["tensors_sha256"])[:12]
