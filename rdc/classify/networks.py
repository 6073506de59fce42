"""A small convolutional network: the undefended reference of the book."""

__all__ = ["CNN"]

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
        h = x
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = F.relu(layer(h))
        return self.head(h.mean(dim=(2, 3)))
