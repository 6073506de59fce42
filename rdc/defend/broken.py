r"""A zoo of planted defences: each looks robust to some attack, and none is.

Each wraps a classifier ``model`` (images in [0, 1] to logits), keeps nearly its clean accuracy and its adversarial examples,
and hides them by one known mistake. The docstrings say what is broken and how to break it. Use them to test an attack or an
audit: a tool that calls one of them robust is wrong.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
    | On Adaptive Attacks to Adversarial Example Defenses (Tramer et al., 2020), https://arxiv.org/abs/2002.08347
"""

__all__ = [
    "BatchLeak",
    "DetachedPreprocessing",
    "QuantisedInput",
    "RandomInput",
    "ReseededNoise",
    "SaturatedSoftmax",
    "ShatteredGradient",
    "TinyLogits",
    "broken_defences",
]

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.rng import generator


class TinyLogits(nn.Module):
    """``factor * f(x)``: the same decisions, on another scale.

    Broken: nothing changed. Cross-entropy is ``log K`` up to rounding, so that an attack that keeps its best iterate by this
    loss keeps its first one; an attack that adds a penalty in absolute units to the loss (as StAdv does) sees only the penalty.

    Attack: a loss free of scale (the margin with sign steps, DLR), or the logits divided by ``factor``.
    """

    def __init__(self, model: nn.Module, factor: float = 1e-8) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Small logits."""
        return self.factor * self.model(x)


class SaturatedSoftmax(nn.Module):
    """``softmax(factor * f(x))``: probabilities that are exactly 0 and 1 in float32.

    Broken: where the softmax saturates its derivative is exactly zero, and with it the gradient of every loss of the output.
    Even ``log`` does not bring it back: zero has underflowed.

    Attack: the logits ``self.model``, which have the same largest entry.
    """

    def __init__(self, model: nn.Module, factor: float = 1e3) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Probabilities."""
        return (self.factor * self.model(x)).softmax(dim=1)


