"""The task *union*: which images does a model keep when each is attacked by several attacks in turn, until one breaks it?

An image is robust if no attack breaks it. The attacks run one after the other, each on the images that are left, so that the
strong and slow ones meet few of them; which of them breaks an image first depends on their order, which images are left does not.
"""

__all__ = ["members", "roots", "toy", "union", "weights"]

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks.attack import ATTACKS, TOY, builder, key, made, make_attack, on_another, test_images
from rdc.tasks.attack import toy as toy_attack
from rdc.tasks.attack import weights as weights

#: What a member says of itself; all else is an argument of its attack.
OWN = ("name", "attack", "gradient")


def union(cell: Cell, device: str = "cpu") -> Outcome:
    """Attack the images of a cell with the ``attacks`` of its row in turn.

    A member is ``{"name": ..., "attack": ..., "gradient": ..., **arguments}``: an attack on the model with a gradient (an option
    of the model; left out, the model's own). Norm and radius are those of the row.

    Returns:
        ``clean``, ``robust`` after all of them, and ``after NAME`` for each, in order.

    Raises:
        ValueError: if two members have one name, or an attack or an argument is unknown.
    """
    from rdc.evaluate.robustness import judged

    row = cell.row
    x, y, index = test_images(row.data, cell.start, cell.stop, device)
    model = made(row.model, row.data, device, key(row.options))

    def right(attacks: dict[str, Any], left: list[int]) -> list[bool]:
        if not left:
            return []
        rows = judged(model, x[left], y[left], attacks, seed=row.seed, index=index[left], block=row.block)
        return [found["right"]["draws"] for found in rows]

    alive = right({}, list(range(len(x))))
    bits = {"clean": list(alive)}
    for name, attack in members(row, device).items():
        left = [i for i, good in enumerate(alive) if good]
        for i, good in zip(left, right({name: attack}, left), strict=True):
            alive[i] = good
        bits[f"after {name}"] = list(alive)
    return Outcome({**bits, "robust": alive})


def members(row: Row, device: str) -> dict[str, Callable[..., Tensor]]:
    """Return the attacks of a row by name, each on the model with its gradient.

    Raises:
        ValueError: if two have one name, or an attack or an argument is unknown.
    """
    shared = {name: value for name, value in row.arguments.items() if name != "attacks"}
    found: dict[str, Callable[..., Tensor]] = {}
    for member in row.arguments["attacks"]:
        if member["name"] in found:
            raise ValueError(f"two attacks of a union are called {member['name']!r}")
        attack = make_attack(member["attack"], row.data, device, {**shared, **arguments(member)})
        if "gradient" in member:
            options = {**row.options, "gradient": member["gradient"]}
            attack = partial(on_another, attack, made(row.model, row.data, device, key(options)))
        found[member["name"]] = attack
    return found


def arguments(member: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the attack of a member."""
    return {name: value for name, value in member.items() if name not in OWN}


def roots(row: Row) -> list[str]:
    """Return the builder of the model, and the attacks."""
    return [builder(row.model), *dict.fromkeys(ATTACKS[member["attack"]] for member in row.arguments["attacks"])]


def toy(row: Row) -> Row:
    """Return the row at toy size: two digits, one step of the first attack and of the last of each kind, one seed."""
    given = row.arguments["attacks"]
    kinds = {given[0]["name"]: given[0], **{member["attack"]: member for member in given[1:]}}
    small = [{name: TOY.get(name, value) for name, value in member.items()} for member in kinds.values()]
    own = {name: value for name, value in row.options.items() if name != "seed"}
    return toy_attack(replace(row, options=own, arguments={**row.arguments, "attacks": small}))
