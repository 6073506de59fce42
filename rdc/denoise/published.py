"""Published denoisers: DDPM++, NCSN++ and ADM in the parameterisations that their authors chose, and one way to load any file.

A file of a DDPM++ in the preconditioning of EDM becomes a checkpoint like those of the book. The others keep their names in a
header of their own, ``{"edm": ..., "network": ..., "parameterisation": ...}``; as a denoiser all are an :class:`rdc.denoise.EDM`.
"""

__all__ = ["PublishedConfig", "build_published", "convert", "load_denoiser", "save_published"]

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rdc.denoise import checkpoints
from rdc.denoise.base import compiled
from rdc.denoise.checkpoints import MALFORMED, CheckpointError, filled, one_line, parsed, read_checkpoint
from rdc.denoise.configuration import from_json
from rdc.denoise.edm import EDM, EDMConfig, build
from rdc.denoise.edm_pickle import read_edm_pickle
from rdc.denoise.multihead import MultiHead
from rdc.denoise.parameterisation import Reparameterised
from rdc.denoise.pickle_limits import check_cost
from rdc.denoise.published_unet import PublishedUNet
from rdc.denoise.unet import UNetConfig

KIND = "published denoiser"
#: What ``torch.load`` tells its caller to do about a file that it refuses; here nobody shall do that.
TORCH = "In PyTorch 2.6"
#: Parameterisations by the names of EDM's classes, with the only values that their constants may have.
PARAMETERISATIONS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "EDMPrecond": ("edm", {}),
    "VPPrecond": ("vp", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}),
    "VEPrecond": ("ve", {}),
    "iDDPMPrecond": ("ddpm-cosine", {"C_1": 0.001, "C_2": 0.008, "M": 1000}),
}
#: What makes a network, and what it is where the arguments of its class do not say.
POSITIONAL = {"embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard", "resample_filter": [1, 1]}
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddpm++": ("SongUNet", POSITIONAL),
    "ncsn++": (
        "SongUNet",
        {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    ),
    "adm": ("DhariwalUNet", {}),
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "SongUNet": {**POSITIONAL, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]},
    "DhariwalUNet": {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
}
#: What every network has.
FIXED: Mapping[str, Any] = {"channel_mult_emb": 4, "decoder_type": "standard"}
SIZES = ("label_dim", "augment_dim", "model_channels", "channel_mult", "num_blocks", "attn_resolutions")


@dataclass(frozen=True)
class PublishedConfig:
    """What it takes to build a published denoiser.

    Attributes:
        edm: Sizes, data set, and whether the answer without a label was trained.
        network: One of :data:`rdc.denoise.published_unet.FORMS`.
        parameterisation: One of :data:`rdc.denoise.parameterisation.Parameterisation`.
    """

    edm: EDMConfig = field(default_factory=EDMConfig)
    network: str = "ddpm++"
    parameterisation: str = "edm"

    @property
    def plain(self) -> bool:
        """Whether it is a network like those of the book."""
        return (self.network, self.parameterisation) == ("ddpm++", "edm")

    @property
    def part(self) -> str:
        """Where in the denoiser the published parameters are."""
        return "model" if self.parameterisation == "edm" else "model.network"


