"""Robust diffusion classifiers: the code behind the book."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import ``load_denoiser`` when it is asked for; the package itself imports nothing.

    Raises:
        AttributeError: for any other name.
    """
    if name == "load_denoiser":
        from rdc.denoise.published import load_denoiser

        return load_denoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
