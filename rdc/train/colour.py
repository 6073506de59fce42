r"""The recipes of the reference networks of CIFAR-10, and a run that leaves a device no time to wait.

``rdc train classifier --recipe at-linf --data cifar10 --device cuda`` takes minutes on a GPU; killed, it continues where it
stopped. The images lie on the device. A step crops and mirrors its batch (He et al., 2016, sec. 4.2), moves it against the
network (Madry et al., 2018), and descends by AdamW; what is kept is a moving average of the weights, in float16. No step waits
for a value.

Images are padded by reflection: a window begins at a row and a column in -4...4, and an index i beyond 0 or 31 is read as
:math:`31 - |31 - |i||`. The attack of a batch takes a few steps of one size from a random start. Unlike that of
:func:`rdc.attack.pgd` it moves misclassified images, too, and keeps the last point.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
    | Deep Residual Learning for Image Recognition (He et al., 2016), https://arxiv.org/abs/1512.03385
"""

__all__ = ["COLOUR", "Ascent", "ColourRecipe", "ColourRun", "adversarial", "cropped", "train_colour"]

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rdc.attack.ascent import ball_step
from rdc.attack.norms import ascend, project
from rdc.classify.reference import NetworkConfig, build_network, save_reference
from rdc.classify.wide_resnet import WideResNet
from rdc.data import Images, load
from rdc.door import unchecked
from rdc.quantities import number
from rdc.rng import generator, rand, randint
from rdc.runs.record import environment
from rdc.train.denoiser import batch_indices, placed, schedule, sent
from rdc.train.loop import begin, state_path, train_to

PAD = 4  # pixels by which a window may leave the image
SOURCE = "CIFAR-10, Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Ascent:
    """The attack of adversarial training."""

    norm: str = "Linf"  # Linf or L2
    eps: str = "8/255"  # radius, image units
    size: str = "4/255"  # of a step
    steps: int = 3


@dataclass(frozen=True)
class ColourRecipe:
    """Everything that decides the weights, up to rounding and the images; it is stored with them."""

    epochs: int  # passes over the images
    width: int = 2  # factor of the channels of the wide residual network
    depth: int = 16
    data: str = "cifar10"  # data set; by default its train split is used, all of it
    batch: int = 512  # images a step
    lr: float = 2e-3  # largest learning rate of AdamW: a linear warm-up, then a cosine down to zero
    warmup: float = 0.1  # share of the steps
    decay: float = 0.05  # of the weights, by AdamW
    average: float = 0.995  # decay of the moving average
    precision: str = "bf16"  # fp32 or bf16 (mixed, master weights in fp32), also in the attack
    seed: int = 0
    attack: Ascent | None = None  # none: clean images


#: By kind. Nothing was tried, nothing was chosen on test images; epochs are what a few minutes of a GPU allow.
COLOUR = {
    "cnn": ColourRecipe(25),
    "at-linf": ColourRecipe(16, width=4, attack=Ascent()),
    "at-l2": ColourRecipe(10, attack=Ascent("L2", "0.5", "0.25")),
}