def build_published(config: PublishedConfig, seed: int = 0) -> EDM:
    """A freshly initialised denoiser; the global random state is left as it was.

    Raises:
        ValueError: if the network or the parameterisation is unknown, or no such network can be built.
    """
    if config.plain:
        return build(config.edm, seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        network = PublishedUNet(config.edm.unet, config.network)
    if config.parameterisation == "edm":
        return EDM(network, config.edm)
    return EDM(Reparameterised(network, config.parameterisation, config.edm.sigma_data), config.edm)


def load_denoiser(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    data: str | None = None,
    compile: bool = False,
) -> EDM | MultiHead:
    """Load any denoiser: a shipped one, a ``.safetensors`` file of this package, or a published ``.pkl`` of EDM.

    Arguments and errors are those of :func:`rdc.denoise.checkpoints.load_denoiser`. Of a ``.pkl`` file nothing is run
    (:mod:`rdc.denoise.edm_pickle`); it does not say its data set, and is believed to be for ``data``.
    """
    path = Path(name)
    if path.suffix == ".pkl":
        config, tensors = read_published(path, data or "")
    elif kind_of(path) == KIND:
        tensors, meta = read_checkpoint(path, KIND)
        config = parsed(PublishedConfig, meta["config"], path)
        if data is not None and checkpoints.PART.sub("", config.edm.data) != checkpoints.PART.sub("", data):
            raise CheckpointError(f"{path} is a denoiser for data set {config.edm.data!r}, not {data!r}")
    else:
        return checkpoints.load_denoiser(name, device, dtype, data, compile)
    denoiser = filled(lambda: build_published(config), tensors, path, config.part)
    denoiser = denoiser.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return compiled(denoiser) if compile else denoiser


def kind_of(path: Path) -> str | None:
    """What a file says it holds; None if it is no checkpoint of this package."""
    try:
        with safe_open(path, "pt") as found:
            return str(json.loads(found.metadata()["rdc"])["kind"])
    except MALFORMED:
        return None


def read_published(path: Path, data: str) -> tuple[PublishedConfig, dict[str, Tensor]]:
    """Return configuration and parameters of a checkpoint of EDM.

    Raises:
        CheckpointError: as :func:`rdc.denoise.edm_pickle.read_edm_pickle`, and for a network or a parameterisation that is not
            known.
    """
    tensors, arguments = read_edm_pickle(path)
    try:
        config = config_of(arguments, data)
    except Exception as error:  # whatever made-up arguments can lead to
        raise CheckpointError(f"{path} holds a network of which none can be built: {one_line(error)}"[:400]) from error
    tensors = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    if arguments["precond"] == "iDDPMPrecond":  # behind the noise, the last layer predicts the variance of a step
        kept = config.edm.unet.channels
        tensors |= {name: value[:kept].clone() for name, value in tensors.items() if name.startswith("out_conv.")}
    return config, tensors


def config_of(arguments: Mapping[str, Any], data: str) -> PublishedConfig:
    """The configuration that keyword arguments of EDM's classes stand for.

    Raises:
        ValueError: if there is none, with what is not known.
    """
    precond, model = arguments["precond"], arguments["model_type"]
    if precond not in PARAMETERISATIONS or model not in DEFAULTS:
        raise ValueError(f"it is {precond} of {model}, none of {', '.join(PARAMETERISATIONS)} of {' or '.join(DEFAULTS)}")
    parameterisation, constants = PARAMETERISATIONS[precond]
    odd = [f"{name} = {arguments[name]!r:.40}" for name, value in {**FIXED, **constants}.items()
           if arguments.get(name, value) != value]  # fmt: skip
    if odd:
        raise ValueError(f"{', '.join(odd)} is not what this package computes")
    given = {**DEFAULTS[model], **arguments}
    fitting = [name for name, (kind, wanted) in NETWORKS.items()
               if kind == model and all(given[key] == value for key, value in wanted.items())]  # fmt: skip
    if not fitting:
        said = ", ".join(f"{name} = {given[name]!r:.40}" for name in POSITIONAL)
        raise ValueError(f"it is another network than {', '.join(NETWORKS)}, with {said}")
    unet = {name: given[name] for name in SIZES if name in given}
    unet = {"label_dim": 0, "resolution": given["img_resolution"], "channels": given["img_channels"], **unet}
    config = {"unet": unet, "data": data, "unlabelled": unet["label_dim"] == 0 or bool(given.get("label_dropout", 0))}
    if parameterisation == "edm":
        config["sigma_data"] = given.get("sigma_data", 0.5)
    return PublishedConfig(from_json(EDMConfig, config), fitting[0], parameterisation)


def save_published(path: Path, config: PublishedConfig, tensors: dict[str, Tensor], **info: Any) -> None:
    """Write parameters, which are checked to fit, with their configuration and ``info``.

    Raises:
        CheckpointError: if they do not fit.
    """
    denoiser = filled(lambda: build_published(config), tensors, path, config.part)
    if config.plain:
        checkpoints.save_denoiser(path, denoiser, tensors, **info)
    else:
        checkpoints.write_checkpoint(path, tensors, kind=KIND, config=asdict(config), **info)


def convert(path: Path, out: Path, data: str | None = None) -> Path:
    """Write the network of an EDM checkpoint as a checkpoint of this package, with the hash of the file.

    Arguments:
        path: The ``.pkl`` file.
        out: The ``.safetensors`` file.
        data: Name of the data set that it is for; by default ``cifar10``, if its images and classes are of that kind.

    Raises:
        CheckpointError: if the file is refused or damaged, its network is not known, or its data set must be named, in one line.
    """
    check_cost(path)
    try:
        config, tensors = read_published(path, data or "")
    except CheckpointError as error:
        if isinstance(error.__cause__, Exception) and TORCH in str(error.__cause__):
            raise CheckpointError(f"{path} is refused, and nothing of it was run: {why(error.__cause__)}") from error
        raise
    if data is None:
        config = replace(config, edm=replace(config.edm, data=data_for(config.edm.unet, path)))
    save_published(out, config, tensors, source=path.name, source_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return out


def data_for(unet: UNetConfig, path: Path) -> str:
    """Return the data set of a published network of EDM, as far as sizes and classes tell.

    Raises:
        CheckpointError: if they do not, with one line.
    """
    if (unet.channels, unet.resolution) == (3, 32) and unet.label_dim in (0, 10):
        return "cifar10"
    kind = f"images of {unet.channels} x {unet.resolution} x {unet.resolution}, {unet.label_dim or 'no'} classes"
    raise CheckpointError(f"{path} is not for cifar10 ({kind}); name its data set with --data")


def why(error: BaseException) -> str:
    """Return the line of a message of ``torch.load`` that says what is not supported; of another message the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = next((line for line in lines if "unsupported" in line.lower()), lines[0])
    return found.partition(TORCH)[0].strip()
