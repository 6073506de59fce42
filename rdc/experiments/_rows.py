"""Rows of the experiments on likelihood maximisation: the words of their tables, and the models and attacks behind them."""

from collections.abc import Mapping
from typing import Any

from rdc.defend.likelihood import READINGS
from rdc.quantities import number
from rdc.runs.cell import Row

FLOW = "0.05"  # bound of StAdv, fraction of the image's width
#: What the attacks of the tables are: name and arguments.
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {"steps": 20}),
    "pgd-60": ("pgd", {"steps": 60}),
    "pgd-restarts": ("pgd", {"steps": 20, "restarts": 3}),
    "pgd-targets": ("pgd", {"steps": 20, "targets": 9}),
    "apgd": ("autoattack", {"steps": 20, "version": "custom", "attacks": ["apgd-ce", "apgd-dlr"]}),
    "square": ("square", {"queries": 1000}),
    "stadv": ("stadv", {"steps": 30}),
    "lagrange": ("lagrange", {"steps": 20, "loss": "margin", "penalty": {"denoiser": "heads", "levels": 8, "sigma_min": 0.1}}),
    "feature": ("feature", {"steps": 20}),
}
#: The models of the tables: name, and options that are not standard.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("cnn", {}),
    "AT": ("at-linf", {}),
    "DC": ("dc", {}),
    "DC floor": ("dc-floor", {}),
    "DC single-head": ("dc", {"denoiser": "single-head"}),
    "RDC": ("rdc", {}),
    "RDC single-head": ("rdc", {"denoiser": "single-head"}),
    "LM+CNN": ("lm-cnn", {}),
    "DiffPure+CNN": ("diffpure", {}),
    "DiffPure+DC": ("diffpure-dc", {}),
}


def row(
    table: str,
    model: str,
    gradient: str = "plain",
    attack: str = "pgd",
    norm: str = "Linf",
    eps: str = "8/255",
    eot: int = 1,
    n: int = 48,
    priority: int = 0,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Row:
    """Return a row of a table: a model in the table's words, the attacker's gradient, an attack, and other options."""
    name, own = MODELS[model]
    kind, arguments = ATTACKS[attack]
    arguments = {**arguments, "eps": FLOW if attack == "stadv" else eps}
    arguments |= {} if attack == "stadv" else {"norm": norm}
    arguments |= {"eot": eot} if eot > 1 else {}
    own = {**own, **options}
    if gradient == "transfer":
        arguments["on"] = {"model": "dc", "options": {}}
    elif gradient != "plain":
        own["gradient"] = gradient
    words = {
        "table": table, "model": model, "gradient": gradient, "noise": "fresh" if own.get("noise") == "fresh" else "fixed",
        "draws": own.get("draws", 1), "coupling": "per_class" if own.get("noise") == "per_class" else "shared", "eot": eot,
        "attack": attack, "norm": "StAdv" if attack == "stadv" else norm, "eps": number(arguments["eps"], "eps"),
        "steps": arguments.get("steps"), **dict.fromkeys(("lm", "method", "N", "budget", "sigma", "timesteps")), **(about or {}),
    }  # fmt: skip
    return Row(name, own, kind, arguments, n=n, about=words, priority=priority)


def lm(
    table: str, gradient: str, reading: str = "clamped", model: str = "RDC", N: int = 5, title: str | None = None, **more: Any
) -> Row:
    """Return a row of a defence that begins with N steps of likelihood maximisation in a reading of :mod:`rdc.defend.likelihood`.

    ``title`` is what the tables call it, by default the reading; further keywords are those of :func:`row`, and options.
    """
    is_one = READINGS[reading] | more
    budget = is_one.get("budget", "8/255")
    about = {
        "lm": title or reading, "N": N, "method": is_one["method"], "timesteps": is_one.get("timesteps", "one"),
        "budget": None if budget is None else number(budget, "budget"), "sigma": list(is_one.get("sigma", (0.4, 0.6))),
    }  # fmt: skip
    return row(table, model, gradient, about=about, lm=reading, steps=N, **more)