def cropped(
    x: Float[Tensor, "m c h w"],
    index: Int64[Tensor, " n"],
    corner: Int64[Tensor, "n 2"],
    mirrored: Bool[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """Return windows, of the size of an image, of images padded by reflection, some mirrored; channels lie last in memory.

    Arguments:
        x: All images.
        index: Which are taken.
        corner: Row and column where a window begins, in -(h-1)...h-1 and -(w-1)...w-1.
        mirrored: Which windows are mirrored, left and right.
    """
    (high, wide), device = x.shape[2:], x.device
    rows = corner[:, :1] + torch.arange(high, device=device)
    columns = corner[:, 1:] + torch.arange(wide, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = (side - 1 - (side - 1 - at.abs()).abs() for side, at in ((high, rows), (wide, columns)))
    return x[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def adversarial(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], attack: Ascent, *key: int | str
) -> Float[Tensor, "n c h w"]:
    """Return points of the ball, and of [0, 1], where the cross-entropy is large: a random start, then steps of steepest ascent.

    The start is uniform in the cube for Linf; for L2 it has a random direction and a radius uniform in [0, eps].

    Arguments:
        model: Images to logits.
        x: Centres, in [0, 1].
        y: Labels.
        attack: The attack.
        key: Stream of the start (:mod:`rdc.rng`).
    """
    radius, size = number(attack.eps, "eps"), number(attack.size, "size")
    step, start = ball_step(x, attack.norm, radius), noise(x, *key)
    if attack.norm != "Linf":
        start = ascend(start, attack.norm) * sent(rand((len(x), 1, 1, 1), *key, "radius"), x.device)
    point = project(x + radius * start, x, attack.norm, radius)
    for _ in range(attack.steps):
        at = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        point = step(point, slope, size)
    return point.detach()


def noise(x: Float[Tensor, "n c h w"], *key: int | str) -> Float[Tensor, "n c h w"]:
    """Return numbers uniform over 256 values in (-1, 1), like ``x``; eight of them are one draw, because the CPU draws them."""
    draws = -(-x.numel() // 8)
    words = torch.randint(-(2**63), 2**63 - 1, (draws,), generator=generator(*key), dtype=torch.int64, device="cpu")
    return (sent(words.view(torch.uint8)[: x.numel()], x.device).to(x.dtype).reshape(x.shape) - 127.5) / 128


class ColourRun:
    """A training run: its recipe, its network, and its :class:`rdc.train.loop.State`.

    Arguments:
        recipe: The recipe.
        images: Training images, on the device.
        compile: Whether to compile the network, which changes its answers by rounding.

    Raises:
        ValueError: if the images do not fill one batch, or there is no network of that size.
    """

    def __init__(self, recipe: ColourRecipe, images: Images, compile: bool = False) -> None:
        self.recipe, self.images, self.steps = recipe, images, recipe.epochs * len(images) // recipe.batch
        if self.steps < 1:
            raise ValueError(f"{recipe.epochs} epochs of {len(images)} images do not fill one batch of {recipe.batch}")
        channels, side, _ = images.x.shape[1:]
        network = build_network(NetworkConfig(channels, side, len(images.classes), recipe.depth, recipe.width), recipe.seed)
        assert isinstance(network, WideResNet)
        network.to(images.x.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            network.body.compile()
        self.network = network
        adam = partial(torch.optim.AdamW, lr=recipe.lr, weight_decay=recipe.decay)
        self.state = begin(network, {**asdict(recipe), "images": len(images)}, adam)

    def advance(self) -> Tensor:
        """Take one step; returns the loss of its batch, where it is."""
        r, step, images, place = self.recipe, self.state.step, self.images, self.images.x.device
        index = sent(batch_indices(len(images), r.batch, step, r.seed), place)
        corner = sent(randint(2 * PAD + 1, (r.batch, 2), r.seed, "crop", step) - PAD, place)
        mirrored = sent(rand((r.batch,), r.seed, "flip", step) < 0.5, place)
        x, y = cropped(images.x, index, corner, mirrored), images.y[index]
        with unchecked(), torch.autocast(place.type, dtype=torch.bfloat16, enabled=r.precision == "bf16"):
            if r.attack is not None:
                x = adversarial(self.network, x, y, r.attack, r.seed, "start", step)
            loss = F.cross_entropy(self.network(x), y)
        rate = r.lr * schedule(step, self.steps, math.ceil(r.warmup * self.steps))
        return self.state.descend(loss, rate, r.average)


def train_colour(
    recipe: ColourRecipe,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    quiet: bool = False,
    compile: bool = False,
    minutes: float | None = None,
    save_seconds: float = 60.0,
    source: str = SOURCE,
    **info: Any,
) -> Path:
    """Train a network by a recipe and write its averaged weights in float16, with recipe, time, versions, commit and source.

    The state of the run lies beside it as ``<out>.state`` until the run is done; the same call continues from there.

    Arguments:
        recipe: What decides the weights.
        out: Path of the ``.safetensors`` file to write.
        device: Where to train.
        images: Training images; by default the train split of ``recipe.data``.
        quiet: Whether to hide the progress bar.
        compile: Whether to compile the network.
        minutes: When to stop (:func:`rdc.train.loop.train_to`) and write what there is.
        save_seconds: Time between two saves of the state.
        source: What the header, and the card, say of the images.
        info: What else the header shall say, JSON.

    Raises:
        ValueError: if the images do not fill one batch, or there is no network of that size.
        CheckpointError: if ``<out>.state`` belongs to a run with another recipe.
    """
    images = load(recipe.data, "train") if images is None else images
    run = ColourRun(recipe, placed(images, torch.device(device)), compile)
    done = train_to(run.steps, run.state, run.advance, out, save_seconds, quiet, minutes=minutes)
    run.network.load_state_dict(run.state.average)
    info |= {"recipe": asdict(recipe), "images": len(images), "seconds": round(run.state.seconds, 1), "losses": run.state.losses}
    info |= {"environment": environment(), "licence": "MIT", "source": source} | ({} if done else {"stopped": run.state.step})
    save_reference(out, run.network, recipe.data, half=True, **info)
    if done:
        state_path(out).unlink(missing_ok=True)
    return out
