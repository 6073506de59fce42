"""How many images does RDC keep, as the attacker's gradient sees more of its likelihood maximisation?

Fashion-MNIST, the first test images, 512 in the main rows. "clamped" is the reading of this book's first edition, "released" that
of the released code. The classifier has the weights of the bound; in the rows of the table "weights" it has those of
the released code, on levels that are spread evenly, as there, but from 0.1 on.
"""

from itertools import product

from rdc.experiments._rows import lm, row

GRADIENTS = ("bpda", "exact", "smoothed 0.1", "smoothed 0.3", "smoothed 1", "transfer")
THREE = ("bpda", "exact", "smoothed 0.3")
EOT = (("bpda", 5), ("smoothed 0.3", 5), ("smoothed 0.3", 10))

ROWS = (
    *(row("gradient", m, n=512, priority=-1) for m in ("DC", "CNN", "AT")),
    *(lm("gradient", g, "released", n=512, priority=-1) for g in THREE),
    *(lm("gradient", g, "clamped", N=N, n=256) for N, g in product((5, 1), GRADIENTS)),
    *(lm("gradient", "smoothed 0.3", attack=a) for a in ("pgd-60", "pgd-restarts", "apgd")),
    *(row("gradient", "DC", attack=a) for a in ("pgd-60", "pgd-restarts", "apgd")),
    *(row("gradient", m, eps="16/255") for m in ("DC", "CNN")),
    *(lm("gradient", g, eps="16/255") for g in (*THREE, "transfer")),
    *(lm("gradient", g, "mi-fgsm", lm_noise="fixed") for g in THREE),
    *(lm(t, g, noise="fresh", n=32) for t, g in product(("gradient", "eot"), THREE)),
    *(lm(t, g, noise="fresh", eot=e, n=16) for t, (g, e) in product(("gradient", "eot"), EOT)),
    row("weights", "DC", n=96, kind="edm-released"),
    *(lm("weights", g, "released", n=96, kind="edm-released") for g in THREE),
    row("gradient", "DC single-head", n=16),
    *(lm("gradient", g, model="RDC single-head", n=16) for g in ("bpda", "smoothed 0.3")),
)
