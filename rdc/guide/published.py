r"""The time-dependent classifier of guided-diffusion, from its state dict: the encoder of an ADM, and attention over the pixels.

With the tokens of the last resolution, their mean in front, and a position p of each,

.. math:: t = (\bar h, h_1, \dots, h_m) + p, \qquad h(x_t, t) = W \operatorname{attention}(Q t, K t, V t)_0 + b,

in heads of 64 channels. As a function of noise level and :math:`z_\sigma = x_t \sqrt{1 + \sigma^2}` it is what guides and threats
take, see :mod:`rdc.guide.classifier`. Every norm has 32 groups.

References:
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), section 4.1 and appendix H
    | https://arxiv.org/abs/2105.05233, https://github.com/openai/guided-diffusion
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), appendix E
    | https://github.com/bahjat-kawar/enhancing-diffusion-robust
"""

__all__ = ["SIZES", "PublishedClassifier", "load_published_classifier"]

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.denoise.adapters import block_of, guided_names, reordered
from rdc.denoise.base import expand_sigma
from rdc.denoise.checkpoints import CheckpointError, check_fit, one_line
from rdc.denoise.parameterisation import Reparameterised
from rdc.denoise.published_unet import PublishedUNet
from rdc.denoise.unet import UNetConfig, linear

#: Encoders and classes by data set: the published classifier, and that of the authors' ablation.
SIZES = {
    "imagenet-128": (UNetConfig(128, 3, 0, 128, (1, 1, 2, 3, 4), 2, (32, 16, 8)), 1000),
    "cifar10": (UNetConfig(32, 3, 0, 32, (1, 2, 2, 4), 2, (16, 8)), 10),
}
GROUPS, HEAD = 32, 64  # of every norm; channels of an attention head


class Pool(nn.Module):
    """Attention of the mean to all pixels, and a linear layer."""

    def __init__(self, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(width, side**2 + 1, dtype=torch.float32, device="cpu"))
        self.qkv_proj, self.c_proj = linear(width, 3 * width), linear(width, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        x = x.flatten(2)
        x = (torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding).transpose(1, 2)
        q, k, v = self.qkv_proj(x).unflatten(2, (3, -1, HEAD)).unbind(2)  # each (n, tokens, heads, 64)
        weight = (torch.einsum("nhc,nthc->nht", q[:, 0], k) / math.sqrt(HEAD)).softmax(dim=2)
        return self.c_proj(torch.einsum("nht,nthc->nhc", weight, v).flatten(1))


class Encoder(nn.Module):
    """The raw network: noisy images and times in steps to logits."""

    def __init__(self, config: UNetConfig, classes: int) -> None:
        super().__init__()
        self.unet, width = PublishedUNet(config, "adm"), config.model_channels * config.channel_mult[-1]
        for name in list(self.unet.dec)[2:]:
            del self.unet.dec[name]  # the middle stays
        del self.unet.out_conv
        self.unet.out_norm = nn.GroupNorm(GROUPS, width, eps=1e-5)
        self.pool = Pool(config.resolution // 2 ** (len(config.channel_mult) - 1), width, classes)
        for layer in self.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.num_groups = GROUPS

    def forward(self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Logits."""
        e = self.unet.embed(time, None, x.dtype)
        for name, layer in [*self.unet.enc.items(), *self.unet.dec.items()]:
            x = layer(x) if name.endswith("conv") else layer(x, e)
        return self.pool(F.silu(self.unet.out_norm(x)))


class PublishedClassifier(nn.Module):
    """Logits of noisy images in model units, by noise level; the time between two steps is linear in its logarithm."""

    def __init__(self, config: UNetConfig, classes: int) -> None:
        super().__init__()
        self.shape, self.num_classes = (config.channels, config.resolution, config.resolution), classes
        self.encoder, self.steps = Encoder(config, classes), Reparameterised(nn.Identity(), "ddpm-linear")

    def forward(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)`` of noisy images ``z_sigma``, in the type of ``z``.

        Raises:
            ValueError: if the images have another shape, or a level is not positive or does not fit.
        """
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"images have shape {tuple(z.shape[1:])}, the classifier takes {self.shape}")
        sigma = expand_sigma(sigma, z)
        dtype = self.encoder.pool.c_proj.weight.dtype
        return self.encoder((z / (1 + sigma**2).sqrt()).to(dtype), self.steps.condition(sigma.flatten().log())).to(z.dtype)


def load_published_classifier(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> PublishedClassifier:
    """Load a state dict of guided-diffusion whose sizes are among :data:`SIZES`, ready for use; only tensors are read.

    Arguments:
        path: The ``.pt`` file.
        device: Where the network shall live.
        dtype: Type of its parameters.

    Raises:
        CheckpointError: if the file is missing, no state dict, or that of another network, in one line.
    """
    path = Path(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        given = {str(name): value.detach() for name, value in stored.items()}
        width = given["time_embed.0.weight"].shape[1]
    except Exception as error:  # whatever a made-up file can lead to
        raise CheckpointError(f"{path} is no classifier of guided-diffusion: {one_line(error)}"[:400]) from error
    found = next(((config, classes) for config, classes in SIZES.values() if config.model_channels == width), None)
    if found is None:
        raise CheckpointError(f"{path} is {width} channels wide; known are the classifiers for {', '.join(SIZES)}")
    classifier = PublishedClassifier(*found)
    encoder = classifier.encoder
    names = names_of(encoder)
    if odd := sorted(given.keys() ^ set(names.values())):
        what = "left over" if odd[0] in given else "missing"
        raise CheckpointError(f"{path} is another network: the tensor {odd[0]} is {what}, of {len(odd)} in all")
    tensors = {name: placed(name, given[old], encoder) for name, old in names.items()}
    check_fit(encoder.state_dict(), tensors, path)
    encoder.load_state_dict(tensors)
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)


def names_of(encoder: Encoder) -> dict[str, str]:
    """The names of guided-diffusion, by ours."""
    inside = {f"unet.{name}": old for name, old in guided_names(encoder.unet.state_dict()).items()}
    return {name: inside.get(name, name.replace("pool.", "out.2.")) for name in encoder.state_dict()}


def placed(name: str, value: Tensor, encoder: Encoder) -> Tensor:
    """A tensor of guided-diffusion as it is here."""
    if name.startswith("pool."):
        return value[..., 0] if name.endswith("_proj.weight") else value
    name = name.removeprefix("unet.")
    return reordered(name, value, encoder.unet, False) if block_of(name).startswith(("enc.", "dec.")) else value
