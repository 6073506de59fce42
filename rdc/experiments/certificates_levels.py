"""How many levels, which noise, and which head does a noised diffusion classifier need to answer as 124 levels do?

One noisy copy of each of 300 test images of Fashion-MNIST that fashion-mini does not hold; settings are chosen on them.
"""

from rdc.experiments._bases import RACES, SIGMAS, Base, apndc, carlini, cascade, clipped, cohen, epndc, published, reference
from rdc.runs.cell import Row

MODELS = {
    s: [
        *(epndc(s, t, antithetic=mirror) for t in (4, 8) for mirror in (False, True)),
        *(apndc(s, t) for t in (4, 8, 16)),
        *(cascade(s, 3, gap) for gap in (1.0, 4.0)),
        carlini(s),
        cohen(s),
        clipped(s),
    ]
    for s in SIGMAS
}
#: Only at the first sigma: more levels, other noise, what heads alone and levels alone change, and the reference's other seed.
MORE = [
    *(epndc(0.25, t, antithetic=mirror) for t in (2, 3, 6, 16) for mirror in (False, True)),
    *(epndc(0.25, t, form="fixed", antithetic=False, coupling="path") for t in (8, 32)),
    *(apndc(0.25, t) for t in (2, 6, 32)),
    *(apndc(0.25, t, variant="correct") for t in (8, 16)),
    *(cascade(0.25, t, gap) for t, gap in ((3, 0.5), (3, 2.0), (4, 1.0), (8, 1.0))),
    *(cascade(0.25, 8, gap, first=t) for t, gap in ((3, 1.0), (3, 2.0), (4, 2.0))),
    *RACES,
    epndc(0.25, 8, noise="fresh"),
    apndc(0.25, 8, noise="fresh"),
    *(epndc(0.25, t, "single-head") for t in (3, 4, 8)),
    epndc(0.25, 8, "single-head", coupling="per_class"),
    apndc(0.25, 8, "single-head"),
    apndc(0.25, 8, "single-head", coupling="per_class"),
    epndc(0.25, 124, form="fixed", antithetic=False),
    epndc(0.25, 124, form="released", antithetic=False),
    apndc(0.25, 124),
    apndc(0.25, 8, variant="condition-on-y"),
    reference(seed=1),
    reference(),
    published(),
]


def row(base: Base) -> Row:
    """Compare a base classifier with the 124 levels of its kind, at the first sigma."""
    known = base.sigma == SIGMAS[0] and base.model in ("epndc", "apndc", "cascade", "race")
    slow = {"reference": (published() if base.model == "apndc" else reference()).named()} if known else {}
    return base.row("noisy", {"images": "unseen", **slow}, n=300, block=100)


ROWS = tuple(row(base) for base in [base for s in SIGMAS for base in MODELS[s]] + MORE)