class QuantisedInput(nn.Module):
    """``f(round((L - 1) x) / (L - 1))``: images of L grey levels.

    Broken: the derivative of rounding is zero almost everywhere, so gradient attacks stay where they start.

    Attack: BPDA, with the identity in place of rounding in the backward pass; or any attack without gradients.
    """

    def __init__(self, model: nn.Module, levels: int = 32) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def process(self, x: Tensor) -> Tensor:
        """Rounded images."""
        return (x * (self.levels - 1)).round() / (self.levels - 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of rounded images."""
        return self.model(self.process(x))


class ShatteredGradient(nn.Module):
    r"""``f((1 - 2a) x + a + a sin(w x + phase))``, a phase for each pixel, with a small and ``a w`` large.

    Broken: the image moves by at most 2a, but the derivative ``1 - 2a + a w cos(w x + phase)`` is large and of either sign, and
    changes within ``1 / w``: the gradient exists, is finite, and points nowhere.

    Attack: BPDA, with the identity in place of the wave; or any attack without gradients.
    """

    def __init__(self, model: nn.Module, amplitude: float = 0.004, frequency: float = 1e4, seed: int = 0) -> None:
        super().__init__()
        self.model, self.amplitude, self.frequency, self.seed = model, amplitude, frequency, seed

    def process(self, x: Tensor) -> Tensor:
        """Images with a fine wave on their grey values."""
        a = self.amplitude
        phase = (
            2
            * torch.pi
            * torch.rand(x.shape[1:], generator=generator(self.seed, "phase"), dtype=torch.float32, device="cpu").to(x)
        )
        return ((1 - 2 * a) * x + a + a * (self.frequency * x + phase).sin()).clamp(0, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images with the wave."""
        return self.model(self.process(x))


class DetachedPreprocessing(nn.Module):
    """``f(blur(x))`` with the blur outside autograd, as if by an image library.

    Broken: no gradient reaches the image. An attack that takes a missing gradient for zero reports its random start.

    Attack: BPDA with the identity, or with the blur itself: it is differentiable.
    """

    def __init__(self, model: nn.Module, weight: float = 0.2) -> None:
        super().__init__()
        self.model, self.weight = model, weight

    def process(self, x: Tensor) -> Tensor:
        """Each pixel mixed with the mean of its 3x3 neighbourhood; differentiable when called by itself."""
        neighbours = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return ((1 - self.weight) * x + self.weight * neighbours).clamp(0, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of blurred images, without a gradient."""
        with torch.no_grad():
            blurred = self.process(x)
        return self.model(blurred)


def jitter(x: Tensor, shift: float, scale: float, noise: float) -> Tensor:
    """Images shifted, resized and noisy at random, by numbers of the global generator; differentiable.

    Arguments:
        x: Images ``(N, C, H, W)``.
        shift: Largest shift, as a fraction of the side.
        scale: Largest relative change of size.
        noise: Standard deviation of the noise, image units.
    """
    draw = 2 * torch.rand(len(x), 3, device=x.device, dtype=x.dtype) - 1
    size, zero = 1 + scale * draw[:, 0], torch.zeros_like(draw[:, 0])
    rows = [torch.stack([size, zero, 2 * shift * draw[:, 1]], 1), torch.stack([zero, size, 2 * shift * draw[:, 2]], 1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    return (moved + noise * torch.randn_like(x)).clamp(0, 1)


class RandomInput(nn.Module):
    """``f`` of a randomly shifted, resized and noisy image, new at every call.

    Broken: one call gives the gradient at one random image; an attack that follows it, and believes one verdict, climbs noise.

    Attack: expectation over transformation (average the gradient over many calls), and a verdict over many calls.
    """

    def __init__(self, model: nn.Module, shift: float = 0.05, scale: float = 0.05, noise: float = 0.02) -> None:
        super().__init__()
        self.model, self.shift, self.scale, self.noise = model, shift, scale, noise

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of one random version of each image."""
        return self.model(jitter(x, self.shift, self.scale, self.noise))


class ReseededNoise(nn.Module):
    """As :class:`RandomInput`, but each call first restarts the global generator at the seed that it was last given.

    Broken: two calls agree, so that the model passes for deterministic. A tool that seeds the global generator (AutoAttack
    does) sees one fixed noise and fits it; the judge, after another seed, sees another one. And every program that uses the
    global generator now draws the same numbers again and again.

    Attack: draw the noise in the attack, EOT over many seeds, and judge on others.
    """

    def __init__(self, model: nn.Module, shift: float = 0.05, scale: float = 0.05, noise: float = 0.02) -> None:
        super().__init__()
        self.model, self.shift, self.scale, self.noise = model, shift, scale, noise

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the random version of each image that belongs to the global seed."""
        torch.manual_seed(torch.initial_seed())
        return self.model(jitter(x, self.shift, self.scale, self.noise))


class BatchLeak(nn.Module):
    """``f(x) - strength * mean of f over the batch``: the answer about an image depends on the other images.

    Broken: it is no function of the image. The gradient of one image's loss reaches all the others, and an adversarial image
    found in one batch is judged in another.

    Attack: each image alone (batches of one), judged in the batches that the defence will see.
    """

    def __init__(self, model: nn.Module, strength: float = 0.5) -> None:
        super().__init__()
        self.model, self.strength = model, strength

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, centred by the batch."""
        logits = self.model(x)
        return logits - self.strength * logits.mean(dim=0, keepdim=True)


def broken_defences(model: nn.Module, seed: int = 0) -> dict[str, nn.Module]:
    """Every planted defence around ``model``, by name.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        seed: Owner of the random constants of a defence; what is random at call time comes from the global generator.
    """
    return {
        "tiny-logits": TinyLogits(model),
        "saturated-softmax": SaturatedSoftmax(model),
        "quantised-input": QuantisedInput(model),
        "shattered-gradient": ShatteredGradient(model, seed=seed),
        "detached-preprocessing": DetachedPreprocessing(model),
        "random-input": RandomInput(model),
        "reseeded-noise": ReseededNoise(model),
        "batch-leak": BatchLeak(model),
    }
