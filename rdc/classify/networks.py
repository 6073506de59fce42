"""Undefended networks: the small one of the book, and a published one for CIFAR-10 that is installed with AutoAttack."""

__all__ = ["CNN", "cifar10_resnet18"]

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.data import check_images


class CNN(nn.Module):
    """Four 3x3 convolutions (two of stride 2), mean over pixels, one linear layer; images in [0, 1] to logits ``(N, K)``.

    Arguments:
        shape: Shape ``(C, H, W)`` of an image.
        num_classes: Number of classes K.
        width: Channels of the first layer.
        seed: Owner of the initial weights.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.num_classes = shape, num_classes
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed)
            self.conv1 = nn.Conv2d(shape[0], width, 3, padding=1)
            self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
            self.conv4 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
            self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``."""
        check_images(x, self.shape)
        return self.layers(x)

    def layers(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)`` of images that may leave [0, 1], as noisy ones do."""
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        return self.head(x.mean(dim=(2, 3)))


def cifar10_resnet18() -> nn.Module:
    """The ResNet-18 for CIFAR-10 that AutoAttack's example attacks, in evaluation mode, parameters frozen.

    Images ``(N, 3, 32, 32)`` in [0, 1], not normalised further, to logits ``(N, 10)``. Network and weights are those of the
    installed package ``pyautoattack``; the weights are read without unpickling any code.

    Raises:
        ValueError: if the package or its example is not there, or the weights do not fit.
    """
    remedy = "run 'pip install pyautoattack==0.2.0'"
    try:
        from pyautoattack.examples import resnet
    except ImportError as error:
        raise ValueError(f"no CIFAR-10 network: the package pyautoattack or its example is not installed; {remedy}") from error
    path = Path(resnet.__file__).with_name("model_test.pt")
    model = resnet.ResNet18()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no CIFAR-10 network: {path} is missing or not what it should be ({reason}); {remedy}") from error
    return model.eval().requires_grad_(False)
