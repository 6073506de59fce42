"""Write the card of a shipped checkpoint from what the checkpoint itself says: <name>.md beside it.

python scripts/model_card.py fashion-mini digits fashion-mini-multihead fashion-mini-vanilla fashion-mini-robust
python scripts/model_card.py cifar10-small    # with its clean accuracy
python scripts/model_card.py fashion-mini-at-linf    # and the other reference networks, with what they withstand
python scripts/model_card.py fashion-mini-trades-linf    # and the other baselines
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from rdc.classify import baselines
from rdc.classify.reference import KIND, load_reference, reference_network, shipped_references
from rdc.classify.reference import SHIPPED as REFERENCES
from rdc.denoise.checkpoints import ASSETS, load_denoiser, read_checkpoint
from rdc.experiments import experiment
from rdc.experiments.reference import ATTACKS, BALLS
from rdc.guide.classifier import SHIPPED, load_classifier, shipped_classifiers
from rdc.guide.threat import Threat
from rdc.runs.record import book_folder, write_atomic
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store
from rdc.tasks import weights_of
from rdc.train.recipes import SMALLER

LICENCES = {
    "fashion": "Fashion-MNIST, MIT, copyright 2017 Zalando SE",
    "digits": "Optical Recognition of Handwritten Digits, UCI, CC BY 4.0",
    "cifar10": "CIFAR-10, Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html",
}


def page(path: Path, meta: dict[str, Any], rows: dict[str, str], limits: str = "") -> str:
    """A card of these rows, and those that every card has, in Markdown."""
    every = {
        "file": f"{path.name}, {path.stat().st_size / 1e6:.2f} MB, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
        **({"limits": limits} if limits else {}),
        "use": "teaching and research on robustness; not for decisions about people",
        "licence": f"{meta['licence']}; data: {meta['source']}" if "licence" in meta else "MIT",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in {**rows, **every}.items())
    return f"# Model card: {path.stem}\n\n| | |\n|---|---|\n{table}\n"


def card(name: str) -> str:
    """The model card of one checkpoint, in markdown."""
    path = ASSETS / f"{name}.safetensors"
    _, meta = read_checkpoint(path, "denoiser")
    config, heads = meta["config"], "train" in meta["recipe"]
    recipe = meta["recipe"]["train"] if heads else meta["recipe"]
    settings = {k: v for k, v in {**recipe, **meta["recipe"]}.items() if k not in ("denoiser", "train")}
    last = [loss for _, loss in meta["losses"][-20:]]
    parameters = sum(p.numel() for p in load_denoiser(name).parameters())
    conditional = "EDM denoiser `D(z, sigma, y)`, conditional, with dropped classes for the unconditional case"
    multihead = "multi-head denoiser: one pass gives `D(z, sigma, y)` for every class, and the unconditional one"
    split, usual = f"train split of `{config['data']}`, {meta['images']} images", "one core of a shared x86-64 CPU"
    command = f"{'multihead' if heads else 'denoiser'} --recipe {name.removesuffix('-multihead')}"
    rows = {
        "what": multihead if heads else conditional,
        "data": f"{meta.get('source', split)} ({LICENCES[config['data']]})",
        "network": f"{words(config['unet'])}; sigma_data {config['sigma_data']}",
        **({"branch": words(config["branch"])} if config.get("branch") else {}),
        "parameters": f"{parameters}",
        "recipe": words(settings),
        "epochs": f"{recipe['steps'] * recipe['batch'] / meta['images']:.1f}",
        "command": f"`rdc train {command}{' --teacher FILE' * bool(meta['recipe'].get('start'))}`"
        + ", the recipe for a GPU; these weights took the steps above" * ("before" in settings),
        "device": f"{meta.get('device', usual + ' (fashion-mini: a few dozen steps on two)')}; other devices round differently",
        "wall time": f"{meta['seconds'] / 60:.0f} minutes",
        "loss": f"{sum(last) / len(last):.4f}, mean of the last {len(last)} recorded batches",
        **(clean_on_colour(name) if config["data"] == "cifar10" else {}),
    }
    return page(path, meta, rows)


def clean_on_colour(name: str) -> dict[str, str]:
    """What the experiment ``cifar10`` says of a denoiser as a classifier that nobody attacks."""
    store = Store.read(book_folder("results") / "cifar10.jsonl")
    words_of = {"network": name, "levels": 5}.items()
    rows = [row for row in experiment("cifar10").rows if row.model == "dc" and words_of <= row.about.items()]
    found = max((store.of(row, weights=weights_of(row)) for row in rows), key=lambda one: one.n)
    options = words(found.row.options)
    return {f"clean, first {found.n} exact test images": f"{found.accuracy('clean')}, Wilson 95 %; {options}"}


def smaller_card(name: str) -> str:
    """The model card of a denoiser that was cut out of a larger one, with what the experiment ``cifar10`` found of it."""
    path = ASSETS / f"{name}.safetensors"
    _, meta = read_checkpoint(path, "denoiser")
    config, recipe = meta["config"], meta["recipe"]
    train, last = recipe["train"], [loss for _, loss in meta["losses"][-10:]]
    rows = {
        "what": f"EDM denoiser `D(z, sigma, y)`, with a class and without, cut out of `{recipe['teacher']}`, then distilled",
        "data": f"{meta['source']} ({LICENCES[config['data']]})",
        "network": f"{words(config['unet'])}; sigma_data {config['sigma_data']}",
        "parameters": f"{sum(p.numel() for p in load_denoiser(name).parameters())}",
        "recipe": words({k: v for k, v in {**train, **recipe}.items() if k not in ("denoiser", "train") and v is not None}),
        "again": f"`rdc train denoiser --recipe {name} --teacher FILE` takes the same steps, with other noise",
        "device": "a share of one core of a shared x86-64 CPU",
        "wall time": f"{meta['seconds'] / 60:.0f} minutes, and 6 for the cut",
        "loss": f"{sum(last) / len(last):.4f}, mean of the last {len(last)} recorded batches",
        **clean_on_colour(name),
    }
    limits = "not trained for sigma outside the range; copies in JPEG are a distribution of their own"
    return page(path, meta, rows, limits)


def classifier_card(name: str) -> str:
    """The model card of a time-dependent classifier, in markdown."""
    path = SHIPPED / f"{name}.safetensors"
    _, meta = read_checkpoint(path, "classifier")
    config, recipe = meta["config"], meta["recipe"]
    probe = ", ".join(f"{k} {v}" for k, v in recipe["probe"].items())
    settings = {k: v for k, v in recipe.items() if k not in ("classifier", "threat") and not k.startswith("probe")}
    table = [
        f"sigma {r['sigma']:g}: {r['clean']} clean, {r['adversarial']} under attack, of {r['n']}"
        for r in meta["curve"][-1]["levels"]
    ]
    rows = {
        "what": "time-dependent classifier `h(z_sigma, sigma)`, to guide a diffusion model",
        "data": f"train split of `{config['data']}`, {meta['images']} images ({LICENCES[config['data']]})",
        "network": f"encoder: {words(config['encoder'])}; {config['num_classes']} classes; sigma_data {config['sigma_data']}",
        "parameters": f"{sum(p.numel() for p in load_classifier(name).parameters())}",
        "training": f"adversarial: {words(recipe['threat'])}" if recipe["threat"] else "vanilla: no attack",
        "recipe": words(settings),
        "epochs": f"{recipe['steps'] * recipe['batch'] / meta['images']:.1f}",
        "command": f"`rdc train classifier{options(recipe['threat'])}`",
        "device": "one core of a shared x86-64 CPU; other devices round differently",
        "wall time": f"{meta['seconds'] / 60:.0f} minutes",
        "held-out images": f"{'; '.join(table)} (attack: {probe})",
    }
    return page(path, meta, rows)


def colour_card(name: str) -> str:
    """The model card of a reference network of CIFAR-10; what it withstands is in the experiment ``cifar10-suite``."""
    path = REFERENCES / f"{name}.safetensors"
    _, meta = read_checkpoint(path, KIND)
    config, recipe, data = meta["config"], meta["recipe"], meta["config"]["data"]
    environment, last = meta["environment"], [loss for _, loss in meta["losses"][-10:]]
    stopped = f", stopped at step {meta['stopped']}" if "stopped" in meta else ""
    rows = {
        "what": "wide residual network with GroupNorm, images in [0, 1] to logits; a network to compare a defence with",
        "data": f"{meta['images']} images of the train split of `{data}`: {meta['source']}",
        "network": words(config),
        "parameters": f"{sum(p.numel() for p in load_reference(path).parameters())}, stored in float16",
        "training": f"adversarial: {words(recipe['attack'])}" if recipe["attack"] else "cross-entropy on clean images",
        "recipe": words({k: v for k, v in recipe.items() if k not in ("data", "attack")}),
        "command": f"`rdc train classifier --recipe {name.removeprefix(f'{data}-')} --data {data} --device cuda`",
        "device": f"{environment['device']}, {words(environment['versions'])}; other devices round differently",
        "commit": environment["commit"] or "none",
        "wall time": f"{meta['seconds'] / 60:.1f} minutes{stopped}",
        "loss": f"{sum(last) / len(last):.4f}, mean of the last {len(last)} recorded batches" if last else "not recorded",
        "measured in": "the experiment `cifar10-suite`",
    }
    return page(path, meta, rows)


def reference_card(name: str) -> str:
    """The model card of a reference network, in markdown, with what the experiment ``reference`` found of these weights."""
    path = REFERENCES / f"{name}.safetensors"
    _, meta = read_checkpoint(path, KIND)
    config, recipe, data = meta["config"], meta["recipe"], meta["config"]["data"]
    if config.get("depth"):
        return colour_card(name)
    kind = name.removeprefix(f"{data}-")
    found, (norm, eps) = measured(kind, data), BALLS[data, kind]
    union = [all(bits) for bits in zip(*(one.outcome("robust").values() for a, one in found.items() if a != "none"), strict=True)]
    attack, settings = recipe["attack"], {k: v for k, v in recipe.items() if k not in ("data", "attack")}
    rows = {
        "what": "CNN, images in [0, 1] to logits; a reference for attacks",
        "data": f"train split of `{data}`, {meta['images']} images ({LICENCES[data.removesuffix('-mini')]})",
        "network": f"four 3x3 convolutions, mean over pixels, one linear layer; {words(config)}",
        "parameters": f"{sum(p.numel() for p in reference_network(kind, data).parameters())}",
        "training": f"adversarial, PGD: {words(attack)}" if attack else "cross-entropy on clean images",
        "recipe": words(settings),
        "command": f"`rdc train classifier --recipe {kind} --data {data}`",
        "device": f"{meta['environment']['device']}, {words(meta['environment']['versions'])}; other devices round differently",
        "commit": meta["environment"]["commit"] or "none",
        "wall time": f"{meta['seconds'] / 60:.1f} minutes",
        "clean, all test images": f"{found['none'].accuracy('clean')}, Wilson 95 %",
        f"clean, first {found['pgd'].n}": f"{found['pgd'].accuracy('clean')}",
        **{f"{key}, {norm} {eps}": f"{found[key].accuracy('robust')}" for key in ATTACKS},
        f"union, {norm} {eps}": f"{Accuracy.of(sum(union), len(union))}",
        "attacks": "; ".join(f"{key}: {words(arguments)}" for key, (_, arguments) in ATTACKS.items()),
    }
    return page(path, meta, rows)


def baseline_card(name: str) -> str:
    """The model card of a baseline, in markdown; what it withstands is in the experiment ``baselines``."""
    path = baselines.SHIPPED / f"{name}.safetensors"
    _, meta = read_checkpoint(path, baselines.KIND)
    config, recipe = meta["config"], meta["recipe"]
    kind, data = name.removeprefix(f"{config['data']}-"), config["data"]
    rows = {
        "what": "network, images in [0, 1] to logits; a baseline to compare a defence with",
        "data": f"train split of `{data}`, {meta['images']} images ({LICENCES[data.removesuffix('-mini')]})",
        "network": words(config),
        "parameters": f"{sum(p.numel() for p in baselines.load_baseline(path).parameters())}",
        "recipe": words({k: v for k, v in recipe.items() if k != "data" and v}),
        "command": f"`rdc train classifier --recipe {kind} --data {data}`",
        "device": f"{meta['environment']['device']}, {words(meta['environment']['versions'])}; other devices round differently",
        "wall time": f"{meta['seconds'] / 60:.1f} minutes",
        "measured in": "the experiment `baselines`" if data == "fashion-mini" else "nothing: for tests",
    }
    return page(path, meta, rows)


def measured(kind: str, data: str) -> dict[str, Found]:
    """What the experiment ``reference`` found of a network with these weights, by attack.

    Raises:
        ValueError: if it has not been run with these weights.
    """
    store = Store.read(book_folder("results") / "reference.jsonl")
    rows = [row for row in experiment("reference").rows if (row.data, row.model) == (data, kind)]
    found = {row.about["attack"]: store.of(row, weights=weights_of(row)) for row in rows}
    if not all(one.complete for one in found.values()):
        raise ValueError(f"the attacks on {data}-{kind} are of other weights; run 'rdc experiment run reference'")
    return found


def options(threat: dict[str, Any] | None) -> str:
    """Of the command that trains a guide against a threat, the usual one up to its radius."""
    usual = vars(Threat())
    if threat and {**threat, "eps": 0} != {**usual, "eps": 0}:
        raise ValueError(f"no card for the threat {threat}; write its options here")
    if not threat:
        return " --threat none"
    return f" --eps {threat['eps']:g}" if threat["eps"] != usual["eps"] else ""


def words(settings: dict[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{k} {v}" for k, v in settings.items())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        folder, write = ASSETS, smaller_card if name in SMALLER else card
        if name in shipped_classifiers():
            folder, write = SHIPPED, classifier_card
        if name in shipped_references():
            folder, write = REFERENCES, reference_card
        if name in baselines.shipped_baselines():
            folder, write = baselines.SHIPPED, baseline_card
        path = folder / f"{name}.md"
        write_atomic(path, write(name).encode())
        print(path)
