"""What do the settings of RDC give on CIFAR-10 with the published denoiser, as printed and as released?

Rows of Tables 1 and 2 and of Figure 2(b). Printed are the weight and the update of the paper, taken literally, and AutoAttack;
mi-fgsm is the update that fits the budget of the paper; released are the density and the 1000 nodes of the code, Adam without a
budget, noise of one seed, and APGD-DLR alone, which AutoAttack starts five times where it is chosen by name. The heads were not
published, so that every class costs an evaluation. Tables with other networks, the Lagrange attack and CIFAR-100 are left out.
"""

from typing import Any

from rdc.experiments._paper import CONDITIONAL, UNCONDITIONAL, row

DC: dict[str, dict[str, Any]] = {
    "printed": {"denoiser": CONDITIONAL, "kind": "vp-printed", "levels": 1000, "sigma_min": None, "noise": "shared"},
    "released": {"denoiser": CONDITIONAL, "kind": "edm-released", "levels": 1000, "sigma_min": None, "noise": "shared"},
}
RDC: dict[str, dict[str, Any]] = {
    "printed": {**DC["printed"], "unconditional": UNCONDITIONAL, "lm": "printed"},
    "mi-fgsm": {**DC["printed"], "unconditional": UNCONDITIONAL, "lm": "mi-fgsm"},
    "released": {**DC["released"], "unconditional": UNCONDITIONAL, "lm": "released"},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "printed": {"version": "standard", "steps": 100, "queries": 5000},
    "mi-fgsm": {"version": "standard", "steps": 100, "queries": 5000},
    "released": {"version": "custom", "attacks": ["apgd-dlr"], "steps": 100},
}
THREATS: tuple[dict[str, Any], ...] = ({"norm": "Linf", "eps": "8/255"}, {"norm": "L2", "eps": "0.5"})
FLOW = {"eps": "0.05", "steps": 100}

ROWS = (
    *(row("1", r, "dc", None, {}, DC[r], 8) for r in DC),
    *(row("1", r, "rdc", None, {}, {**RDC[r], "gradient": "bpda"}, 8) for r in RDC),
    *(row("1", r, "rdc", "autoattack", {**ATTACKS[r], **t}, {**RDC[r], "gradient": "bpda"}, 1) for t in THREATS for r in RDC),
    *(row("1", r, "dc", "autoattack", {**ATTACKS[r], **t}, DC[r], 1) for t in THREATS for r in DC),
    *(row("1", r, "rdc", "stadv", FLOW, {**RDC[r], "gradient": "bpda"}, 1) for r in RDC),
    *(row("1", r, "dc", "stadv", FLOW, DC[r], 1) for r in DC),
    *(
        row("2", r, "rdc", "autoattack", {**ATTACKS[r], **THREATS[0]}, {**RDC[r], "gradient": g, "steps": 1}, 1, priority=1)
        for g in ("exact", "bpda")
        for r in RDC
    ),
    *(
        row("figure 2b", "mi-fgsm", "rdc", "autoattack", {**ATTACKS["released"], **THREATS[0]},
            {**RDC["mi-fgsm"], "gradient": "bpda", "budget": budget}, 1, priority=2)
        for budget in ("4/255", "16/255")
    ),
)  # fmt: skip
