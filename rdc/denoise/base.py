r"""The one noun of the package: a denoiser.

Images ``x`` lie in [0, 1]; denoisers work on :math:`z = 2x - 1` and on :math:`z_\sigma = z + \sigma \epsilon` with
:math:`\epsilon \sim \mathcal N(0, I)`. A denoiser estimates the posterior mean

.. math:: D(z_\sigma, \sigma, y) = \mathbb E[z \mid z_\sigma, y].

Noise predictor and score are the same object in other units:
:math:`\epsilon(z_\sigma) = (z_\sigma - D) / \sigma` and
:math:`\nabla \log p_\sigma(z_\sigma \mid y) = (D - z_\sigma) / \sigma^2`.
"""

__all__ = ["Denoiser", "check_labels", "check_unlabelled", "compiled", "fast_dtype", "from_model", "sigma_data_of", "to_model"]

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rdc.door import checking

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Denoiser(Protocol):
    """What every denoiser offers: a trained network, a closed form, a multi-head network, a VP network."""

    @property
    def one_pass(self) -> bool:
        """Whether ``all_classes`` costs about as much as one class."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""

    def __call__(self, z: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``D(z_sigma, sigma, y)``, ``(N, C, H, W)``; ``label=None`` is the unconditional denoiser."""

    def all_classes(self, z: Tensor, sigma: Tensor | float) -> Tensor:
        """``D(z_sigma, sigma, y)`` for every class, ``(N, K, C, H, W)``."""


def check_unlabelled(denoiser: Denoiser) -> None:
    """Raise if the answer of a denoiser without a label was not trained (its ``unlabelled`` is False).

    Raises:
        ValueError: with one line that says what to do.
    """
    if not getattr(denoiser, "unlabelled", True):
        raise ValueError(
            "this denoiser was trained with labels only: its answer without one means nothing; give another as 'unconditional', "
            "or train it with label_dropout > 0"
        )


def check_labels(denoiser: Denoiser, z: Tensor, label: Tensor | None) -> Tensor:
    """Return ``z``, with NaN in the place of images whose label, None or -1, asks for an answer that was not trained.

    Raises:
        ValueError: as :func:`check_unlabelled`, where looking at the labels does not wait for a device.
    """
    if label is None:
        check_unlabelled(denoiser)
    elif not getattr(denoiser, "unlabelled", True):
        if label.device.type == "cpu" and bool((label < 0).any()):
            check_unlabelled(denoiser)
        return torch.where((label < 0)[:, None, None, None], float("nan"), z)
    return z


def sigma_data_of(denoiser: Denoiser) -> float:
    """Standard deviation of the data that a denoiser was trained for, model units; 0.5 if it does not say."""
    return float(getattr(denoiser, "sigma_data", 0.5))


def to_model(x: Tensor) -> Tensor:
    """Image units [0, 1] to model units [-1, 1]: ``z = 2x - 1``."""
    return 2 * x - 1


def from_model(z: Tensor) -> Tensor:
    """Model units [-1, 1] to image units [0, 1]: ``x = (z + 1) / 2``."""
    return (z + 1) / 2


def expand_sigma(sigma: Tensor | float, z: Tensor) -> Tensor:
    """Return the noise level as a tensor of shape ``(N, 1, 1, 1)`` in the dtype of ``z``.

    Values on other devices than the CPU are looked at only where values of images are (:func:`rdc.door.checking`).

    Raises:
        ValueError: if it is not positive, or neither one number nor one for each image.
    """
    if not torch.is_tensor(sigma) and sigma > 0:  # nothing is sent
        return torch.full((len(z), 1, 1, 1), sigma, dtype=z.dtype, device=z.device)
    given = sigma.to(z.dtype) if torch.is_tensor(sigma) else torch.tensor(sigma, dtype=z.dtype, device="cpu")
    if given.ndim > 1 or (given.ndim == 1 and len(given) not in (1, len(z))):
        raise ValueError(f"sigma has shape {tuple(given.shape)}; give one number, or one per image ({len(z)})")
    if (given.device.type == "cpu" or checking()) and not bool((given > 0).all()):
        raise ValueError(f"sigma must be positive, got {float(given.min())}")
    return given.to(z.device).reshape(-1, 1, 1, 1).expand(len(z), 1, 1, 1)


def compiled(denoiser: Network) -> Network:
    """Compile the network of a denoiser or a time-dependent classifier, in place, with :meth:`torch.nn.Module.compile`.

    Answers change by rounding only. The first call of each batch size compiles, for seconds to minutes, so that it pays for runs
    of many calls: on a GPU training and attacks with large blocks; on the CPU, which needs a C++ compiler, rarely. A deep copy is
    not compiled.
    """
    denoiser.get_submodule("model").compile()
    return denoiser


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (CUDA, CPUs with AVX512-BF16), else float32.

    For sampling, training and speed. What is attacked belongs in float32 (:func:`rdc.door.full_precision`).
    """
    native = torch.device(device).type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32
