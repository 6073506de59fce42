r"""A time-dependent classifier :math:`h(z_\sigma, \sigma)`: noisy images and their noise level to logits.

.. math::
    h(z_\sigma, \sigma) = H(c_\text{in} z_\sigma, \tfrac14 \log \sigma), \qquad
    c_\text{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}, \qquad \log p(y \mid z_\sigma) \approx \operatorname{log\,softmax}(h)_y ,

so that the network sees unit variance at every level, as :class:`rdc.denoise.EDM` does. H is the encoder of the denoiser's U-Net
(its folding, blocks and noise embedding), one block with attention, the mean over pixels and a linear layer.

The paper counts time: its :math:`x_t = \sqrt{\alpha_t}\, x_0 + \sqrt{1 - \alpha_t}\, \epsilon` is the same image in other units,

.. math:: x_t = \sqrt{\alpha_t}\, z_\sigma, \qquad \sigma = \sqrt{(1 - \alpha_t) / \alpha_t}, \qquad
    \nabla_{x_t} \log p = \nabla_{z_\sigma} \log p / \sqrt{\alpha_t},

with :math:`1 / \sqrt{\alpha_t} = \sqrt{1 + \sigma^2}`: time t becomes the noise level (:func:`rdc.schedule.alpha_to_sigma`).

References:
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), section 4.2
    | https://arxiv.org/abs/2208.08664
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233
"""

__all__ = [
    "AtLevel",
    "ClassifierConfig",
    "TimeClassifier",
    "build_classifier",
    "classifier_file",
    "load_classifier",
    "save_classifier",
    "shipped_classifiers",
]

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.data import check_images
from rdc.denoise.base import expand_sigma, to_model
from rdc.denoise.checkpoints import ASSETS, CheckpointError, filled, parsed, read_checkpoint, write_checkpoint
from rdc.denoise.edm import coefficients
from rdc.denoise.unet import Block, UNet, UNetConfig, linear, norm
from rdc.rng import randn

KIND = "classifier"
SHIPPED = ASSETS.parent / "classifiers"


@dataclass(frozen=True)
class ClassifierConfig:
    """What it takes to build a :class:`TimeClassifier`: the U-Net whose encoder it uses, and the data set it is for."""

    encoder: UNetConfig = field(default_factory=UNetConfig)  # label_dim must be 0: a class is the answer, not an input
    num_classes: int = 10
    sigma_data: float = 0.5
    data: str = ""


class Encoder(nn.Module):
    """The raw network H: the first half of a :class:`rdc.denoise.UNet` and a linear layer."""

    def __init__(self, config: UNetConfig, num_classes: int) -> None:
        super().__init__()
        self.unet = UNet(config)
        del self.unet.dec  # what turns features back into an image
        width = config.model_channels * config.channel_mult[-1]
        self.last = Block(width, width, 4 * config.model_channels, attention=True)
        self.norm, self.head = norm(width), linear(width, num_classes)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Logits ``(N, K)`` of scaled inputs ``(N, C, H, W)`` and noise conditions ``log(sigma) / 4``, ``(N,)``."""
        e, patch = self.unet.embed(noise, None, x.dtype), self.unet.config.patch
        x = F.pixel_unshuffle(x, patch) if patch > 1 else x
        for name, layer in self.unet.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, e)
        return self.head(F.silu(self.norm(self.last(x, e))).mean(dim=(2, 3)))


class TimeClassifier(nn.Module):
    """The classifier around a raw network; logits have the dtype of ``z``, the network runs in that of its parameters."""

    def __init__(self, model: nn.Module, config: ClassifierConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.config.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        c = self.config.encoder
        return (c.channels, c.resolution, c.resolution)

    def forward(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)`` of noisy images ``z_sigma = z + sigma eps`` in model units.

        Arguments:
            z: Noisy images.
            sigma: Noise level, positive, one number or one per image.

        Raises:
            ValueError: if the images have another shape, or a level is not positive or does not fit.
        """
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"images have shape {tuple(z.shape[1:])}, the classifier takes {self.shape}")
        sigma = expand_sigma(sigma, z)
        dtype = next(self.model.parameters()).dtype
        scaled = coefficients(sigma, self.config.sigma_data)[2] * z
        return self.model(scaled.to(dtype), sigma.flatten().log() / 4).to(z.dtype)


