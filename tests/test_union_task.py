"""The task *union*: an image is robust if no attack of a list breaks it, whatever their order."""

from dataclasses import replace

import pytest

from rdc.runs.cell import Cell, Row
from rdc.tasks import measure
from rdc.tasks.union import members

PGD = {"attack": "pgd", "steps": 2}
SQUARE = {"name": "square", "attack": "square", "queries": 10}
ATTACKS = [{"name": "pgd", **PGD}, {"name": "targets", **PGD, "targets": 3}, SQUARE]
DC = Row("dc", {"levels": 2}, "union", {"norm": "Linf", "eps": "0.1", "attacks": ATTACKS}, data="digits", n=12, task="union")
RDC = replace(DC, model="rdc", options={"levels": 2, "steps": 1}, n=6, arguments={
    "norm": "Linf", "eps": "0.1", "attacks": [{"name": g, "gradient": g, **PGD} for g in ("bpda", "smoothed 0.3")],
})  # fmt: skip


def outcomes(row):
    return measure(Cell(row, 0, row.n)).bits


@pytest.fixture(scope="module")
def of_dc():
    return outcomes(DC)


@pytest.mark.parametrize("row", [DC, RDC])
def test_the_union_is_that_of_its_attacks_alone(row, of_dc):
    found, kept = of_dc if row is DC else outcomes(row), []
    for member in row.arguments["attacks"]:
        own = {k: v for k, v in member.items() if k not in ("name", "attack", "gradient")}
        options = {**row.options, **({"gradient": member["gradient"]} if "gradient" in member else {})}
        given = {"norm": "Linf", "eps": "0.1", **own}
        alone = replace(row, options=options, attack=member["attack"], task="attack", arguments=given)
        bits = outcomes(alone)
        assert bits["clean"] == found["clean"]
        kept.append(bits["robust"])
    assert found["robust"] == [all(image) for image in zip(*kept, strict=True)]
    assert any(found["robust"]) and not all(found["robust"]), "the attacks decide something"


def test_each_attack_leaves_fewer_images_and_their_order_does_not_matter(of_dc):
    found = of_dc
    steps = ["clean", *(f"after {member['name']}" for member in ATTACKS)]
    assert [*found] == [*steps, "robust"]
    for before, after in zip(steps, steps[1:], strict=False):
        assert all(found[before][i] >= found[after][i] for i in range(DC.n))
    assert found["robust"] == found[steps[-1]]
    backwards = replace(DC, arguments={**DC.arguments, "attacks": ATTACKS[::-1]})
    assert outcomes(backwards)["robust"] == found["robust"]


def test_attacks_need_different_names():
    with pytest.raises(ValueError, match="two attacks of a union are called 'pgd'"):
        members(replace(DC, arguments={**DC.arguments, "attacks": [ATTACKS[0], ATTACKS[0]]}), "cpu")
    with pytest.raises(ValueError, match="unknown attack 'none'"):
        members(replace(DC, arguments={**DC.arguments, "attacks": [{"name": "a", "attack": "none"}]}), "cpu")
