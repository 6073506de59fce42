r"""Train a denoiser from another one: many heads, distilled (Algorithm 2) or in the two ways that fail, or a smaller one.

==================  ==========================================================================================
``distil``          every head follows the teacher's answer for its class, on the images of all classes,
                    :math:`\sum_k \lambda \lVert D_\phi(z_\sigma, \sigma, k) - D_\theta(z_\sigma, \sigma, k) \rVert^2`
``denoise``         head k is trained on the images of class k alone, with the ordinary loss: nothing tells it what
                    to say of other classes (appendix B.1: "only 60 % accuracy")
``cross-entropy``   the logits of the diffusion classifier on a few levels are trained to classify (appendix B.1:
                    no robustness)
``pairs``           the heads follow the teacher's answers for the image's class and some others and, with weight ``gamma``,
                    their differences; so does a smaller denoiser with a single head, cut out of it (:mod:`rdc.train.shrink`)
==================  ==========================================================================================

The sum over heads is estimated without bias from ``subset`` heads, drawn anew for each image: a teacher evaluation costs as
much as a student's, and more images teach more than more heads on the same image. The unconditional head is one of the
heads. As printed, Algorithm 2 takes an optimiser step inside the loop over classes; its text, and we, take one for their sum.

What the heads share is nearly all of their loss, and what tells classes apart nearly nothing: at moderate noise the heads of
our teacher differ from its unconditional answer by a few thousandths of the target's variance. ``gamma`` raises the weight of an
image to ``gamma / v`` wherever that is above 1, with ``v`` the mean square of the teacher's own class differences on it;
``gamma = 0`` is Algorithm 2. For pairs see :func:`rdc.train.shrink.pair_loss`. In the *branch* form the trunk is the teacher
without label, and stays as it is.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Algorithm 2, appendix B.1
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["OBJECTIVES", "DistilConfig", "distil", "prepared"]

import copy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.data import Images, load
from rdc.denoise.base import compiled, fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.edm import EDM, coefficients
from rdc.denoise.multihead import Branched, MultiHead, build_multihead
from rdc.rng import rand, randint, randn
from rdc.schedule import levels
from rdc.train.denoiser import Loss, Run, TrainConfig, fit, sent, stratified_sigma
from rdc.train.shrink import pair_loss, shrink

#: What the heads can be trained for.
OBJECTIVES = ("distil", "denoise", "cross-entropy", "pairs")


@dataclass(frozen=True)
class DistilConfig:
    """Recipe of a multi-head network; it is stored with the weights."""

    train: TrainConfig = field(default_factory=TrainConfig)  # network (with heads), data, optimiser
    objective: str = "distil"  # one of OBJECTIVES
    teacher: str = ""  # for distil and pairs: a checkpoint's name or path
    subset: int = 3  # for distil and pairs: heads that an image teaches
    gamma: float = 0.0  # for distil: least size that the differences between classes have in the loss; for pairs: their weight
    levels: int = 4  # for cross-entropy: noise levels (ELBO weight) behind the logits
    start: str = ""  # for wide heads: a checkpoint with the same heads; or with one head, whose answer without a class each has


def distil(
    config: DistilConfig,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    save_seconds: float = 60.0,
    quiet: bool = False,
    teacher: EDM | None = None,
    compile: bool = False,
    minutes: float | None = None,
) -> Path:
    """Train a denoiser of the recipe's form and write its averaged weights to ``out``; killed, the same call continues.

    Arguments:
        config: The recipe.
        out: Path of the ``.safetensors`` file to write.
        device: Where to train.
        images: Training images; by default the train split of the recipe's data.
        save_seconds: Time between two saves of the state.
        quiet: Whether to hide the progress bar.
        teacher: The teacher itself, in place of the one that the recipe names.
        compile: Whether to compile the networks (:func:`rdc.denoise.compiled`).
        minutes: When to stop (:func:`rdc.train.loop.train_to`).

    Raises:
        ValueError: for an unknown objective, a subset that is no number of heads, or a teacher or a start that does not fit.
        CheckpointError: if the stored state belongs to another run, or the teacher cannot be read.
    """
    images = load(config.train.denoiser.data, "train") if images is None else images
    return fit(prepared(config, images, device, teacher, compile), out, images, save_seconds, quiet, compile, minutes)


def prepared(
    config: DistilConfig, images: Images, device: str | torch.device = "cpu", teacher: EDM | None = None, compile: bool = False
) -> Run:
    """The run of :func:`distil` before its first step; ``compile`` is for the teacher."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {config.objective!r}; there are {', '.join(OBJECTIVES)}")
    if config.objective in ("distil", "pairs") and teacher is None:
        loaded = load_denoiser(config.teacher, device)
        if not isinstance(loaded, EDM):
            raise ValueError(f"the teacher {config.teacher} must have a single head")
        teacher = loaded
    single = config.objective == "pairs" and not config.train.denoiser.multihead
    student = cut_out(config.train, images, teacher) if single else with_heads(config, device)
    sizes = [f"{d.num_classes} classes of {d.shape}" for d in (teacher or student, student)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the teacher has {sizes[0]}, the student {sizes[1]}")
    if config.objective == "pairs" and not 2 <= config.subset <= student.num_classes:
        raise ValueError(f"pairs need a subset of 2 to {student.num_classes} classes, got {config.subset}")
    if isinstance(student, MultiHead) and config.train.denoiser.branch is not None:
        borrow_trunk(student, teacher)
    if config.start:
        begin_as(student, load_denoiser(config.start, device), config.start)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(fast_dtype(device) if config.train.precision == "bf16" else None)
        teacher = compiled(teacher) if compile else teacher
    return Run(config.train, asdict(config), student, objective(config, teacher))


def with_heads(config: DistilConfig, device: str | torch.device) -> MultiHead:
    """The multi-head student in its first state."""
    student = build_multihead(config.train.denoiser, config.train.seed).to(device)
    heads = trained_heads(student)
    if not 1 <= config.subset <= heads:
        raise ValueError(f"subset must be between 1 and the {heads} heads, got {config.subset}")
    return student


def cut_out(config: TrainConfig, images: Images, teacher: EDM | None, count: int = 256) -> EDM:
    """The single-head student in its first state, fitted to the teacher on noisy images, half of them with a class at random."""
    if teacher is None:
        raise ValueError("objective 'pairs' needs a teacher")
    device, k = next(teacher.parameters()).device, teacher.num_classes
    index = randint(len(images), (count,), config.seed, "cut out")
    own = torch.arange(count, device="cpu") % 2 == 0
    label = torch.where(own, images.y[index], randint(k, (count,), config.seed, "classes of the cut"))
    z, sigma = to_model(images.x[index]), stratified_sigma(replace(config, batch=count), -1)
    z = z + sigma * randn(tuple(z.shape), config.seed, "noise of the cut", like=z)
    return shrink(teacher, config.denoiser, *(a.to(device) for a in (z, sigma.flatten(), label)))


def borrow_trunk(student: MultiHead, teacher: EDM | None) -> None:
    """Copy the teacher's network into the trunk, which then stays as it is."""
    if teacher is None or not isinstance(student.model, Branched) or teacher.config.unet != student.config.unet:
        raise ValueError("a branch needs a teacher whose network is the trunk: objective 'distil', and the same unet")
    student.model.trunk.load_state_dict(teacher.model.state_dict())
    student.model.trunk.requires_grad_(False)


def begin_as(student: EDM | MultiHead, start: EDM | MultiHead, name: str = "another denoiser") -> None:
    """Let a *wide* network begin with the weights of another one, or each head with a single-head one's answer without a class.

    In the latter case the last layer is repeated, and the noise embedding takes up what the class embedding adds without a class.
    """
    own, other = student.config, start.config
    alike = replace(other.unet, label_dim=0, heads=own.unet.heads) == own.unet and other.sigma_data == own.sigma_data
    if alike and isinstance(student, MultiHead) and own.unet == other.unet and own.branch == other.branch:
        student.model.load_state_dict(start.model.state_dict())
        return
    if not alike or not own.multihead or other.multihead or own.branch is not None or not start.unlabelled:
        raise ValueError(
            f"wide heads cannot start from {name}: it needs the same unet, with the same heads, or with one and an answer "
            "without a class"
        )
    tensors, heads = start.model.state_dict(), own.unet.heads
    for key, tensor in list(tensors.items()):
        if "aux_conv" in key:
            tensors[key] = tensor.repeat(heads, *[1] * (tensor.ndim - 1))
    if other.unet.label_dim:
        del tensors["map_label.weight"]
        tensors["map_layer0.bias"] = tensors["map_layer0.bias"] + tensors["map_layer0.weight"] @ tensors.pop("map_label.bias")
    student.model.load_state_dict(tensors)


def trained_heads(student: MultiHead) -> int:
    """Heads that have something to learn: K, and the unconditional one in the *wide* form."""
    return student.num_classes + (not isinstance(student.model, Branched))


def objective(config: DistilConfig, teacher: nn.Module | None) -> Loss:
    """The loss of a recipe."""
    if config.objective == "distil" and teacher is not None:
        return partial(distil_loss, teacher=teacher, subset=config.subset, seed=config.train.seed, gamma=config.gamma)
    if config.objective == "pairs" and teacher is not None:
        pairs = partial(pair_loss, subset=config.subset, logits=config.train.denoiser.multihead)
        return partial(pairs, teacher=teacher, seed=config.train.seed, weight=config.gamma)
    if config.objective == "denoise":
        return denoise_loss
    return partial(cross_entropy_loss, count=config.levels, seed=config.train.seed)


def distil_loss(
    student: MultiHead,
    z: Tensor,
    label: Tensor,
    sigma: Tensor,
    eps: Tensor,
    step: int,
    teacher: nn.Module,
    subset: int,
    seed: int,
    gamma: float,
) -> Tensor:
    r"""``w mean_k |F_k - target_k|^2 / D`` over ``subset`` random heads, ``(N,)``, with ``w = max(1, gamma / v)``.

    In the network's own units ``F = (D - c_skip z_sigma) / c_out`` the mean is
    :math:`\lambda(\sigma) \lVert D_\phi - D_\theta \rVert^2 / D`, and ``v = mean_k |target_k - target_{K+1}|^2 / D``. In the
    *wide* form the unconditional head is one of the heads; in the *branch* form it is exact and the subset is of the classes.
    """
    z_sigma = z + sigma * eps
    k, heads, shared = student.num_classes, trained_heads(student), isinstance(student.model, Branched)
    chosen = sent(rand((len(z), heads), seed, "heads", step).argsort(dim=1)[:, :subset], z.device)
    c_skip, c_out, c_in = coefficients(sigma, student.config.sigma_data)
    found = student.raw(c_in * z_sigma, sigma)
    with torch.no_grad():
        labels = chosen if shared else torch.cat([chosen, torch.full_like(chosen[:, :1], k)], dim=1)
        hidden, asked = torch.where(labels == k, -1, labels).flatten(), labels.shape[1]
        answer = teacher(z_sigma.repeat_interleave(asked, 0), sigma.flatten().repeat_interleave(asked), hidden)
        target = (answer.unflatten(0, (len(z), asked)) - (c_skip * z_sigma)[:, None]) / c_out[:, None]
        free = found[:, -1:] if shared else target[:, -1:]
        target = target[:, :subset]
        weight = (gamma / ((target - free).square().flatten(1).mean(dim=1) + 1e-4)).clamp(min=1)
    found = found[torch.arange(len(z), device=z.device)[:, None], chosen]
    return weight * (found - target).square().flatten(1).mean(dim=1)


def denoise_loss(student: MultiHead, z: Tensor, label: Tensor, sigma: Tensor, eps: Tensor, step: int) -> Tensor:
    """:func:`rdc.train.denoiser.edm_loss` for the head of the image's class, or the last one where the class is hidden."""
    z_sigma = z + sigma * eps
    c_skip, c_out, c_in = coefficients(sigma, student.config.sigma_data)
    target = (z - c_skip * z_sigma) / c_out
    heads = student.raw(c_in * z_sigma, sigma)
    return (heads[torch.arange(len(z), device=z.device), label % heads.shape[1]] - target).square().flatten(1).mean(dim=1)


def cross_entropy_loss(
    student: MultiHead, z: Tensor, label: Tensor, sigma: Tensor, eps: Tensor, step: int, count: int, seed: int
) -> Tensor:
    """Cross-entropy of the diffusion classifier's logits on ``count`` ELBO levels, ``(N,)``; an image without class counts 0."""
    chosen = levels("elbo", count, sigma_min=0.1)
    logits: Any = 0
    for t in range(count):
        level = chosen.sigma[t].to(z).expand(len(z))
        noise = randn(tuple(z.shape), seed, "cross-entropy", step, t, like=z)
        error = (student.all_classes(z + level[:, None, None, None] * noise, level) - z[:, None]).square().flatten(2).sum(dim=2)
        logits = logits - chosen.weight[t].to(z) * error
    return F.cross_entropy(logits, label.clamp(min=0), reduction="none") * (label >= 0)