class AtLevel(nn.Module):
    """One noise level as a classifier of clean images in [0, 1], for the attacks and audits of :mod:`rdc.attack`.

    ``x -> h(z + sigma eps, sigma)`` with ``z = 2x - 1`` and noise that is the same for all images and calls: the attacker knows
    it, and a change of x by delta changes ``z_sigma`` by 2 delta.

    Arguments:
        classifier: A time-dependent classifier ``(z_sigma, sigma) -> logits`` with a ``shape``.
        sigma: Noise level, model units.
        seed: Owner of the noise.
    """

    def __init__(self, classifier: TimeClassifier, sigma: float, seed: int = 0) -> None:
        super().__init__()
        self.classifier, self.sigma, self.seed = classifier, float(sigma), seed

    def frozen(self, seed: int) -> "AtLevel":
        """The same level with the noise of another seed."""
        return AtLevel(self.classifier, self.sigma, seed)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)`` of images in [0, 1]."""
        check_images(x, self.classifier.shape)
        eps = randn(self.classifier.shape, self.seed, "level", like=x)
        return self.classifier(to_model(x) + self.sigma * eps, self.sigma)


def build_classifier(config: ClassifierConfig, seed: int = 0) -> TimeClassifier:
    """A freshly initialised classifier; the global random state is left as it was.

    Raises:
        ValueError: if the encoder would take a class as input, or there are fewer than two classes.
    """
    if config.encoder.label_dim or config.num_classes < 2:
        raise ValueError(
            f"a classifier has an encoder with label_dim 0 and at least two classes, got label_dim {config.encoder.label_dim} "
            f"and {config.num_classes} classes"
        )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return TimeClassifier(Encoder(config.encoder, config.num_classes), config)


def save_classifier(path: Path, classifier: TimeClassifier, tensors: dict[str, Tensor] | None = None, **info: Any) -> None:
    """Write the parameters (or ``tensors`` in their place) with the configuration and ``info``, whole or not at all."""
    tensors = classifier.model.state_dict() if tensors is None else tensors
    write_checkpoint(path, tensors, kind=KIND, config=dataclasses.asdict(classifier.config), **info)


def shipped_classifiers() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def classifier_file(name: str | Path, data: str | None = None) -> Path:
    """Return the file of a classifier: a shipped one by its name, or by the part of it behind the data set, or that of a path."""
    shipped = shipped_classifiers()
    found = next((known for known in (str(name), f"{data}-{name}") if known in shipped), None)
    return Path(name) if found is None else SHIPPED / f"{found}.safetensors"


def load_classifier(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, data: str | None = None
) -> TimeClassifier:
    """Load a trained classifier, ready for use: no parameter requires a gradient.

    Arguments:
        name: A shipped classifier (``fashion-mini-vanilla``, ``-robust``, ``-wide``) or the path of a ``.safetensors`` file.
        device: Where the network shall live.
        dtype: Type of the network's parameters; inputs and logits keep their own.
        data: If given, the data set that it must be for; ``fashion-mini`` is part of ``fashion``.

    Raises:
        CheckpointError: if the file is missing, damaged, no classifier, or for another data set.
    """
    path = classifier_file(name)
    if path.suffix != ".safetensors":
        known = ", ".join(shipped_classifiers()) or "none"
        raise CheckpointError(f"unknown classifier {str(name)!r}; there are {known}, or give a .safetensors file")
    tensors, meta = read_checkpoint(path, KIND)
    config = parsed(ClassifierConfig, meta["config"], path)
    if data is not None and config.data.removesuffix("-mini") != data.removesuffix("-mini"):
        raise CheckpointError(f"{path} is a classifier for data set {config.data!r}, not {data!r}; choose or train another")
    classifier = filled(lambda: build_classifier(config), tensors, path)
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)
