"""Denoisers of other libraries: checkpoints of guided-diffusion (ADM), and ``UNet2DModel`` of diffusers.

Both predict the noise of a DDPM, whose time is found from the noise level (:mod:`rdc.denoise.parameterisation`). Neither says
whether its labels were ever hidden in training, so that a conditional one has no answer without a label.

References:
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021)
    | https://arxiv.org/abs/2105.05233, https://github.com/openai/guided-diffusion
    | https://huggingface.co/docs/diffusers/api/models/unet2d
"""

__all__ = ["convert_guided_diffusion", "from_diffusers", "load_diffusers"]

import hashlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.denoise.checkpoints import CheckpointError, one_line
from rdc.denoise.edm import EDM, EDMConfig
from rdc.denoise.parameterisation import Reparameterised
from rdc.denoise.published import PublishedConfig, save_published, why
from rdc.denoise.published_unet import PublishedBlock, PublishedUNet
from rdc.denoise.unet import UNetConfig

GROUPS = 32  # of every norm of guided-diffusion
ENDS = {
    "map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "map_label": "label_emb",
    "out_norm": "out.0", "out_conv": "out.2",
}  # fmt: skip
#: Layers of a block, and those of its attention.
RESIDUAL = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0", "conv1": "out_layers.3",
    "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


