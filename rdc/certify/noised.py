r"""Noised diffusion classifiers: which class does a noisy image come from? For randomized smoothing with any denoiser.

The input is :math:`x + \sigma \delta` in image units, not clipped; in model units :math:`z_\tau = z + \tau \delta` with
:math:`\tau = 2 \sigma`.

**EPNDC** (exact posterior) is the likelihood bound of the noisy image itself. In the limit of many steps

.. math:: \log p_\tau(z_\tau \mid y) \ge C - \int_\tau^{s_T} s^{-3}\, \mathbb E \lVert D(z_s, s, y) - \tilde z \rVert^2\, ds,
    \qquad z_s = z_\tau + W_s, \quad \tilde z = z_\tau - (\tau^2 / u_s^2)\, W_s,

with equality for the optimal denoiser, in differences of two classes: what all classes share diverges at :math:`s = \tau` and is
left out of C and of the integral. Then EPNDC is Bayes' rule :math:`p(y \mid z_\tau)` for equally frequent classes.
:mod:`rdc.certify.bridge` has the sums. The logits leave out what is the same for all classes: with :math:`g = D - z_\tau` they
are :math:`-\sum_t w_t (\lVert g \rVert^2 - 2 g \cdot (\tilde z - z_\tau))`, whose terms stay finite where those of the bound do
not.

The product of g and the noise makes a single sample noisy, and a chain of T steps is off by O(1/T), not the same for all classes.
The default, ``quadrature`` with mirror images, has little of both at a few evaluations with a trained network. Ways to have less
noise:

| ``antithetic``       every sample of the noise comes with its mirror image: the product becomes a difference of two g
| ``coupling="path"``  one Brownian path through all levels, and as target the value of that path one step earlier. This is
                       the log ratio of chain and noise along the path: the same bound on average, and for the optimal
                       denoiser and many steps it is log p *for every path*, without variance (Girsanov)
| more ``draws``

**APNDC** (approximated posterior) denoises first, :math:`\hat z = D(z_\tau, \tau)` without a class, and uses :math:`\hat z` as
target: :math:`f_y = -\sum_t w_t \mathbb E \lVert D(z_s, s, y) - \hat z \rVert^2`.

| ``ensemble``        :math:`z_s = \hat z + s \epsilon`, the clean diffusion classifier of :math:`\hat z` from tau upwards: an
                      average of EPNDC over new noisy copies of :math:`\hat z`; what the released scripts certify
| ``correct``         :math:`z_s = z_\tau + u_s \epsilon`; for the optimal denoiser, on average over :math:`z_\tau`, it is EPNDC
                      up to a constant, with less variance
| ``condition-on-y``  the same with :math:`D(z_\tau, \tau, y)` as the target of class y. Each class is compared with its own
                      reconstruction, which says little about the class

References:
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
    | Released code, commit 410b09f: ``EPNDC(..., form="released", weight="edm-released", sigma_data=0.5, count=124,
      antithetic=False)`` and ``APNDC(..., released=True, weight="edm-released", sigma_data=0.5, count=124)``
    | Reverse-time diffusion equation models (Anderson, 1982)
"""

__all__ = ["COUPLINGS", "VARIANTS", "APNDC", "EPNDC", "check_noisy"]

from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from rdc.autograd import chunked
from rdc.certify.bridge import Steps, check_name, clean_steps, constant, noised_steps, walk
from rdc.classify.denoising_loss import Losses, Samples, chunk_size, denoising_losses
from rdc.denoise.base import Denoiser, check_unlabelled, sigma_data_of, to_model
from rdc.door import checking
from rdc.noise_source import Noise
from rdc.quantities import count as whole_number
from rdc.schedule import Levels

COUPLINGS = ("shared", "per_class", "path")
VARIANTS = ("ensemble", "correct", "condition-on-y")


