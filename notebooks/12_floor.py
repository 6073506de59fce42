# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (nb-floor)=
# # Where class information lies
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what is left of a {term}`diffusion classifier` when its low noise levels are left out, exactly.
# - Tell a classifier that is hard to attack from one that is only flat.
# - Choose a setting on images that do not judge it, and check that a gain is no masked gradient.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-optimal`, {ref}`nb-classifier` and {ref}`nb-adaptive`. Covers the choice of time steps in
# {cite:t}`chen2024rdc`.
#
# A diffusion classifier adds up denoising losses over noise levels. With the weights of the likelihood bound, $\sigma^{-3} d\sigma$,
# the lowest levels count most. What if we leave them out? We call the lowest level that is kept the *floor*.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
n: int = 24  # images for the exact log-odds
draws: int = 4  # draws of the noise for them, even

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

from rdc.analyse.information import averaged_log_odds, fastest, safe_radius
from rdc.certify.lipschitz import lipschitz_constant
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.experiments import experiment
from rdc.findings.evidence import Evidence, compared
from rdc.findings.side import Side
from rdc.notebook import (
    audits,
    check_parameters,
    claim,
    glue,
    out_of,
    show_table,
    show_verdicts,
    spoken,
    stored_cells,
)
from rdc.plots import plot_accuracy, style
from rdc.rng import randn
from rdc.runs.store import Found
from rdc.runs.verdict import decide_all
from rdc.schedule import Levels, levels

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
train, test = load(data, "train"), load(data, "test")
x, y = test.x[:n].to(device), test.y[:n].to(device)
own = torch.nn.functional.one_hot(y, int(train.y.max()) + 1).bool()
optimal = OptimalDenoiser(train.x, train.y).to(device)

# %% tags=["hide-input"]
def part(cell: Found, name: str) -> torch.Tensor:
    """Numbers of the images."""
    return torch.tensor(list(cell.value(name).values()))


apart = []  # every classifier, level by level
for cell in stored_cells("information"):
    line = next(iter(cell.lines.values()))
    names = [k[8:] for k in line.values if k.startswith("margin")]
    for name in sorted(names, key=lambda name: float(name.split()[1])):
        m, g = part(cell, f"margin, {name}"), part(cell, f"L1, {name}")
        apart.append(
            {
                "denoiser": cell.row.about["denoiser"],
                "draws": cell.row.about["draws"],
                "level": float(name.split()[1]),
                "right alone": cell.accuracy(f"right, {name}").correct,
                "margin": float(m.median()),
                "slope": float(g.median()),
                "radius": float((255 * m / g).median()),
            }
        )

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: right before (dashed) and after (solid) PGD with 20 steps, Linf 8/255, of 64 test images that serve only for choosing, with 95 % intervals; eight levels from the floor up to 20. Right: one level at a time, other 64 images: median over the images of margin over L1 norm of its gradient, in grey levels; the line is at 8.", "name": "fig-floor"}, "image": {"alt": "Left: the trained classifier under attack rises from a quarter at a floor of 0.1 to two thirds at floors around 1, where it meets the exact one, which is flat. Right: the radius of the trained network is near zero at low levels and meets that of the exact one above level 1"}}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
whats = {"screened": "trained", "exact": "exact"}
for i, (what, label) in enumerate(whats.items()):
    cells = stored_cells("floor", what=what)
    at = [c.row.about["floor"] for c in cells]
    for outcome, line in (("clean", "--"), ("robust", "-")):
        values = [c.accuracy(outcome) for c in cells]
        name = label if outcome == "robust" else None
        plot_accuracy(axes[0], at, values, name, ls=line, color=f"C{i}")
for i, (kind, draws_) in enumerate({"trained": 1, "optimal": 2}.items()):
    mine = [r for r in apart if (r["denoiser"], r["draws"]) == (kind, draws_)]
    at, radii = ([r[k] for r in mine] for k in ("level", "radius"))
    axes[1].plot(at, radii, "o-", color=f"C{i}")