def convert_guided_diffusion(
    path: Path,
    out: Path,
    unet: UNetConfig,
    schedule: str = "linear",
    new_attention_order: bool = False,
    heads: int | None = None,
    data: str = "",
) -> Path:
    """Write a checkpoint of guided-diffusion, a state dict with ``resblock_updown`` and ``use_scale_shift_norm``, as one of ours.

    The learned variance is dropped. A state dict does not say what else it takes:

    Arguments:
        path: The ``.pt`` file; only tensors are read from it.
        out: The ``.safetensors`` file.
        unet: Its sizes; ``label_dim`` is 0 for an unconditional network, ``attn_resolutions`` are sides of images.
        schedule: ``linear`` or ``cosine``, of 1000 steps.
        new_attention_order: As the flag ``use_new_attention_order``.
        heads: 4 for ``num_heads 4``; by default one for each 64 channels.
        data: Name of the data set that it is for.

    Raises:
        CheckpointError: if the file is no state dict, or its tensors are not those of the network, in one line.
        ValueError: if no such network can be built here.
    """
    form = "adm" if heads is None else f"adm with {heads} heads"
    config = PublishedConfig(EDMConfig(unet, data=data, unlabelled=unet.label_dim == 0), form, f"ddpm-{schedule}")
    if min(unet.channel_mult) * unet.model_channels < 4 * GROUPS:
        raise ValueError(f"norms of guided-diffusion have {GROUPS} groups, here of at least 4 channels; too narrow is {unet}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may be an archive of TorchScript, which is an error, too
            stored = torch.load(path, map_location="cpu", weights_only=True)
        given = {str(name): value.detach() for name, value in stored.items()}
    except Exception as error:  # whatever a made-up file can lead to
        raise CheckpointError(f"{path} is no state dict: {type(error).__name__}, {why(error)}"[:400]) from error
    with torch.device("meta"):
        network = PublishedUNet(unet, form)
    names = guided_names(network.state_dict())
    if odd := sorted(given.keys() ^ set(names.values())):
        what = "left over" if odd[0] in given else "missing"
        raise CheckpointError(f"{path} is another network: the tensor {odd[0]} is {what}, of {len(odd)} in all")
    try:
        tensors = {name: reordered(name, given[old], network, new_attention_order) for name, old in names.items()}
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"{path} is another network: {one_line(error)}") from error
    save_published(out, config, tensors, source=path.name, source_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return out


def guided_names(names: Collection[str]) -> dict[str, str]:
    """The names of guided-diffusion, by ours, which are in the order of the network.

    Its encoder is ``input_blocks``, its decoder ``output_blocks``, where a change of resolution is the end of the block before.
    """
    attended = {name.rpartition(".qkv")[0] for name in names if ".qkv." in name}
    places, following, before = dict[str, tuple[str, int]](), {"enc": 0, "dec": 0}, ""
    for block in dict.fromkeys(block_of(name) for name in names if name.startswith(("enc.", "dec."))):
        side = block[:3]
        if block.endswith(("_in0", "_in1")):
            places[block] = "middle_block", 2 * int(block[-1])
        elif block.endswith("_up"):
            places[block] = places[before][0], 2 if before in attended else 1
        else:
            places[block] = f"{'input' if side == 'enc' else 'output'}_blocks.{following[side]}", 0
            following[side] += 1
        before = block
    return {name: guided_name(name, places) for name in names}


def guided_name(name: str, places: Mapping[str, tuple[str, int]]) -> str:
    """The name of one tensor, for the place of each block, its list and its position there; its attention is number 1."""
    first, _, rest = name.partition(".")
    if (block := block_of(name)) not in places:
        return f"{ENDS.get(first, first)}.{rest}"
    layer, _, kind = name.removeprefix(f"{block}.").rpartition(".")
    inside, position = places[block]
    if layer in ATTENTION:
        return f"{inside}.1.{ATTENTION[layer]}.{kind}"
    return ".".join(filter(None, [inside, str(position), RESIDUAL.get(layer, layer), kind]))


def block_of(name: str) -> str:
    """The first two parts of a name."""
    return ".".join(name.split(".")[:2])


def reordered(name: str, value: Tensor, network: PublishedUNet, new_attention_order: bool) -> Tensor:
    """A tensor of guided-diffusion as it is here."""
    if name == "map_label.weight":
        return value.transpose(0, -1).contiguous()
    if name.startswith("out_conv."):
        return value[: network.config.channels].clone()
    layer = name.split(".")[-2]
    if layer not in ("qkv", "proj"):
        return value
    if name.endswith("weight"):
        value = value[..., None]
    if layer == "proj":
        return value
    block = network.get_submodule(block_of(name))
    assert isinstance(block, PublishedBlock)
    if new_attention_order:  # (q, k, v), head, channel
        return value.unflatten(0, (3, block.heads, -1)).movedim(0, 2).flatten(0, 2)
    return value.unflatten(0, (block.heads, 3, -1)).transpose(1, 2).flatten(0, 2)


class ByIndex(nn.Module):
    """A network that takes the time in steps and the index of a class, and whose answer has a ``sample``."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """The predicted noise; what else it predicts is dropped."""
        found = self.network(x, time, class_labels=None if label is None else label.argmax(dim=1))
        sample: Tensor = found.sample
        return sample[:, : self.channels]


def from_diffusers(unet: Any, alphas_cumprod: Tensor, prediction_type: str = "epsilon", data: str = "") -> EDM:
    r"""A denoiser of a ``UNet2DModel`` that predicts noise.

    Arguments:
        unet: The network, unconditional or with ``num_class_embeds`` classes, for square images in [-1, 1].
        alphas_cumprod: The products :math:`\bar\alpha_t` of its scheduler.
        prediction_type: What it predicts, as its scheduler says.
        data: Name of the data set that it is for.

    Raises:
        ValueError: if it predicts something else, or has no size, another kind of classes, or a schedule that does not rise.
    """
    c = unet.config
    if prediction_type != "epsilon":
        raise ValueError(f"this network predicts {prediction_type}; only networks that predict epsilon, the noise, are known")
    if not isinstance(c.sample_size, int) or getattr(c, "class_embed_type", None) is not None:
        raise ValueError("the network must have one sample_size, and classes as num_class_embeds or none")
    classes = getattr(c, "num_class_embeds", None) or 0
    config = EDMConfig(UNetConfig(c.sample_size, c.in_channels, classes), data=data, unlabelled=classes == 0)
    model = Reparameterised(ByIndex(unet, c.in_channels), "ddpm-linear", config.sigma_data, alphas_cumprod)
    return EDM(model, config).eval().requires_grad_(False)


def load_diffusers(folder: str | Path, data: str = "") -> EDM:
    """Load the pipeline of a folder, with ``unet`` and ``scheduler``, by diffusers; only safetensors are read.

    Raises:
        ImportError: if diffusers is not installed, in one line.
        ValueError: as :func:`from_diffusers`.
    """
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError as error:
        raise ImportError("this needs diffusers: pip install 'rdc[diffusers]'") from error
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    return from_diffusers(unet, scheduler.alphas_cumprod, scheduler.config.prediction_type, data)
