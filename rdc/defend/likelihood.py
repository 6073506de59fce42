r"""Likelihood maximisation (LM): descend the unconditional diffusion loss from the input, then classify; all published readings.

.. math:: z_{n+1} = \Pi\big(z_n + \gamma\, u(g_n)\big), \qquad
    g_n = \nabla_z\, w \lVert z - D(z + \sigma \epsilon, \sigma) \rVert^2 \Big|_{z_n}, \qquad z_0 = 2x - 1,

with the update u of :mod:`rdc.defend.lm_updates`, the ball and, with ``clip="each"``, the box [-1, 1] in :math:`\Pi`, and fresh
:math:`\sigma, \epsilon` at every step. With ``clip="end"`` iterates may leave the box, and the last one is clamped. The loss is a
sum over pixels; for ``adam`` and ``rmsprop`` it is the mean, as in the released code, because their
:math:`\varepsilon = 10^{-8}` has the units of g.

**What a gradient through LM can tell.** At N = 1 the Jacobian of the released step is, away from the walls of [0, 1],

.. math:: I - \operatorname{diag}\Big(\frac{\gamma\, \varepsilon}{(|g| + \varepsilon)^2}\Big)\, \nabla^2 \ell ,

so where :math:`|g|` is large the exact gradient *is* BPDA with the identity, and a comparison of the two at N = 1 can find
no difference. For ``sign`` (and an Linf ball) this holds for every N, and for every update it holds in the pixels that the
ball holds at :math:`x \pm \eta`. For Adam with N > 1, ``literal`` and ``mean-l1`` it does not hold.

The factor needs care: for :math:`\gamma = 0.1` it is 10 at :math:`|g| = 10^{-5}` and :math:`10^7` at 0. Where the gradients of
the mean loss are that small, a few pixels near a change of sign make up the exact gradient. It is right, as finite
differences show, but only while no sign flips; an attack takes longer steps. ``smoothed(width)`` keeps every value of LM, bit
for bit, and takes the gradient through signs blurred to that width: a stand-in for the backward pass, as BPDA is. A pixel that
a wall of [0, 1] holds has derivative 0, where BPDA says 1.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Section 3.4, Algorithm 1
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["READINGS", "RDC", "LikelihoodMaximization"]

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.autograd import iterate
from rdc.classify.denoising_loss import denoising_error
from rdc.data import check_images
from rdc.defend.lm_updates import METHODS, into_ball, memory_size, update
from rdc.defend.preprocessed import Preprocessed
from rdc.denoise.base import Denoiser, check_unlabelled, from_model, to_model
from rdc.noise_source import likelihood_generator, likelihood_noise
from rdc.randomness import known_noise
from rdc.rng import generator, whole
from rdc.schedule import Levels, levels

#: Noise level(s), weight and noise of an evaluation.
Draw = tuple[Tensor, Tensor | float, Tensor]
#: Arguments of :class:`LikelihoodMaximization` for each published procedure of that name. ``printed``: Algorithm 1 to the
#: letter, gamma = 0.1 and eta = 8/255 in image units, one of the 1 000 VP steps. ``mean-l1``: the same step with the mean of
#: the gradient's size for its sum. ``mi-fgsm``: steps eta/N along the sign. ``expectation``: the same on the loss over all
#: levels (1 + NT evaluations). ``released``: Adam, no budget that acts, the same noise at every call, clamped to [0, 1] once, at
#: the end. ``clamped``: the same, clamped after every step (the "released" of this book's first edition and of its records).
READINGS: dict[str, dict[str, Any]] = {
    "printed": {"method": "literal", "step_size": 0.2, "sigma": levels("vp", 1000), "noise": "fresh"},
    "mean-l1": {"method": "mean-l1", "step_size": 0.2, "noise": "fresh"},
    "mi-fgsm": {"method": "sign", "noise": "fresh"},
    "expectation": {"method": "sign", "sigma": levels("edm", 16), "timesteps": "all", "noise": "fresh"},
    "released": {"method": "adam", "step_size": 0.1, "budget": None, "sigma": (0.4, 0.6), "noise": "fixed", "clip": "end"},
    "clamped": {"method": "adam", "step_size": 0.1, "budget": None, "sigma": (0.4, 0.6), "noise": "fixed", "clip": "each"},
}


class LikelihoodMaximization(nn.Module):
    """Images in [0, 1] to images in [0, 1] of a smaller diffusion loss.

    The noise is a function of seed, call and step, the same for every image, so that what becomes of an image does not depend
    on the batch (up to rounding: a pixel whose gradient is within rounding of zero steps either way). The released code draws a
    batch of noise, after setting the seed anew at each call: its image alone, as it is evaluated, has the same noise always;
    ``share="image"`` is what it does with a batch. The gradient is exact
    and can be taken once. Between the passes only z, the input and the update's memory are
    kept for each step, and with ``timesteps="all"`` the levels also run one at a time: memory is that of one network
    evaluation, with its second derivative, plus images.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        method: ``literal``, ``sign``, ``mean-l1``, ``adam`` or ``rmsprop``: see :mod:`rdc.defend.lm_updates`.
        steps: Number N of steps.
        step_size: gamma in model units, twice that in image units; None is ``2 budget / steps`` for ``sign``, else 0.1.
        budget: Radius eta of the ball around the input in image units; None for no ball.
        norm: ``Linf`` or ``L2``, of the ball.
        sigma: Range ``(low, high)`` of a uniform noise level in model units, with weight 1, or levels with weights.
        noise: ``fixed``: the same at every call. ``fresh``: new at every call.
        timesteps: ``one`` random level at each step, or ``all``: the weighted sum over levels, each with its own noise; a
            range stands for ``count`` midpoints of weight 1/count.
        label: Class that the denoiser is told; None for the unconditional one.
        momentum: mu of ``literal``, ``sign`` and ``mean-l1``.
        seed: Seed of the noise.
        count: Levels that stand for a range when ``timesteps="all"``.
        clip: ``each``: every iterate is clamped to [0, 1]. ``end``: the last one, as in the released code.
        share: ``batch``: one noise and level for all images of a call. ``image``: each image has its own, by its ``index``.

    Raises:
        ValueError: on an unknown name, a number out of its range, or a denoiser whose answer without a label was not trained.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        method: str = "sign",
        steps: int = 5,
        step_size: float | None = None,
        budget: float | None = 8 / 255,
        norm: str = "Linf",
        sigma: tuple[float, float] | Levels = (0.4, 0.6),
        noise: str = "fixed",
        timesteps: str = "one",
        label: int | None = None,
        momentum: float = 1.0,
        seed: int = 0,
        count: int = 16,
        clip: str = "each",
        share: str = "batch",
    ) -> None:
        super().__init__()
        _known("clip", clip, ("each", "end"))
        _known("share", share, ("batch", "image"))
        _known("method", method, METHODS)
        _known("norm", norm, ("Linf", "L2"))
        _known("noise", noise, ("fixed", "fresh"))
        _known("timesteps", timesteps, ("one", "all"))
        if steps < 1 or count < 1 or not momentum >= 0:
            raise ValueError(f"steps and count must be positive, momentum not negative; got {steps}, {count}, {momentum}")
        if (budget is not None and not budget >= 0) or (step_size is not None and not step_size > 0):
            raise ValueError(f"budget must not be negative and step_size positive, or None; got {budget}, {step_size}")
        if step_size is None and budget is None and method == "sign":
            raise ValueError("sign steps without a budget need a step_size")
        if label is not None and not 0 <= label < denoiser.num_classes:
            raise ValueError(f"label must be None or lie in 0...{denoiser.num_classes - 1}, got {label}")
        if not isinstance(sigma, Levels) and not 0 < sigma[0] <= sigma[1] < float("inf"):
            raise ValueError(f"the range of sigma is empty or not positive: {sigma}")
        if label is None:
            check_unlabelled(denoiser)
        default = 2 * budget / steps if method == "sign" and budget is not None else 0.1
        self.step_size = default if step_size is None else step_size
        self.denoiser, self.method, self.steps, self.budget, self.norm = denoiser, method, steps, budget, norm
        self.sigma, self.noise, self.timesteps, self.label = sigma, noise, timesteps, label
        self.momentum, self.seed, self.count, self.calls, self.width = momentum, whole(seed), count, 0, 0.0
        self.clip, self.share = clip, share

    def frozen(self, seed: int) -> "LikelihoodMaximization":
        """The same with the noise of ``seed`` at every call, and the same denoiser."""
        found = copy.copy(self)
        found.noise, found.seed, found.calls = "fixed", whole(seed), 0
        found.__dict__.pop("_kept", None)
        return found

    def smoothed(self, width: float) -> "LikelihoodMaximization":
        """The same values, and gradients through signs blurred to ``width`` times the mean size; 0 is the exact gradient.

        Raises:
            ValueError: if the width is negative.
        """
        if not 0 <= width < float("inf"):
            raise ValueError(f"width must not be negative, got {width}")
        found = copy.copy(self)
        found.width = width
        return found

    @property
    def evaluations(self) -> int:
        """Network evaluations with gradient for one image: N, or N T for all levels."""
        total = len(self.sigma) if isinstance(self.sigma, Levels) else self.count
        return self.steps * (total if self.timesteps == "all" else 1)

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Return the images after N steps, in [0, 1], differentiable once with respect to ``x``.

        Arguments:
            x: Images in [0, 1].
            index: With ``share="image"``: identity of each image, by default its place in the batch.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        rows = (tuple(range(len(x))) if index is None else tuple(index.tolist())) if self.share == "image" else None
        z = to_model(x)
        state = torch.cat([z, z] + [torch.zeros_like(z)] * memory_size(self.method), dim=1)
        step = self._step(self.calls, rows, torch.is_grad_enabled() and x.requires_grad)
        return from_model(iterate(step, state, self.steps)[:, : z.shape[1]].clamp(-1, 1))

    def loss(self, x: Float[Tensor, "n c h w"], step: int = 0) -> Float[Tensor, " n"]:
        """What step number ``step`` of the last call descends: the weighted loss of each image, ``(N,)``, differentiable."""
        check_images(x, self.denoiser.shape)
        z = to_model(x)
        rows = tuple(range(len(x))) if self.share == "image" else None
        return torch.stack([self._loss(z, *draw) for draw in self._draws(z, self.calls, rows, step)]).sum(dim=0)

    def _step(self, call: int, rows: tuple[int, ...] | None, twice: bool) -> Callable[[Tensor, int], Tensor]:
        """One step on the state ``(N, (2 + memory) C, H, W)``: image, input, memory; ``twice`` keeps it differentiable."""

        def step(state: Tensor, n: int) -> Tensor:
            z, z0, *memory = state.chunk(2 + memory_size(self.method), dim=1)
            g = self._gradient(z, call, rows, n, twice)
            change, after = update(self.method, g, tuple(memory), n, self.momentum)
            if twice and self.width:
                soft = update(self.method, g, tuple(memory), n, self.momentum, self.width)[0]
                change = change.detach() + (soft - soft.detach())
            moved = into_ball(z + self.step_size * change, z0, self.budget, self.norm)
            return torch.cat([moved.clamp(-1, 1) if self.clip == "each" else moved, z0, *after], dim=1)

        return step

    def _gradient(self, z: Tensor, call: int, rows: tuple[int, ...] | None, n: int, twice: bool) -> Tensor:
        """``g_n``; several levels run one after the other, and again in the backward pass."""
        total = torch.zeros_like(z)
        for draw in self._draws(z, call, rows, n):

            def slope(at: Tensor, _: int, draw: Draw = draw) -> Tensor:
                return torch.autograd.grad(self._loss(at, *draw).sum(), at, create_graph=twice)[0]

            total = total + iterate(slope, z, 1, recompute=self.timesteps == "all")
        return total

    def _loss(self, z: Tensor, sigma: Tensor, weight: Tensor | float, eps: Tensor) -> Tensor:
        """``w |z - D(z + sigma eps, sigma)|^2`` of each image, the mean over pixels for Adam and RMSprop."""
        label = None if self.label is None else torch.full((len(z),), self.label, dtype=torch.int64, device=z.device)
        error = weight * denoising_error(self.denoiser, z, sigma, eps, label)
        return error / z[0].numel() if self.method in ("adam", "rmsprop") else error

    def _draws(self, z: Tensor, call: int, rows: tuple[int, ...] | None, n: int) -> Iterator[Draw]:
        """Noise level, weight and noise of every evaluation of step ``n``; fixed noise is drawn once and kept."""
        key = call, rows, n, z.device, z.dtype
        if self.noise == "fresh":
            yield from self._drawn(z, call, rows, n)
        else:
            if key not in self._kept:
                if any(known[1] != rows for known in self._kept):
                    self._kept.clear()  # of other images: memory stays that of one batch
                self._kept[key] = list(self._drawn(z, call, rows, n))
            yield from self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[object, ...], list[Draw]]:
        return {}

    def _drawn(self, z: Tensor, call: int, rows: tuple[int, ...] | None, n: int) -> Iterator[Draw]:
        shape, seeds = self.denoiser.shape, [self.seed] if rows is None else [row_seed(self.seed, row) for row in rows]

        def eps(level: int | None = None) -> Tensor:
            drawn = [likelihood_noise(shape, seed, call, n, level) for seed in seeds]
            return (drawn[0] if rows is None else torch.stack(drawn)).to(z)

        if self.timesteps == "all":
            found = self.sigma if isinstance(self.sigma, Levels) else midpoints(*self.sigma, self.count)
            for level in range(len(found)):
                yield found.sigma[level].to(z), float(found.weight[level]), eps(level)
        elif isinstance(self.sigma, Levels):
            chosen = [self._level(len(self.sigma), seed, call, n) for seed in seeds]
            t = torch.tensor(chosen[0] if rows is None else chosen, dtype=torch.int64, device="cpu")
            yield self.sigma.sigma[t].to(z), self.sigma.weight[t].to(z), eps()
        else:
            low, high = self.sigma
            u = [torch.rand((), generator=likelihood_generator(s, call, n), dtype=torch.float64, device="cpu") for s in seeds]
            sigma = low + (high - low) * (u[0] if rows is None else torch.stack(u))
            yield sigma.to(z), 1.0, eps()

    @staticmethod
    def _level(count: int, seed: int, call: int, n: int) -> int:
        """The level of step ``n``."""
        return int(torch.randint(count, (), generator=likelihood_generator(seed, call, n), dtype=torch.int64, device="cpu"))


