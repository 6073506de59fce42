r"""A small denoiser out of a large one: fewer blocks, narrower ones, fitted in closed form, then distilled.

A block of the student stands for one or more consecutive blocks of the teacher. It takes over the first layers of the first of
them, of which it keeps the ``inner`` channels that explain most, and its last convolution is the least-squares solution of

.. math:: \min_W \sum_{i, p} \lVert W\, \phi_p(x_i) - t_p(x_i) \rVert^2,

with :math:`\phi` what the student's own layers make of noisy images and :math:`t` the output of the last of the teacher's blocks.
Each block sees what those before it really give. The channels are chosen one by one, the next the one whose nine taps take away
most of what remains of the teacher's convolution (orthogonal matching pursuit).

What classes change in a denoiser's answer is a few thousandths of it, and no least-squares fit keeps it. :func:`pair_loss`, on
two classes of the same noisy image, or more, brings it back: the difference of two answers has a term of its own.

References:
    | ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (Luo et al., 2017), https://arxiv.org/abs/1707.06342
    | Structural Pruning for Diffusion Models (Fang et al., 2023), https://arxiv.org/abs/2305.10924
"""

__all__ = ["pair_loss", "shrink"]

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rdc.denoise.edm import EDM, EDMConfig, build, coefficients, one_hot
from rdc.denoise.unet import Block, UNet
from rdc.rng import rand
from rdc.train.denoiser import sent

RIDGE, CHUNK = 1e-4, 32
TAPS = 9  # of a convolution
#: By name of a block of the student: names of the first and the last block of the teacher for which it stands.
Pairs = dict[str, tuple[str, str]]


@torch.no_grad()
def shrink(
    teacher: EDM, config: EDMConfig, z_sigma: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"], label: Int64[Tensor, " n"]
) -> EDM:
    """Return a denoiser of shape ``config`` that does what the teacher does on some noisy images, as well as it can.

    Arguments:
        teacher: A denoiser whose network differs from the wanted one in ``num_blocks`` and ``inner`` at most.
        config: The wanted shape.
        z_sigma: Noisy images, some hundreds.
        sigma: Their noise levels.
        label: Their classes.

    Raises:
        ValueError: if the shapes differ in more, or the student is larger than the teacher.
    """
    student = build(config)
    old, new = teacher.model, student.model
    assert isinstance(old, UNet) and isinstance(new, UNet)
    pairs, levels = paired(old, new), sigma[:, None, None, None]
    x = coefficients(levels, teacher.sigma_data)[2] * z_sigma
    seen, handles = watch(old, pairs)
    pieces = [slice(i, i + CHUNK) for i in range(0, len(x), CHUNK)]
    target = torch.cat([teacher.raw(x[i], levels[i], label[i]) for i in pieces])
    for handle in handles:
        handle.remove()
    for name, module in new.named_children():
        if name.startswith("map_"):
            module.load_state_dict(old.get_submodule(name).state_dict())
    e = new.embed(sigma.log() / 4, one_hot(label, config.unet.label_dim), x.dtype)
    last = replay(old, new, x, e, pairs, {name: torch.cat(values) for name, values in seen.items()})
    target = F.pixel_unshuffle(target, config.unet.patch) if config.unet.patch > 1 else target
    fill(new.dec[f"{new.grid}x{new.grid}_aux_conv"], least_squares([(last, 3)], target))
    return student


