"""Small models and data for the tests."""

import torch
from torch import Tensor, nn

from rdc.denoise.edm import EDM, EDMConfig, build
from rdc.denoise.optimal import OptimalDenoiser
from rdc.denoise.unet import UNetConfig
from rdc.rng import generator


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [0, 1]."""
    return torch.rand(shape, generator=generator("test", seed), dtype=torch.float64).to(dtype)


def mixture(seed: int = 0, counts: tuple[int, ...] = (3, 5, 2), shape: tuple[int, int, int] = (1, 2, 3)) -> tuple[Tensor, Tensor]:
    """Random images in float64, in shuffled order, ``counts[k]`` of class k."""
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=generator("order", seed))]
    return draw((len(y), *shape), seed), y


def tiny_network(seed: int = 0, num_classes: int = 3, channels: int = 1, patch: int = 1) -> EDM:
    """An EDM denoiser of 8x8 images in which no layer is nearly zero."""
    unet = UNetConfig(8, channels, num_classes, 8, (1, 2), 1, (4,), patch=patch)
    denoiser = build(EDMConfig(unet, sigma_data=0.6, data="digits"), seed)
    for i, parameter in enumerate(denoiser.parameters()):
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator("weights", seed, i))
            parameter.data = noise / parameter[0].numel() ** 0.5
    return denoiser.eval().requires_grad_(False)


class Linear(nn.Module):
    """``f(x) = W (x - 1/2) + b``: an attack on it has a closed-form optimum."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias

    def forward(self, x: Tensor) -> Tensor:
        """Each logit by a sum over its own row, so that rows do not depend on the batch."""
        return ((x - 0.5).flatten(1)[:, None] * self.weight.flatten(1)[None]).sum(2) + self.bias


class Counting:
    """A denoiser that counts its evaluations and remembers its largest batch."""

    def __init__(self, denoiser: EDM | OptimalDenoiser) -> None:
        self.inner, self.one_pass = denoiser, denoiser.one_pass
        self.num_classes, self.shape = denoiser.num_classes, denoiser.shape
        self.reset()

    def reset(self) -> None:
        """Forget."""
        self.evaluations, self.largest = 0, 0
        self.with_grad = 0
        self.inputs: list[Tensor] = []

    def note(self, z: Tensor, count: int) -> None:
        """Count a batch."""
        self.evaluations += count
        self.with_grad += count * torch.is_grad_enabled()
        self.largest = max(self.largest, count)
        self.inputs.append(z.detach().clone())

    def __call__(self, z: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        self.note(z, len(z))
        return self.inner(z, sigma, label)

    def all_classes(self, z: Tensor, sigma: Tensor | float) -> Tensor:
        """As the inner denoiser."""
        self.note(z, len(z) * self.num_classes)
        return self.inner.all_classes(z, sigma)