class Engine:
    """Denoiser, steps and noise of a noised classifier; :class:`EPNDC` says what the arguments mean.

    Raises:
        ValueError: if a name is unknown or a number is not positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steps: Steps,
        coupling: str,
        draws: int,
        antithetic: bool,
        noise: str,
        seed: int,
        chunk: int | None,
    ) -> None:
        if noise not in ("fixed", "fresh"):
            raise ValueError(f"unknown noise {noise!r}; there are fixed, fresh")
        draws = whole_number(draws, "draws") * (2 if antithetic else 1)
        self.denoiser, self.steps, self.coupling, self.fresh, self.seen = denoiser, steps, coupling, noise == "fresh", 0
        self.chunk = None if chunk is None else whole_number(chunk, "chunk")
        self.noise = Noise(seed, draws, antithetic, coupling == "per_class")

    @property
    def one_pass(self) -> bool:
        """Whether an evaluation serves all classes."""
        return self.denoiser.one_pass and not self.noise.per_class

    @property
    def draws(self) -> int:
        """Evaluations of one item, mirror images included."""
        return self.noise.draws

    @property
    def evaluations(self) -> int:
        """Evaluations of all items of an image."""
        return len(self.steps) * self.draws * (1 if self.one_pass else self.denoiser.num_classes)

    def batch(self, x: Tensor, index: Tensor | None, around: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Losses:
        """Return the losses of a batch; ``around`` gives start and centre of noisy images in model units."""
        check_noisy(x, self.denoiser.shape, index)
        start, centre = around(to_model(x))
        levels = self.steps.levels
        samples = self._drawn_for(x, index)
        return Losses(
            self.denoiser, levels.sigma.to(start), levels.weight.to(start.device), samples, start, centre, chunk=self.chunk
        )

    def _drawn_for(self, x: Tensor, index: Tensor | None) -> Samples:
        """The noise of each image; where it is fixed, the same for all, drawn once and kept where the data are."""
        if self.fresh:
            if index is None:
                self.seen += len(x)
            rows = range(self.seen - len(x), self.seen) if index is None else index.tolist()
            return self._samples([("row", int(row)) for row in rows], x)
        key = x.device, x.dtype
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = self._samples([(0,)], x)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[object, Samples]:
        return {}

    def _samples(self, owners: list[tuple[int | str, ...]], like: Tensor) -> Samples:
        """Noise for owners, moved once."""
        shape, noise = self.denoiser.shape, self.noise
        labels = range(self.denoiser.num_classes if noise.per_class else 1)

        def drawn(owner: tuple[int | str, ...], r: int, k: int, t: int) -> Tensor:
            return noise.eps(shape, owner, t, r, k)

        walks = [
            walk(self.steps, self.coupling, partial(drawn, owner, r, k))
            for owner in owners
            for k in labels
            for r in range(noise.samples)
        ]
        table = torch.stack(walks).reshape(len(owners) * len(labels), noise.samples, 2, len(self.steps), *shape).to(like)
        shift = table[:, :, 1] if self.steps.pseudo or self.coupling == "path" else None
        return Samples(table[:, :, 0], shift, 2 if noise.antithetic else 1, per_image=self.fresh, per_class=noise.per_class)


def check_noisy(x: Tensor, shape: tuple[int, ...], index: Tensor | None = None) -> None:
    """Raise unless ``x`` is a non-empty finite float batch ``(N, C, H, W)`` of the given shape, and an index fits.

    Raises:
        ValueError: with one line that says what was wrong.
    """
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim != 4 or len(x) == 0:
        got = f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"noisy images must be a non-empty float batch (N, C, H, W), got {got}")
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"images have shape {tuple(x.shape[1:])}, the model takes {tuple(shape)}")
    if checking() and not bool(x.detach().isfinite().all()):
        bad = int((~x.detach().isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"noisy images must be finite; {bad} of {len(x)} are not")
    if index is not None and (tuple(index.shape) != (len(x),) or index.dtype != torch.int64):
        raise ValueError(f"index needs one int64 number for each of {len(x)} images, got {index.dtype} {tuple(index.shape)}")


class EPNDC(nn.Module):
    """Exact-posterior noised diffusion classifier: noisy images to logits ``(N, K)``, in nats for ``weight="elbo"``.

    For ``noise="fixed"`` it is one deterministic function of the image, for ``fresh`` a random one; smoothing certifies both.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        sigma: Standard deviation of the noise in the image, image units; the denoiser sees ``tau = 2 sigma``.
        count: Number of levels T.
        form: ``quadrature``, or one of the chains ``fixed`` (a bound, with more levels), ``specific`` and ``released``, see
            :mod:`rdc.certify.bridge`.
        weight: ``elbo``, or ``edm`` or ``edm-released``: those densities of :mod:`rdc.schedule` in the place of s^-3.
        coupling: ``shared``: independent levels, each with the same noise for all classes. ``path``: one Brownian path through
            all levels of a chain, for all classes. ``per_class``: all independent.
        draws: Number of samples of the noise.
        antithetic: Whether each sample comes with its mirror image, for twice the evaluations.
        noise: ``fixed``: the same for every image and call. ``fresh``: another one for every image, derived from ``index``.
        sigma_max: Last level, model units; 20 by default, 3 for ``released``.
        placement: Where the levels lie, see :func:`rdc.certify.bridge.grid`; by default as suits the form.
        seed: Seed of the noise.
        chunk: Network evaluations at a time; None lets the device decide. It changes no number beyond rounding.
        sigma_data: Standard deviation of the data in the ``edm`` weights; by default that of the denoiser.

    Raises:
        ValueError: if a name is unknown, a number is not positive, the range of levels is empty, or ``path`` is asked for without
            a chain.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float,
        *,
        count: int = 8,
        form: str = "quadrature",
        weight: str = "elbo",
        coupling: str = "shared",
        draws: int = 1,
        antithetic: bool = True,
        noise: str = "fixed",
        sigma_max: float | None = None,
        placement: str | None = None,
        seed: int = 0,
        chunk: int | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        self.tau = 2 * float(sigma)
        spread = sigma_data_of(denoiser) if sigma_data is None else sigma_data
        steps = noised_steps(self.tau, count, form, weight, sigma_max, placement, spread)
        check_name("coupling", coupling, COUPLINGS)
        if coupling == "path" and steps.left is None:
            raise ValueError("form 'quadrature' has no chain, hence no path; take form='fixed', or coupling='shared'")
        self.denoiser, self.steps, self.form, self.weight, self.noise = denoiser, steps, form, weight, noise
        self.engine = Engine(denoiser, steps, coupling, draws, antithetic, noise, seed, chunk)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    @property
    def levels(self) -> Levels:
        """Noise levels (model units) and weights."""
        return self.steps.levels

    @property
    def evaluations(self) -> int:
        """Network evaluations for one image: T K for each draw, or T when one pass serves all classes; mirror images count."""
        return self.engine.evaluations

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Return the logits ``(N, K)``: the bound without the part that is the same for all classes; differentiable once.

        Arguments:
            x: Noisy images, image units, not clipped.
            index: For ``noise="fresh"`` a number for each image from which its noise follows. By default images are numbered
                in the order in which they come, over all calls.

        Raises:
            ValueError: if ``x`` is not a non-empty finite float batch of the denoiser's shape, or ``index`` does not fit.
        """
        return -self.losses(x, index).sum(dim=2).to(x.dtype)

    def losses(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float64[Tensor, "n k t"]:
        """Return the weighted losses of every class and level, ``(N, K, T)``; minus their sum over levels are the logits."""
        return denoising_losses(self._batch(x, index))

    def batch(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Losses:
        """Return the weighted losses of a batch as they can be evaluated, one by one or all (:mod:`rdc.early_exit`)."""
        with torch.no_grad():
            return self._batch(x, index)

    def _batch(self, x: Tensor, index: Tensor | None) -> Losses:
        return self.engine.batch(x, index, self._around)

    def log_likelihood(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """The whole bound for the log-density of the chain at ``z_tau``, ``(N, K)`` in nats, model units.

        It is one on average over the noise of the chain; for the optimal denoiser it lies below ``log p_tau(z_tau | y)`` on
        average over noisy images, not at each of them.

        The prior is N(0, sigma_max^2); ``quadrature``, which is no bound, ends beyond.

        Raises:
            ValueError: unless ``weight="elbo"`` and the form is not ``released``: nothing bounds a likelihood then.
        """
        if self.weight != "elbo" or self.form == "released":
            raise ValueError(f"weight {self.weight!r} and form {self.form!r} bound no likelihood; take 'elbo' and 'fixed'")
        loss = self.losses(x, index).sum(dim=2)
        square = to_model(x.detach()).flatten(1).double().square().sum(dim=1)
        return (constant(self.steps, self.form, square, x[0].numel())[:, None] - loss).to(x.dtype)

    def _around(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z[:, None]


class APNDC(nn.Module):
    """Approximated-posterior noised diffusion classifier: noisy images to logits ``(N, K)``.

    ``coupling``, ``draws``, ``antithetic``, ``noise``, ``seed``, ``chunk`` and ``sigma_data`` are those of :class:`EPNDC`, but
    there is no ``path``. With the same seed the noise is that of :class:`rdc.classify.DiffusionClassifier`.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        sigma: Standard deviation of the noise in the image, image units; the denoiser sees ``tau = 2 sigma``.
        count: Number of levels T.
        variant: ``ensemble``, ``correct`` or ``condition-on-y``, see :mod:`rdc.certify.noised`.
        weight: ``elbo``, ``edm`` or ``edm-released``.
        released: Whether to take the grid of the released code, equal steps up to 3, and its weights.
        unconditional: Another denoiser for the one-step estimate; by default ``denoiser`` without a label.
        sigma_max: Last level, model units; 20 by default, 3 for ``released``.
        placement: Where the levels lie, see :func:`rdc.certify.bridge.grid`.

    Raises:
        ValueError: if a name is unknown, a number is not positive, the range of levels is empty, or the denoiser of the estimate
            has no trained answer without a label.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float,
        *,
        count: int = 16,
        variant: str = "ensemble",
        weight: str = "elbo",
        released: bool = False,
        unconditional: Denoiser | None = None,
        coupling: str = "shared",
        draws: int = 1,
        antithetic: bool = False,
        noise: str = "fixed",
        sigma_max: float | None = None,
        placement: str | None = None,
        seed: int = 0,
        chunk: int | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        check_name("variant", variant, VARIANTS)
        check_name("coupling", coupling, COUPLINGS[:2])
        if variant != "condition-on-y":
            check_unlabelled(denoiser if unconditional is None else unconditional)
        self.tau, self.variant = 2 * float(sigma), variant
        spread, lag = sigma_data_of(denoiser) if sigma_data is None else sigma_data, 0 if variant == "ensemble" else 1
        levels = clean_steps(self.tau, count, weight, sigma_max, placement, released, lag, spread)
        self.denoiser, self.unconditional, self.noise = denoiser, denoiser if unconditional is None else unconditional, noise
        self.steps = Steps(0.0 if variant == "ensemble" else self.tau, levels, None, pseudo=False)
        self.engine = Engine(denoiser, self.steps, coupling, draws, antithetic, noise, seed, chunk)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    @property
    def levels(self) -> Levels:
        """Noise levels (model units) and weights."""
        return self.steps.levels

    @property
    def evaluations(self) -> int:
        """Network evaluations for one image, with those of the one-step estimate."""
        own = 1 if self.variant != "condition-on-y" or self.denoiser.one_pass else self.num_classes
        return self.engine.evaluations + own

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``; arguments and errors as for :class:`EPNDC`."""
        return -self.losses(x, index).sum(dim=2).to(x.dtype)

    def losses(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float64[Tensor, "n k t"]:
        """Return the weighted losses of every class and level, ``(N, K, T)``; minus their sum over levels are the logits."""
        return denoising_losses(self._batch(x, index))

    def batch(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Losses:
        """Return the weighted losses of a batch as they can be evaluated, one by one or all (:mod:`rdc.early_exit`)."""
        with torch.no_grad():
            return self._batch(x, index)

    def _batch(self, x: Tensor, index: Tensor | None) -> Losses:
        return self.engine.batch(x, index, self._around)

    def _around(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Start and targets of the losses, model units."""
        size = chunk_size(z, self.engine.chunk)
        if self.variant == "condition-on-y":
            return z, chunked(lambda part: self.denoiser.all_classes(part, self.tau), z, max(1, size // self.num_classes))
        estimate = chunked(lambda part: self.unconditional(part, self.tau), z, size)
        return (estimate if self.variant == "ensemble" else z), estimate[:, None]
