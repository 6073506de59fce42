"""The one builder of all classifiers and defences, by name: ``build("rdc", "fashion-mini", levels=8)``.

A name is one of :func:`names`, a shipped checkpoint, a ``.safetensors`` or a published ``.pkl`` file (the diffusion classifier of
that denoiser), or ``module:function`` (a model of one's own). ``rdc models`` lists the names on the command line, ``rdc models
rdc`` the options.

>>> build("dc", "digits", levels=2).num_classes
10
>>> str(options_of("dc")["levels"]), options_of("rdc")["budget"].values
('levels=8', 'a number or preset or none')
"""

__all__ = ["base_classifier", "build", "names", "options_of"]

from functools import partial
from typing import Any

import torch
from torch import nn

from rdc.models import baselines, broken, comparisons, diffusion, likelihood, networks, noisy, purify
from rdc.models.registry import MODELS, Model, Option
from rdc.models.user import load_user_model
from rdc.models.user import names_user_model as names_user_model

#: The modules that write the names down.
FAMILIES = (networks, diffusion, likelihood, purify, noisy, broken, comparisons, baselines)


def names() -> list[str]:
    """The names of all models, sorted; shipped checkpoints, files and models of one's own come on top."""
    return sorted(MODELS)


def options_of(name: str) -> dict[str, Option]:
    """The options of a model by name, with defaults and what they may be.

    Raises:
        ValueError: if there is no such model.
    """
    return {} if names_user_model(name) else entry(name).options


def build(name: str, data: str = "fashion-mini", device: str | torch.device = "cpu", **options: Any) -> nn.Module:
    """Build a model: images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, in evaluation mode.

    Arguments:
        name: One of :func:`names`, a shipped checkpoint, a ``.safetensors`` or ``.pkl`` file, or ``module:function``.
        data: The images that it is for, a name that ``rdc.data.load`` knows.
        device: Where it shall live.
        options: Those of :func:`options_of`, as objects or as text (``"8/255"``, ``"none"``, ``"0.4,0.6"``).

    Returns:
        The model. The base classifiers of randomized smoothing (``epndc``, ``apndc``, ``carlini``, ``cohen``, ``cascade``,
        ``race``) take noisy images outside [0, 1], too.

    Raises:
        ValueError: if the name, the data set, an option or its value is unknown, or the model does not exist for the data set; in
            one line.
    """
    from rdc.data import check_name

    check_name(data)
    place = torch.device(device)
    if names_user_model(name):
        if options:
            raise ValueError(f"a model of one's own brings its own options and its own noise; leave out {', '.join(options)}")
        return load_user_model(name, place)
    found = entry(name)
    return found.make(data, place, **found.checked(options)).eval()


def base_classifier(name: str, data: str = "fashion-mini", device: str | torch.device = "cpu", **options: Any) -> nn.Module:
    """Build a base classifier of randomized smoothing: noisy images, not clipped, to logits ``(N, K)``.

    A model of clean images sees noisy ones clipped to [0, 1] (:class:`rdc.certify.baselines.Clipped`); a model of one's own sees
    them as they are. Arguments and errors are those of :func:`build`.
    """
    from rdc.certify.baselines import Clipped

    made = build(name, data, device, **options)
    return made if is_noisy(name) else Clipped(made).eval()


def is_noisy(name: str) -> bool:
    """Whether a model takes noisy images, not clipped; of one's own models it is believed."""
    return names_user_model(name) or entry(name).noisy


def entry(name: str) -> Model:
    """The model of a name, or that of a checkpoint.

    Raises:
        ValueError: if it is neither.
    """
    from rdc.denoise.checkpoints import ALIASES, shipped

    if name in MODELS:
        return MODELS[name]
    if name in shipped() or name in ALIASES or name.endswith((".safetensors", ".pkl")):
        return Model(name, partial(diffusion.of_checkpoint, name))
    raise ValueError(
        f"unknown model {name!r}; there are {', '.join(names())}, the checkpoints {', '.join(shipped())}, a .safetensors or "
        ".pkl file, or module:function"
    )