def row_seed(seed: int, row: int) -> int:
    """Seed of the noise of one image, for ``share="image"``."""
    return generator(seed, "likelihood", "row", row).initial_seed()


class RDC(nn.Module):
    """The robust diffusion classifier: ``classifier(lm(x))``, with the gradient of LM taken by name.

    Arguments:
        lm: Likelihood maximisation.
        classifier: Images to logits, such as :class:`rdc.classify.DiffusionClassifier`.
        gradient: ``bpda`` (identity), ``exact`` or ``denoise``, as in :class:`rdc.defend.preprocessed.Preprocessed`.
        surrogate: For ``denoise``: usually :func:`rdc.defend.preprocessed.one_denoising_step`.

    Raises:
        ValueError: on an unknown gradient, or a surrogate missing or given for another gradient.
    """

    def __init__(
        self,
        lm: LikelihoodMaximization,
        classifier: nn.Module,
        gradient: str = "bpda",
        surrogate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        Preprocessed(lm, classifier, gradient, surrogate)  # refuses what does not fit
        self.lm, self.classifier, self.gradient, self.surrogate = lm, classifier, gradient, surrogate

    def frozen(self, seed: int) -> "RDC":
        """The same defence with the noise of ``seed`` at every call, of LM and of the classifier."""
        return RDC(self.lm.frozen(seed), known_noise(self.classifier, seed), self.gradient, self.surrogate)

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Return the logits of the images after likelihood maximisation.

        Arguments:
            x: Images in [0, 1].
            index: Identity of each image, for noise of its own (``share="image"``); by default its place in the batch.
        """
        process = self.lm if index is None else partial(self.lm, index=index)
        return Preprocessed(process, self.classifier, self.gradient, self.surrogate)(x)


def midpoints(low: float, high: float, count: int) -> Levels:
    """``count`` midpoints of equal parts of a range, each of weight 1/count: the mean over a uniform noise level."""
    u = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
    return Levels(low + (high - low) * u, torch.full_like(u, 1 / count))


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(names)}")