def paired(old: UNet, new: UNet) -> Pairs:
    """Which blocks of the teacher each block of the student stands for: equal shares, the decoder's last for its last."""
    b, before = new.config.num_blocks, old.config.num_blocks
    found: Pairs = {}
    for name, module in new.named_modules():
        if isinstance(module, Block):
            stem, _, i = name.rpartition("_block")
            k = int(i) if stem else 0
            ends = (before, before) if k == b else (k * before // b, (k + 1) * before // b - 1)
            found[name] = (f"{stem}_block{ends[0]}", f"{stem}_block{ends[1]}") if stem else (name, name)
    blocks = dict(old.named_modules())
    fits = b <= before and old.config.patch == new.config.patch
    for name, (first, last) in found.items():
        fits = fits and first in blocks and last in blocks and fits_in(new.get_submodule(name), blocks[first], blocks[last])
    if not fits:
        raise ValueError("teacher and student may differ in num_blocks and inner alone, and the student must be the smaller one")
    return found


def fits_in(new: nn.Module, first: nn.Module, last: nn.Module) -> bool:
    """Whether a block can stand for those from ``first`` to ``last``."""
    assert isinstance(new, Block) and isinstance(first, Block) and isinstance(last, Block)
    ends = [(block.conv0.in_channels, block.conv1.out_channels) for block in (new, first)]
    return ends[0] == ends[1] and new.conv0.out_channels <= first.conv0.out_channels and new.attention == last.attention


def watch(old: UNet, pairs: Pairs) -> tuple[dict[str, list[Tensor]], list[RemovableHandle]]:
    """Have the teacher keep, from now on, what the student needs of it.

    Kept are, for the first block of a pair, input ``:before`` and output ``:normed`` of its second normalisation and the output
    ``:added`` of its last convolution, and for the last one its output before attention, ``:output``.
    """
    seen: dict[str, list[Tensor]] = {}
    handles = []

    def keep(module: nn.Module, name: str, of_input: bool = False) -> None:
        def hook(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            seen.setdefault(name, []).append(given[0] if of_input else result)

        handles.append(module.register_forward_hook(hook))

    for first, last in pairs.values():
        a, b = old.get_submodule(first), old.get_submodule(last)
        assert isinstance(a, Block) and isinstance(b, Block)
        keep(a.norm1, f"{first}:before", of_input=True)
        keep(a.norm1, f"{first}:normed")
        keep(a.conv1, f"{first}:added")
        keep(b.norm2 if b.attention else b, f"{last}:output", of_input=b.attention)
    return seen, handles


def replay(old: UNet, new: UNet, x: Tensor, e: Tensor, pairs: Pairs, seen: dict[str, Tensor]) -> Tensor:
    """Fit the student's blocks one after the other, on what those before them give; return what its last layer reads."""
    x, skips = F.pixel_unshuffle(x, new.config.patch) if new.config.patch > 1 else x, list[Tensor]()
    for name, layer in new.enc.items():
        if isinstance(layer, Block):
            x = fit_block(old, layer, x, e, pairs[f"enc.{name}"], seen)
        else:
            layer.load_state_dict(old.enc[name].state_dict())
            x = layer(x)
        skips.append(x)
    for name, layer in new.dec.items():
        if isinstance(layer, Block):
            x = torch.cat([x, skips.pop()], dim=1) if "block" in name else x
            x = fit_block(old, layer, x, e, pairs[f"dec.{name}"], seen)
    norm = f"{new.grid}x{new.grid}_aux_norm"
    new.dec[norm].load_state_dict(old.dec[norm].state_dict())
    return F.silu(new.dec[norm](x))


def fit_block(old: UNet, new: Block, x: Tensor, e: Tensor, pair: tuple[str, str], seen: dict[str, Tensor]) -> Tensor:
    """Fill a block of the student; return its output."""
    first, last = old.get_submodule(pair[0]), old.get_submodule(pair[1])
    assert isinstance(first, Block) and isinstance(last, Block)
    goal = seen[f"{pair[1]}:output"] * math.sqrt(2)
    normed = seen[f"{pair[0]}:normed"]
    kept = choose(F.silu(normed), seen[f"{pair[0]}:added"] if pair[0] == pair[1] else goal, new.conv0.out_channels)
    take_over(first, new, kept, seen[f"{pair[0]}:before"])
    h = new.conv0(new._resample(F.silu(new.norm0(x)))) + new.affine(e)[:, :, None, None]
    rescale(new.norm1, h, normed[:, kept])
    act, x = F.silu(new.norm1(h)), new._resample(x)
    weight = least_squares([(act, 3)], goal - x) if new.skip is None else least_squares([(act, 3), (x, 1)], goal)
    fill(new.conv1, weight, new.skip)
    x = ((x if new.skip is None else new.skip(x)) + new.conv1(act)) * math.sqrt(0.5)
    if not new.attention:
        return x
    for name in ("norm2", "qkv", "proj"):
        new.get_submodule(name).load_state_dict(last.get_submodule(name).state_dict())
    return (x + new._attend(new.norm2(x))) * math.sqrt(0.5)


def take_over(first: Block, new: Block, kept: list[int], before: Tensor) -> None:
    """Copy the first layers, with the channels ``kept``, each on the scale that its group of the teacher's normalisation has."""
    new.norm0.load_state_dict(first.norm0.state_dict())
    groups = before.reshape(len(before), first.norm1.num_groups, -1)
    group = torch.tensor(kept, dtype=torch.int64, device=before.device) // (before.shape[1] // first.norm1.num_groups)
    centre, scale = groups.mean(dim=(0, 2))[group], groups.std(dim=2).mean(dim=0)[group]
    assert first.conv0.bias is not None
    weight, bias = first.conv0.weight[kept] / scale[:, None, None, None], (first.conv0.bias[kept] - centre) / scale
    new.conv0.load_state_dict({"weight": weight, "bias": bias})
    new.affine.load_state_dict({"weight": first.affine.weight[kept] / scale[:, None], "bias": first.affine.bias[kept] / scale})


def rescale(norm: nn.GroupNorm, x: Tensor, goal: Tensor) -> None:
    """Scale and shift of a normalisation such that its output on ``x`` comes closest to ``goal``, channel by channel."""
    norm.weight.fill_(1)
    norm.bias.zero_()
    given = norm(x)
    a, b = (v.mean(dim=(0, 2, 3), keepdim=True) for v in (given, goal))
    slope = ((given - a) * (goal - b)).mean(dim=(0, 2, 3)) / (given - a).square().mean(dim=(0, 2, 3))
    norm.weight.copy_(slope)
    norm.bias.copy_(b.flatten() - slope * a.flatten())


def choose(x: Tensor, goal: Tensor, count: int) -> list[int]:
    """The ``count`` channels of ``x`` whose convolution explains most of ``goal``, one after the other; sorted."""
    gram, cross = equations([(x, 3)], goal)
    one = gram[:-1, -1:] / gram[-1, -1]
    gram, cross = gram[:-1, :-1] - one @ gram[-1:, :-1], cross[:-1] - one @ cross[-1:]
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    blocks, chosen = [slice(TAPS * c, TAPS * (c + 1)) for c in range(x.shape[1])], list[int]()
    for _ in range(count):
        own = torch.stack([gram[b, b] for b in blocks]) + 1e-12 * gram.diagonal().amax() * torch.eye(
            TAPS, dtype=gram.dtype, device=gram.device
        )
        given = cross.unflatten(0, (-1, TAPS))
        gain = (given * torch.linalg.solve(own, given)).sum(dim=(1, 2))
        gain[chosen] = -math.inf
        chosen.append(int(gain.argmax()))
        b = blocks[chosen[-1]]
        column = gram[:, b].clone()
        explained = torch.linalg.solve(own[chosen[-1]], torch.cat([gram[b], cross[b]], dim=1))
        gram, cross = gram - column @ explained[:, : len(gram)], cross - column @ explained[:, len(gram) :]
    return sorted(chosen)


def equations(parts: list[tuple[Tensor, int]], goal: Tensor) -> tuple[Float64[Tensor, "p p"], Float64[Tensor, "p o"]]:
    """Normal equations of ``goal`` ``(N, O, H, W)`` as convolutions of ``parts`` (input, kernel size), summed, and a constant."""
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for i in range(0, len(goal), CHUNK):
        columns = [F.unfold(x[i : i + CHUNK], k, padding=k // 2).transpose(1, 2).flatten(0, 1) for x, k in parts]
        rows = torch.cat([*columns, torch.ones_like(columns[0][:, :1])], dim=1)
        aim = goal[i : i + CHUNK].flatten(2).transpose(1, 2).flatten(0, 1)
        gram, cross = gram + (rows.T @ rows).double(), cross + (rows.T @ aim).double()
    assert isinstance(gram, Tensor) and isinstance(cross, Tensor)
    return gram, cross


def least_squares(parts: list[tuple[Tensor, int]], goal: Tensor) -> Tensor:
    """The solution of :func:`equations`, ``(O, P)``, with a small ridge; the last column is the constant."""
    gram, cross = equations(parts, goal)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, cross).T.to(goal.dtype)


def fill(layer: nn.Module, weight: Tensor, second: nn.Module | None = None) -> None:
    """Write a solution of :func:`least_squares` into one or two convolutions; the first has the constant."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    split = layer.weight[0].numel()
    layer.weight.copy_(weight[:, :split].reshape(layer.weight.shape))
    layer.bias.copy_(weight[:, -1])
    if isinstance(second, nn.Conv2d) and second.bias is not None:
        second.weight.copy_(weight[:, split:-1].reshape(second.weight.shape))
        second.bias.zero_()


def pair_loss(
    student: Any, z: Tensor, label: Tensor, sigma: Tensor, eps: Tensor, step: int, teacher: nn.Module, seed: int,
    weight: float, subset: int = 2, logits: bool = False,
) -> Tensor:
    r"""Distance to the teacher's answers ``F`` for some classes, and of their differences, ``(N,)``.

    ``mean_k |e_k|^2 + weight mean_{j<k} |e_j - e_k|^2``, means over pixels too, with
    :math:`e_k = F(k) - F_\text{teacher}(k)` for the image's own class, or none where it is hidden, and ``subset - 1`` others,
    drawn at random. Heads answer in one pass. With ``logits`` the weight is ``weight c_skip``: then differences count at each
    noise level as they do in the logits of a diffusion classifier (ELBO), whose share of a level in :math:`\ln \sigma` is
    :math:`\lVert z - D \rVert^2 / \sigma^2`, with :math:`c_\text{out}^2 / \sigma^2 = c_\text{skip}`.
    """
    z_sigma, labels = z + sigma * eps, compared(label, student.num_classes, subset, seed, step)
    asked, levels, flat = z_sigma.repeat_interleave(subset, 0), sigma.repeat_interleave(subset, 0), labels.flatten()
    c_skip, c_out, c_in = coefficients(levels, student.sigma_data)
    with torch.no_grad():
        target = (teacher(asked, levels.flatten(), flat) - c_skip * asked) / c_out
    if student.one_pass:
        heads = student.raw(coefficients(sigma, student.sigma_data)[2] * z_sigma, sigma)
        found = heads[torch.arange(len(z), device=z.device)[:, None], labels % heads.shape[1]].flatten(0, 1)
    else:
        found = student.raw(c_in * asked, levels, flat)
    error = (found - target).flatten(1).unflatten(0, (len(z), subset))
    scale = weight * c_skip[::subset].flatten() if logits else weight
    return error.square().mean(dim=(1, 2)) + 2 * scale * error.var(dim=1).mean(dim=1)


def compared(label: Tensor, classes: int, count: int, seed: int, step: int) -> Tensor:
    """Classes ``(N, count)``: the image's own, or -1 where it is hidden, and others without repetition, drawn at random."""
    order = sent(rand((len(label), classes), seed, "other", step), label.device) + 2 * one_hot(label, classes)
    return torch.cat([label[:, None], order.argsort(dim=1)[:, : count - 1]], dim=1)
