"""The gradient of another model: what an attacker has who differentiates the classifier and forgets the defence before it."""

__all__ = ["Transfer"]

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.randomness import known_noise


class Transfer(nn.Module):
    """The logits of ``model``, bit for bit, with the gradient of ``surrogate`` at the same images.

    Arguments:
        model: Images to logits; its own gradient is not taken.
        surrogate: Images to logits of the same classes.
    """

    def __init__(self, model: nn.Module, surrogate: nn.Module) -> None:
        super().__init__()
        self.model, self.surrogate = model, surrogate

    def frozen(self, seed: int) -> "Transfer":
        """The same with the noise of ``seed`` at every call, of both."""
        return Transfer(known_noise(self.model, seed), known_noise(self.surrogate, seed))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        with torch.no_grad():
            logits = self.model(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        other = self.surrogate(x)
        return logits + (other - other.detach())
