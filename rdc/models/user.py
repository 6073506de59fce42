"""A model of one's own: ``package.module:function``, on the command line ``--model package.module:function``."""

__all__ = ["load_user_model", "names_user_model"]

import importlib
import os
import sys
from typing import Any

import torch
from torch import nn

FORM = "give --model as module:function, a function without arguments that returns an nn.Module"


def names_user_model(name: str) -> bool:
    """Whether ``name`` has the form ``module:object``: words with dots, one colon."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load_user_model(name: str, device: torch.device) -> nn.Module:
    """Return the model that ``module:object`` names, on the device, in evaluation mode.

    The module is imported from the Python path, and from the current folder. The object is an ``nn.Module``, or is called without
    arguments and returns one: images in [0, 1] to logits ``(N, K)``.

    Raises:
        ValueError: if it cannot be imported, has no such object, or gives no ``nn.Module``, in one line.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # whatever a user's module does
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"--model {name}: {type(error).__name__}: {lines[0]}; {FORM}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {name} gives {type(model).__name__}, no nn.Module; {FORM}")
    return model.to(device).eval()
