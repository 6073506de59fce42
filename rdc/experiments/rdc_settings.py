"""What do budget, steps, noise, update and number of levels of likelihood maximisation change, if the attacker knows them?"""

from itertools import product

from rdc.experiments._rows import lm

TWO = ("bpda", "smoothed 0.3")
#: Step sizes at which five steps of each method move an image about as far (mean L2) as the released Adam does.
STEP_SIZES = {"literal": 7.25, "mean-l1": 0.00924, "sign": 0.068, "rmsprop": 0.0272}
BOTH = {"sign", "rmsprop"}  # methods that are attacked with both gradients

ROWS = (
    *(lm("budget", g, "mi-fgsm", lm_noise="fixed", budget=f"{b}/255", n=32) for b, g in product((2, 4, 8, 16, 32), TWO)),
    *(lm("steps", g, N=N, n=32) for N, g in product((1, 2, 5, 10), TWO)),
    *(lm("sigma", g, sigma=s, n=32) for s, g in product(((0.1, 0.2), (0.4, 0.6), (0.8, 1.2)), TWO)),
    *(
        lm("optimiser", g, method=method, step_size=size, title=method, n=32)
        for method, size in STEP_SIZES.items()
        for g in (("exact", "smoothed 0.3") if method in BOTH else ("exact",))
    ),
    *(lm("optimiser", g, title="adam", n=32) for g in ("exact", "smoothed 0.3")),
    *(lm("timesteps", g, n=32) for g in TWO),
    *(lm("timesteps", g, title="clamped, all", timesteps="all", count=4, n=32) for g in TWO),
)
