"""What the package holds that fits audited images: other images of the same data, and a classifier made on the spot."""

__all__ = ["Surrogate", "bundled_surrogate", "other_images"]

import functools

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.data import Images, load
from rdc.rng import randn

EMBEDDED = ("digits", "fashion-mini")


@functools.cache
def _embedded(name: str, split: str) -> Images:
    return load(name, split)


def other_images(
    x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], count: int
) -> tuple[Float[Tensor, "m c h w"], Int64[Tensor, " m"]] | None:
    """The last ``count`` training images of the embedded data whose test images ``x`` are; None if it is no such data.

    A model that looks up the audited images, or all test images, does not know these.
    """
    for name in EMBEDDED:
        test = _embedded(name, "test")
        if test.x.shape[1:] != x.shape[1:]:
            continue
        distance = torch.cdist(x.detach().cpu().float().flatten(1), test.x.flatten(1))
        nearest = distance.argmin(dim=1)
        if bool((distance.amin(dim=1) < 1e-3).all()) and torch.equal(test.y[nearest], y.cpu()):
            train = _embedded(name, "train")
            return train.x[-count:].to(x), train.y[-count:].to(y)
    return None


class Surrogate(nn.Module):
    """Ridge regression on random features, ``W relu(A (x - 1/2) + b)``: trained in closed form.

    Arguments:
        x: Images.
        y: Labels.
        num_classes: Number of classes K.
        width: Number of features.
        seed: Seed of the features.
    """

    def __init__(
        self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], num_classes: int, width: int = 512, seed: int = 0
    ) -> None:
        super().__init__()
        pixels = x[0].numel()
        self.inner = randn((pixels, width), "surrogate", seed, 0, like=x) * (2 / pixels) ** 0.5
        self.bias = 0.5 * randn((width,), "surrogate", seed, 1, like=x)
        f = self._features(x).double()
        target = torch.nn.functional.one_hot(y, num_classes).to(f) - 1 / num_classes
        ridge = 1e-3 * len(f) * torch.eye(f.shape[1], dtype=f.dtype, device=f.device) * f.square().mean()
        self.outer = torch.linalg.solve(f.T @ f + ridge, f.T @ target).to(x)

    def _features(self, x: Tensor) -> Tensor:
        return ((x - 0.5).flatten(1) @ self.inner + self.bias).relu()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Regressed indicators of the classes."""
        return self._features(x) @ self.outer


def bundled_surrogate(x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], num_classes: int) -> Surrogate:
    """A :class:`Surrogate` of the embedded training images if their shape fits, otherwise of the audited images themselves."""
    for name in EMBEDDED:
        train = _embedded(name, "train")
        if train.x.shape[1:] == x.shape[1:] and len(train.classes) == num_classes:
            return Surrogate(train.x[:2000].to(x), train.y[:2000].to(y), num_classes)
    return Surrogate(x, y, num_classes)