axes[1].axhline(8, color="grey", lw=1)
axes[0].set(xscale="log", xlabel="floor (model units)")
axes[0].legend(loc="lower right")
axes[1].set(xscale="log", xlabel="level (model units)")
axes[1].set(ylabel="radius, first order (/255)")
plt.show()

# %% tags=["remove-cell"]
by_floor = {c.row.about["floor"]: c.accuracy("robust") for c in stored_cells("floor", what="screened")}
best, lowest = max(by_floor.values(), key=lambda a: a.value), by_floor[min(by_floor)]
glue("floor-kept", f"{best.correct} of {best.n} images in place of {lowest.correct}")

# %% [markdown]
# Leaving the low levels out costs the trained classifier no accuracy, and under attack it keeps {glue:text}`floor-kept`.
# The exact classifier, whose {term}`denoiser` is the posterior mean over the stored images, hardly cares where the {term}`floor` is. Why?
#
# ## What is left above a floor
#
# Write $z = 2x - 1$; here $s$ is a level in model units, as $\sigma$, and $d$ the number of values of an image. Write $\ell_k(z, \sigma) = \mathbb E \lVert z - D_k(z + \sigma \varepsilon, \sigma) \rVert^2$, and $p_\sigma(\cdot \mid k)$
# for the density of the images of class $k$ after noise of level $\sigma$.
#
# :::{prf:proposition} A floor is one noisy look
# :label: prop-floor
# Let $D_k(u, \sigma) = u + \sigma^2 \nabla \log p_\sigma(u \mid k)$ be exact, and the classes have bounded support. Then for all $s > 0$
#
# $$\Lambda_s(z) := \int_s^\infty \frac{\ell_j - \ell_y}{\sigma^3}\, d\sigma = \mathbb E \log \frac{p_s(z + s \varepsilon \mid y)}{p_s(z + s \varepsilon \mid j)} .$$
#
# All levels from $s$ on, together, are the log-odds of the image *seen through noise $s$*, averaged over the noise.
# :::
#
# :::{prf:proof}
# $\varphi = \log p_\sigma$ obeys the heat equation $\partial_\sigma \varphi = \sigma (\Delta \varphi + \lVert \nabla \varphi \rVert^2)$. With
# Stein's identity, $\mathbb E[\varepsilon \cdot \nabla \varphi] = \sigma \mathbb E \Delta \varphi$,
#
# $$\frac{d}{d\sigma} \mathbb E \varphi(z + \sigma \varepsilon) = \sigma\, \mathbb E [2 \Delta \varphi + \lVert \nabla \varphi \rVert^2] .$$
#
# The loss is $\mathbb E \lVert \sigma \varepsilon + \sigma^2 \nabla \varphi \rVert^2 = \sigma^2 d + \sigma^4\, \mathbb E [2 \Delta \varphi + \lVert \nabla
# \varphi \rVert^2]$, hence $\frac{d}{d\sigma} \mathbb E \varphi = \sigma^{-3} \ell_k - d / \sigma$. The last term is the same for all classes, and
# the log-odds vanish as $\sigma \to \infty$ because the supports are bounded. Integrate. $\square$
# :::
#
# It is the pointwise form of the identity of {cite:t}`guo2005immse`; see {ref}`nb-optimal` for the gap without a floor.
#
# ## How fast it can change
#
# :::{prf:proposition} Slope and curvature above a floor
# :label: prop-floor-slope
# With $\delta_{kl}$ the largest distance between an image of class $k$ and one of class $l$, and $C_k$ the posterior covariance,
#
# $$\nabla \Lambda_s = \frac{\mathbb E [D_y - D_j]}{s^2}, \qquad \lVert \nabla \Lambda_s \rVert \le \frac{\delta_{yj}}{s^2},$$
#
# $$\nabla^2 \Lambda_s = \frac{\mathbb E [C_y - C_j]}{s^4}, \qquad \lVert \nabla^2 \Lambda_s \rVert \le \frac{\max(\delta_{yy}, \delta_{jj})^2}{4 s^4} .$$
#
# If the nearest image $z_k$ of each class is the only nearest one, then as $s \to 0$
#
# $$s^2 \Lambda_s \to \tfrac12 (\lVert z - z_j \rVert^2 - \lVert z - z_y \rVert^2), \qquad s^2 \nabla \Lambda_s \to z_y - z_j .$$
#
# As $s \to \infty$ the same holds with the class means in the place of $z_y$ and $z_j$.
# :::
#
# :::{prf:proof}
# Differentiate $\log p_s$ twice: $\nabla \log p_s = (D - u) / s^2$ and $\nabla^2 \log p_s = C / s^4 - I / s^2$; what is common cancels. $D_k$ is a
# convex combination of images, and a variable between two ends that are $\delta$ apart has a variance of at most $\delta^2 / 4$. For the ends, the
# softmax over images becomes one-hot, or uniform. $\square$
# :::
#
# So a tempting argument is wrong. A higher floor makes the classifier flatter, as $s^{-2}$; but its {term}`margin` falls
# as $s^{-2}$, too. To first order the way to the border is margin over slope, and at both ends the factor cancels. What changes is *what is
# compared*: two stored images at a low floor, as in {ref}`nb-optimal`, and two class means at a high one.
#
# Check it on the whole training set. The radius is the margin over the L1 norm of its gradient, in grey levels.

