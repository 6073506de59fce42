"""Train the reference networks of the book: cross-entropy and Adam for a fixed number of epochs, no augmentation.

With an attack each step trains on the adversarial images of its batch (Madry et al., 2018, https://arxiv.org/abs/1706.06083),
with noise on noisy images, the base classifiers of randomized smoothing (Cohen et al., 2019, https://arxiv.org/abs/1902.02918).

Batches come from generators keyed by ``(seed, epoch)``, noise from those keyed by ``(seed, step)``, so that two runs end with
the same bits on the same machine.
"""

__all__ = ["reference_cnn", "train_classifier"]

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rdc.classify.networks import CNN
from rdc.data import Images
from rdc.denoise.checkpoints import CheckpointError, filled, read_checkpoint, write_checkpoint
from rdc.rng import randn
from rdc.train.denoiser import batch_indices, placed, sent


def train_classifier(
    images: Images,
    epochs: int = 10,
    batch: int = 128,
    lr: float = 3e-3,
    width: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = True,
    attack: Callable[..., Tensor] | None = None,
    noise: float = 0.0,
) -> CNN:
    """Train a :class:`rdc.classify.CNN` from scratch; returns it in evaluation mode, its parameters frozen.

    The learning rate falls linearly to zero. The global random state is neither read nor changed.

    Arguments:
        images: Training images and labels.
        epochs: Passes over the data; the last incomplete batch of the run is left out.
        batch: Images a step.
        lr: First learning rate of Adam.
        width: Channels of the network's first layer.
        seed: Owner of the initial weights and of the order of the images.
        device: Where to train.
        quiet: Whether to hide the progress bar.
        attack: For adversarial training, ``attack(model, x, y, seed=step) -> x_adv``, for instance a ``partial`` of
            :func:`rdc.attack.pgd`.
        noise: Standard deviation of Gaussian noise, image units, new in every step; noisy images are not clipped. Classify
            such images with :meth:`rdc.classify.CNN.layers`.

    Raises:
        ValueError: if there is not one batch, or for noise that is negative or comes with an attack.
    """
    if noise < 0 or (noise and attack is not None):
        raise ValueError(f"noise must not be negative and comes without an attack, got {noise}")
    channels, high, wide = images.x.shape[1:]
    model = CNN((channels, high, wide), len(images.classes), width, seed).to(device)
    images, steps = placed(images, torch.device(device)), epochs * len(images) // batch
    if steps < 1:
        raise ValueError(
            f"{epochs} epochs of {len(images)} images do not fill one batch of {batch}; take more epochs or a smaller batch"
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in tqdm(range(steps), disable=quiet, desc="train classifier", unit="step"):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        index = sent(batch_indices(len(images), batch, step, seed), images.x.device)
        x, y = images.x[index], images.y[index]
        x = x if attack is None else attack(model, x, y, seed=step)
        if noise:
            x = x + noise * randn(tuple(x.shape), seed, "noisy images", step, like=x)
        loss = F.cross_entropy(model.layers(x) if noise else model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def reference_cnn(
    path: str | Path,
    images: Images,
    name: str,
    noise: float = 0.0,
    epochs: int = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> CNN:
    """The book's network, trained with noise or without: read from ``path``, or trained now and written there.

    Arguments:
        path: A ``.safetensors`` file.
        images: Training images.
        name: Name of the data set, which the file must agree with.
        noise: Noise added in training, image units.
        epochs: Passes over the data.
        seed: Owner of weights, order and noise.
        device: Where the network shall live.
        quiet: Whether to hide the progress bar.

    Raises:
        CheckpointError: if the file is damaged, of a network trained in another way, or of other shapes, or if a weight is NaN
            or infinite.
    """
    path = Path(path)
    config = {"data": name, "images": len(images), "noise": noise, "epochs": epochs, "seed": seed}
    if not path.exists():
        trained = train_classifier(images, epochs, seed=seed, device=device, quiet=quiet, noise=noise)
        write_checkpoint(path, trained.state_dict(), kind="classifier", config=config)
        return trained
    tensors, meta = read_checkpoint(path, "classifier")
    if meta["config"] != config:
        raise CheckpointError(f"{path} is a network of {meta['config']}, not of {config}; give another name, or remove it")
    channels, high, wide = images.x.shape[1:]
    model = filled(lambda: CNN((channels, high, wide), len(images.classes)), tensors, path, part="")
    return model.to(device).eval().requires_grad_(False)
