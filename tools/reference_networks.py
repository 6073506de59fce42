"""What the reference networks withstand: results/reference_networks.json, one bit an image for each attack and for their union.

    python tools/reference_networks.py [--n 96] [--only NAME ...]

Each network is attacked in the ball of its training, the undefended one in that of ``at-linf``: PGD with 20 steps on the margin;
the same with 50 steps, then towards each of the nine wrong classes; Square with 1 000 queries, which asks for no gradient.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.attack import pgd
from rdc.attack.blackbox import square
from rdc.classify.networks import CNN
from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise.checkpoints import tensors_sha256
from rdc.evaluate import Accuracy, accuracy, predict
from rdc.runs.record import stored_record, write_record
from rdc.train.reference import RECIPES, AttackRecipe

RESULTS = Path(__file__).parents[1] / "results"
ATTACKS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "pgd": (pgd, {"steps": 20, "loss": "margin"}),
    "targeted": (pgd, {"steps": 50, "loss": "margin", "targets": 9}),
    "square": (square, {"queries": 1000}),
}
SEED = 0


def ball(kind: str, data: str) -> AttackRecipe:
    """Norm and radius in which a network is attacked."""
    found = RECIPES[data]["at-linf" if kind == "cnn" else kind].attack
    assert found is not None
    return found


def attacked(network: CNN, x: Tensor, y: Tensor, within: AttackRecipe, name: str) -> Tensor:
    """Whether each image is classified correctly after an attack of :data:`ATTACKS`, shape ``(N,)``."""
    attack, options = ATTACKS[name]
    x_adv = attack(network, x, y, norm=within.norm, eps=within.eps, seed=SEED, **options)
    return predict(network, x_adv, len(x)) == y


def row(right: Tensor) -> dict[str, Any]:
    """One bit an image, 1 if it is right, with their number and its interval."""
    return {"right": "".join(str(int(bit)) for bit in right), "accuracy": Accuracy.of(int(right.sum()), len(right))}


def measure(kind: str, data: str, n: int) -> dict[str, Any]:
    """Everything about one network: on all test images, and on the first ``n`` of them clean and under every attack."""
    network, within, test = reference_network(kind, data), ball(kind, data), load(data)
    x, y = test.x[:n], test.y[:n]
    right = {"clean": predict(network, x, n) == y}
    for name in ATTACKS:
        right[name] = attacked(network, x, y, within, name)
        print(f"{data}-{kind} {name}: {row(right[name])['accuracy']}", flush=True)
    right["union"] = right["pgd"] & right["targeted"] & right["square"]
    whole = accuracy(network, test.x, test.y, batch=100)
    print(f"{data}-{kind} union: {row(right['union'])['accuracy']}; all test images, clean: {whole}", flush=True)
    rows = {name: row(bits) for name, bits in right.items()}
    found = {"norm": within.norm, "eps": within.eps, "tensors_sha256": tensors_sha256(network.state_dict()), "test": whole}
    return {**found, "rows": rows}


def main() -> None:
    """Attack all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=96, help="how many test images, the first ones")
    parser.add_argument("--only", nargs="*", help="names of the networks to measure again; the rest of the record stays")
    args, start = parser.parse_args(), time.perf_counter()
    config = {"n": args.n, "seed": SEED, "attacks": {name: options for name, (_, options) in ATTACKS.items()}}
    before = stored_record("results/reference_networks.json") if args.only else {}
    if before and before["config"] != config:
        parser.error("the record was made with other options; measure all networks")
    names = {f"{data}-{kind}": (kind, data) for data in RECIPES for kind in RECIPES[data]}
    again = {name: measure(*names[name], args.n) for name in args.only or names}
    results = {name: again.get(name) or before["results"][name] for name in names}
    seconds = time.perf_counter() - start + before.get("seconds", 0)
    write_record(RESULTS / "reference_networks.json", config, results, seconds)


if __name__ == "__main__":
    main()
