r"""Wide residual networks as a function of depth and width (Zagoruyko and Komodakis, 2016).

Pre-activation blocks ``x + conv(relu(norm(conv(relu(norm(x))))))``, three groups of :math:`(\text{depth} - 4) / 6` of them with
16, 32 and 64 times ``widen`` channels, the later two halving the image. GroupNorm stands where the paper has BatchNorm, so that
an answer never depends on the batch, in training as in use.

References:
    | Wide Residual Networks (Zagoruyko and Komodakis, 2016), table 1, https://arxiv.org/abs/1605.07146
    | Group Normalization (Wu and He, 2018), https://arxiv.org/abs/1803.08494
"""

__all__ = ["WideResNet"]

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.door import check_images

GROUPS = 8  # of GroupNorm


class Block(nn.Module):
    """Two convolutions with a bypass, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = (before, stride) == (after, 1)
        self.bypass = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d hh ww"]:
        """Return the sum of bypass and convolutions."""
        active = self.norm1(x).relu()
        found = self.conv2(self.norm2(self.conv1(active)).relu())
        return found + (x if self.bypass is None else self.bypass(active))


class WideResNet(nn.Module):
    """WRN-depth-widen; images in [0, 1] to logits ``(N, K)``.

    Arguments:
        shape: Shape ``(C, H, W)`` of an image.
        num_classes: Number of classes K.
        depth: Convolutions along the path, 10, 16, 22, ...
        widen: Factor of the channels.
        seed: Seed of the initial weights.

    Raises:
        ValueError: if there is no network of that depth.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, depth: int = 16, widen: int = 4, seed: int = 0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide residual network has a depth of 6 n + 4, got {depth}")
        self.shape, self.num_classes, self.depth, self.widen = shape, num_classes, depth, widen
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed)
            parts: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
            channels = 16
            for wide, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
                for block in range(blocks):
                    parts.append(Block(channels, wide, 1 if block else stride))
                    channels = wide
            self.body = nn.Sequential(*parts, nn.GroupNorm(GROUPS, channels), nn.ReLU())
            self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``."""
        check_images(x, self.shape)
        return self.head(self.body(x).mean(dim=(2, 3)))