# %%
with torch.no_grad():
    at_one = optimal.log_density(2 * x - 1, 1.0)
rival = at_one.masked_fill(own, -torch.inf).argmax(1)


def odds_and_slope(s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Averaged log-odds (nats) and their gradient (image units)."""
    point = x.clone().requires_grad_()
    odds = averaged_log_odds(optimal, point, y, rival, s, draws, seed)
    slope = torch.autograd.grad(odds.sum(), point)[0].flatten(1)
    return odds.detach(), slope


rows = []
for s in (0.1, 0.5, 1.5, 5.0, 20.0):
    odds, slope = odds_and_slope(s)
    rows.append(
        {
            "floor s": s,
            "right": int((odds > 0).sum()),
            "s² log-odds": float((s**2 * odds).median()),
            "s² slope": float((s**2 * slope.norm(p=1, dim=1)).median()),
            "radius": float((255 * odds / slope.norm(p=1, dim=1)).median()),
        }
    )
show_table(rows, f"The exact classifier above a floor, {n} images")

# %% [markdown]
# While $s^2$ changes by a factor of 40 000, the radius changes little. Being flat is no source of robustness, and a floor can add
# no information ({ref}`ex-floor-information`).
#
# The bound of {prf:ref}`prop-cert-lipschitz` ({ref}`nb-lipschitz`) holds for *any* denoiser in the box. Over all levels from $s$ on it sums to
# $8 d (\sqrt{2 / \pi} / (3 s^3) + 1 / (2 \sqrt d s^2))$ per unit of the image, and is far above that of the exact one:

# %% tags=["hide-input"]
rows = []
for s in (0.5, 1.5, 5.0):
    grid = levels("elbo", 2000, sigma_min=s, sigma_max=1e4)
    all_levels = Levels(grid.sigma, grid.weight)
    size = x[0].numel()
    any_denoiser = lipschitz_constant(all_levels, size, difference=True)
    met = odds_and_slope(s)[1].norm(dim=1).max()
    bound = 2 * 2 * size**0.5 / s**2  # no two images are further apart
    rows.append(
        {
            "floor s": s,
            "steepest met": float(met),
            "bound, exact denoiser": bound,
            "bound, any denoiser": any_denoiser,
        }
    )
show_table(rows, "Slope of the log-odds, nats per unit of L2 distance")

# %% [markdown]
# ## What the trained network knows, level by level
#
# So the gain must come from the network. The table takes both classifiers apart, as {numref}`fig-floor` does on the right: for
# a low and a high level alone, how many of 64 images it gets right, margin (nats) and slope, and the way to the border to
# first order.

# %% tags=["hide-input"]
every = sorted({r["level"] for r in apart})
shown = [r for r in apart if r["level"] in every[::5]]
show_table(
    [{k: v for k, v in r.items() if k != "draws"} for r in shown],
    "One level at a time, medians of 64 images",
)
low = [r["right alone"] for r in apart if r["denoiser"] == "trained"][:3]
glue("floor-low-right", f"{min(low)} to {max(low)} of 64 images")

# %% [markdown]
# The exact denoiser *remembers*: at low noise it returns a stored image of the class that it is asked for, and margins are
# hundreds to thousands of nats. The trained one has learned to take away noise. At low noise it does that without the label: its
# margin is no larger than at high noise while its slope is far larger, so that hardly any distance to the border is left, and each of
# the three lowest levels alone is right on {glue:text}`floor-low-right`, where a guess has six. Above a
# level of about 1 both know the class, at similar distances.
#
# The classifier adds its levels up. In the sum of the trained one the low levels add little to the margin, and most of the slope:
# an attacker steers what says nothing about the class. A floor removes that. For the exact classifier the low levels are the
# memory that makes it a nearest-neighbour rule ({ref}`nb-optimal`), and there is nothing to remove.
#
# ## Is it so?
#
# Every floor is compared with none on the 64 images of {numref}`fig-floor`, by the one rule of the book and corrected together, so
# that nothing was picked. Then the exact classifier with the trained one, at the lowest floor and at 1.

# %% tags=["hide-input"]
def kept(what: str, floor: float) -> Side:
    """Images that are right after PGD."""
    return Side("floor", {"what": what, "floor": floor})


trained = {s: kept("screened", s) for s in (0.2, 0.35, 0.5, 0.7, 1.0, 1.5)}
none = kept("screened", 0.1)
pairs = [Evidence(side, none) for side in trained.values()]
pairs += [Evidence(kept("exact", 0.1), none)]
pairs += [Evidence(kept("exact", 1.0), trained[1.0], equal=0.2)]
words = [f"a floor of {s:g} keeps more" for s in trained]
words += ["the exact one keeps more"]
words += ["with a floor of 1 as many, up to 20 points"]
found = [compared(pair) for pair in pairs]
_, verdicts = decide_all([one[0] for one in found if one])
show_verdicts(
    dict(zip(words, verdicts, strict=True)),
    "After PGD with 20 steps, Linf 8/255, corrected together",
)

# %% [markdown]
# ## Judged on other images
#
# A number for a classifier needs images that did not choose it. The floor was chosen on test images from number 512 on, by a rule
# that was written down first: most images right after the attack. The model with it is called `dc-floor`. The next table
# is about images from number 0 on, each judged by *all* attacks in turn: PGD through every gradient that the model has, restarts,
# nine targets (`strong`), and, where the table says `all`, APGD and Square, which needs no gradient. Rows that were not run are missing.

# %% tags=["hide-input"]
def first_of(cell: Found) -> str:
    """Name of the first attack of a union."""
    return str(cell.row.arguments["attacks"][0]["name"])


judged = [
    {
        "model": spoken(c.row.about["model"]),
        "attacks": c.row.about["attacks"],
        "clean": str(c.accuracy("clean")),
        "after the first": out_of(c.accuracy(f"after {first_of(c)}")),
        "after all": str(c.accuracy("robust")),
    }
    for c in stored_cells("union")
    if c.row.about.get("N", 5) == 5 and not c.row.about.get("noise seed")
]
show_table(judged, "Linf 8/255, union of attacks; LM as released, N = 5")

# %% [markdown]
# Is the gain a masked gradient ({ref}`nb-adaptive`)? A masked gradient shows as an attack that finds what PGD did not: adaptive
# steps, all nine target classes, an attack without gradients. Compare the last two columns. The verdicts are on the images that
# both sides have.

# %% tags=["hide-input"]
def under(model: str, outcome: str = "robust", **words: object) -> Side:
    """Images that a model keeps under the union."""
    return Side("union", {"model": model, **words}, outcome)


alone, first = under("dc-floor"), under("dc-floor", "after pgd")
behind, plain = under("rdc-floor"), under("dc")
lm = under("rdc", **{"N": 5, "noise seed": 0, "attacks": "strong"})
pgd = {"attack": "pgd", "gradient": "plain", "steps": 20}
many = Side("floor-judged", {"model": "DC floor", **pgd})
weak = Side("rdc-gradient", {"model": "DC", "eps": 8 / 255, **pgd})
questions = {
    "with a floor more images survive PGD": Evidence(many, weak),
    "and more survive all attacks": Evidence(alone, plain),
    "other attacks are no stronger than PGD": Evidence(
        alone, first, bound=-0.05
    ),
    "a floor beats likelihood maximisation": Evidence(alone, lm),
    "likelihood maximisation adds to a floor": Evidence(behind, alone),
    "adversarial training beats a floor": Evidence(under("at-linf"), alone),
}
made = {k: compared(v) for k, v in questions.items()}
said = {k: decide_all([v[0]])[0] for k, v in made.items() if v}
show_verdicts(said, "By the one rule, on the images of both sides")
if open_ := [k for k, v in made.items() if not v]:
    print("not run here yet:", *open_, sep="\n  ")

# %% [markdown]
# And is the attack itself to be believed that leaves so much standing? {ref}`nb-adaptive-audit` asks it, on a few images, whether its
# gradient does what it forecasts and whether it finds adversarial examples that were planted.

# %% tags=["hide-input", "hide-output"]
lines = audits("floor-audit")
row = experiment("floor-audit").rows[0]
ball = f"{row.arguments['norm']} {row.arguments['eps']}"
show_table(
    lines, f"Audit of PGD-{row.arguments['steps']}, {row.n} images, {ball}"
)
heard = {
    said: ", ".join(
        line["attack on"].replace(", ", " with ", 1)
        for line in lines
        if line["to be believed"] == answer
    )
    for said, answer in (("believes", "yes"), ("rejects", "no"))
}
glue(
    "floor-audit",
    "; ".join(f"it {said} the attack on {w}" for said, w in heard.items() if w)
    or "it was not run",
)

# %% [markdown]
# The audit's answer: {glue:text}`floor-audit`. What a rejected attack leaves standing is an upper bound, and no evidence.
#
# ## Choose, then judge
#
# Whoever looks at many settings finds one that looks good. Three habits keep it honest: the images that choose are not the
# images that judge; the rule is written down before the rows are computed; and every setting that was tried is in the record.
# Here the choice is not delicate: all floors between 0.7 and 1.5 do as well, within what 64 images can tell.
#
# What this does not say: everything is Fashion-MNIST and one small network. The place of the good floor is set by the distance
# of the classes and by what the network has learned. An author of {cite:t}`chen2024rdc` recommended levels from 0.5 to 3 in a public thread
# of the code (August 2024), for CIFAR-10.
#
# ## What to remember
#
# - All levels from $s$ on are one exact thing: the log-odds of the image seen through noise $s$, averaged.
# - Flat is not robust. Margin and slope fall together; their ratio decides.
# - At low noise the trained denoiser of these images hardly needs the class, and knows little about it. Look, then leave such levels
#   out, or train them.
# - A defence is compared with a classifier whose settings were chosen as carefully as its own.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-floor-information
# :::
# **No floor adds information** (10 minutes, medium). Show that the expected $\log p(z_s \mid y) - \log p(z_s)$, which is
# $I(Y; z_s)$ in nats, cannot rise with the floor. Then estimate it for the exact classifier at floors 0.5 and 5, for images drawn
# from its own model: a stored image plus noise.
#
# :::{hint}
# :class: dropdown
# $Y \to z_s \to z_t$ is a Markov chain for $s < t$. `optimal.posterior(z, s)` gives $p(y \mid z_s)$.
# :::

# %%
# your code here
information = {0.5: None, 5.0: None}  # nats

# %%
# check
known = [information[s] for s in (0.5, 5.0)]
fine = None not in known and abs(known[0] - 2.3) < 0.02
fine = fine and abs(known[1] - 0.98) < 0.15
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-floor-information
# :label: sol-floor-information
# :class: dropdown
# :::
# More noise is a channel behind the first: $z_t$ depends on $Y$ only through $z_s$. The data-processing inequality says
# $I(Y; z_t) \le I(Y; z_s)$. So a floor can only help a classifier whose low levels are wrong, or easily fooled.

# %%
for s in information:
    some = torch.arange(0, len(train), len(train) // 200)
    z = 2 * train.x[some].to(device) - 1
    z = z + s * randn(z.shape, "information", seed, like=z)
    share = optimal.posterior(z, s)[torch.arange(len(z)), train.y[some]]
    information[s] = float((10 * share).log().mean())
print({s: round(value, 2) for s, value in information.items()})

# %% tags=["remove-cell"]
claim(0 < information[5.0] < information[0.5] < 2.31)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-floor-radius
# :::
# **A certificate from curvature** (15 minutes, hard). Let $m$ be the margin $\Lambda_s$ at an image, $g$ the norm of its gradient, and
# $h$ a bound of its Hessian everywhere ({prf:ref}`prop-floor-slope`). Within which L2 radius does the exact classifier keep its answer
# between these two classes? Compute it for $m = 3$, $g = 2$, $h = 8$.
#
# :::{hint}
# :class: dropdown
# Taylor: the margin at distance $r$ is at least $m - g r - \tfrac12 h r^2$.
# :::

# %%
# your code here
radius_of_three = None

# %%
# check
fine = radius_of_three is not None and abs(radius_of_three - 0.651) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-floor-radius
# :label: sol-floor-radius
# :class: dropdown
# :::
# The root of $m = g r + \tfrac12 h r^2$ is $r = 2 m / (g + \sqrt{g^2 + 2 h m})$. It nears $m / g$ where $h$ is small, at a high floor; at a
# low one $h \sim s^{-4}$ makes it useless, and the {term}`certificate` of the nearest neighbour ({ref}`nb-optimal`) takes over.

# %%
radius_of_three = safe_radius(3.0, 2.0, 8.0)
for s in (0.5, 5.0):
    odds, slope = odds_and_slope(s)
    pair = int(y[0]), int(rival[0])
    rate, bend = fastest(optimal, *pair, s)
    m, g = float(odds[0]), float(slope[0].norm())
    print(f"floor {s}: m / g {m / g:.2f}, proved {safe_radius(m, g, bend):.2f}")

# %% tags=["remove-cell"]
claim(abs(radius_of_three - 0.651) < 1e-3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-floor-one
# :::
# **One level** (10 minutes, easy). How good is the classifier with a single level? Build it for $\sigma = 3$ from the shipped heads,
# with one draw of noise, and count how many of the test images in `x` it gets right. How many network evaluations does an
# answer take, and how many did the eight levels take?
#
# :::{hint}
# :class: dropdown
# `Levels(sigma, weight)` takes two tensors of one float64 number each; `DiffusionClassifier.evaluations` counts.
# :::

# %%
# your code here
right_alone, evaluations = None, None

# %%
# check
top = Levels(*torch.tensor([[3.0], [1.0]], dtype=torch.float64))
model = load_denoiser(f"{data}-multihead", device=device)
model = DiffusionClassifier(model, top, seed=seed)
alone = int((predict(model, x) == y).sum())
fine = right_alone is not None and abs(right_alone - alone) <= n / 20
fine = fine and evaluations == 1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-floor-one
# :label: sol-floor-one
# :class: dropdown
# :::
# With heads one evaluation serves all classes, so an answer takes one, where eight levels took eight.

# %%
one = Levels(*torch.tensor([[3.0], [1.0]], dtype=torch.float64))
heads = load_denoiser(f"{data}-multihead", device=device)
single = DiffusionClassifier(heads, one, seed=seed)
right_alone = int((predict(single, x) == y).sum())
evaluations = single.evaluations
print(f"{right_alone} of {n} right, {evaluations} evaluation each")

# %% tags=["remove-cell"]
claim(right_alone > n / 2 and evaluations == 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The classifier and its time steps are from {cite:t}`chen2024rdc`.
