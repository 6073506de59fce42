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
# (gpu)=
# # Run it on your GPU
#
# :::{admonition} What you will be able to do
# :class: tip
# - Run the tables of the papers with their own networks, as printed and as released, with one command each.
# - Say before it starts what it costs, and stop it where you like.
# :::
#
# **Time** 15 minutes, and what the tables below say · **Needs** {ref}`nb-colour`. Covers the tables of {cite:t}`chen2024rdc`,
# {cite:t}`chen2024ndc` and {cite:t}`kawar2023guidance`.
#
# The papers' networks are large, so this book measures with small ones. Whoever has the published files and a GPU can ask
# the same questions of the originals. **None of the rows of this page was run here.** What has run in the tests, on random weights and twenty
# images, is the path that they take.

# %% tags=["parameters"]
speed: float = 5000.0  # evaluations of the denoiser that your GPU does a second

# %% tags=["hide-input"]
from rdc.cli.forecast import evaluations, files_of
from rdc.experiments import experiment
from rdc.experiments._paper import ORIGINS, TRAINED
from rdc.notebook import check_parameters, claim, show_table
from rdc.runs.cell import Row
from rdc.runs.record import stored_record

check_parameters()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Network evaluations of each experiment, at most, on a logarithmic axis: the campaign with the small network of the book (grey), and those with the published networks (orange). A gradient counts as three.", "name": "fig-gpu"}, "image": {"alt": "Four bars: the three experiments of the papers are far longer than the campaign with the small network", "width": "80%"}}
import matplotlib.pyplot as plt

from rdc.plots import style

style()
names = ("cifar10", "paper-guidance", "paper-rdc", "paper-ndc")


def classes(row: Row) -> int:
    """Classes of the data set of a row."""
    return 1000 if row.data == "imagenet-128" else 10


cost = {
    name: sum(r.n * evaluations(r, classes(r)) for r in experiment(name).rows)
    for name in names
}
fig, ax = plt.subplots(figsize=(6.6, 2.2))
shades = ["#949494" if name == "cifar10" else "#de8f05" for name in cost]
ax.barh(list(cost), list(cost.values()), color=shades)
ax.set(xscale="log", xlim=(1e5, 2e12), xlabel="network evaluations")
ax.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# ## What to download
#
# Images of CIFAR-10 (`cifar-10-binary.tar.gz`, unpacked) lie in the folder that the variable `RDC_DATA` names; everything else
# in the folder where you start. A command that misses a file says which, and where it comes from. Nothing of a file is run:
# weights are read as tensors. The exceptions are `inception.py`, your own code, and the file that it loads.

# %% tags=["hide-input"]
needed = {name: experiment(name).rows for name in names[1:]}
files = dict.fromkeys(
    str(file) for rows in needed.values() for file in files_of(rows)
)
table = []
for file in [f for f in files if f in ORIGINS] + ["cifar10-*.pt"]:
    users = [
        name
        for name, rows in needed.items()
        if any(f.match(file) for f in files_of(rows))
    ]
    origin = ORIGINS.get(file, TRAINED)
    table.append(
        {"file": file, "where from": origin, "for": ", ".join(users)}
    )
show_table(table, "Files, and the experiments that read them")

# %% [markdown]
# The features of the Frechet distance are those of a network that is yours to choose; the papers take Inception. As a TorchScript file
# it makes a module of a few lines, `inception.py`:
#
# ```python
# import torch
#
#
# class Inception(torch.nn.Module):
#     def __init__(self):
#         super().__init__()
#         self.net = torch.jit.load("inception-2015-12-05.pt")
#
#     def forward(self, x):
#         return self.net((255 * x).byte(), return_features=True)
#
#
# def network():
#     return Inception()
# ```
#
# ## Three commands
#
# Convert the weights, once; run for as long as you like; put the results beside those of the book:
#
# ```console
# $ rdc convert edm-cifar10-32x32-cond-vp.pkl edm-cifar10-32x32-cond-vp.safetensors
# $ rdc convert edm-cifar10-32x32-uncond-vp.pkl edm-cifar10-32x32-uncond-vp.safetensors
# $ rdc experiment run paper-rdc --minutes 60 --device cuda --block 32 --out gpu1
# $ rdc experiment merge gpu1
# ```
#
# `paper-ndc` and `paper-guidance` are started in the same way; the latter's denoiser is converted by
# `rdc convert 128x128_diffusion.pt adm-imagenet-128.safetensors`. Before a campaign starts it measures your GPU for half a minute,
# and prints evaluations and hours. A cell that is not expected to end in the time that is left is passed over: a smaller `--block` lets more
# of them fit. Killed and started again, it goes on; {ref}`beyond` spreads it over several machines.
#
# Try the path first, without any file: `rdc experiment run paper-guidance --toy --out try`.
#
# ## Fill it
#
# `--block` is the number of images of a cell. Those of the book suit a CPU; a GPU wants more, as many as its memory takes. Start **one**
# process: several on one GPU take turns, and one that launches many small kernels, such as likelihood maximisation, waits for all others
# at each of them.
#
# What comes out of an hour depends on how much of the bare network's speed is left in what is made of it:

# %% tags=["hide-input"]
speeds = stored_record("results/bench-h100.json")
rows = [
    {
        "what": name.removeprefix("evaluations a second, "),
        "evaluations a second": f"{one['value']:,.0f}",
        "of the bare network": f"{one['ratio_to_bare']:.2f}",
    }
    for name, one in speeds["results"].items()
]
show_table(rows, f"Small denoiser of clothes, {speeds['environment']['device']}")

# %% [markdown]
# A gradient counts its forward evaluations only. Likelihood maximisation is slow because each of its steps has one level and waits for
# the one before: there is little to do at a time. The network alone gains much by `torch.compile`.
#
# The numbers are for bfloat16. Attacks compute in float32, and without TF32: {ref}`nb-gradients-bits` shows why.
#
# ## What comes out
#
# One line for each cell in `gpu1/paper-rdc.jsonl`, with one bit for each image, the hashes of code and weights, and the seconds.
# `rdc report paper-rdc` prints the table with counts and intervals, `rdc verify paper-rdc` computes some cells again. Rows
# say in `table` and `reading` which number of the paper they stand for; {doc}`/book/experiments` lists what has none, and why.
#
# ## What it costs
#
# An evaluation is one pass of one image through the denoiser. Images that are broken early cost less, so these are upper ends.

# %% tags=["hide-input"]
table = []
for name in names:
    rows, hours = experiment(name).rows, cost[name] / speed / 3600
    table.append(
        {
            "experiment": name,
            "rows": len(rows),
            "evaluations": f"{cost[name]:.2g}",
            "hours": f"{hours:,.0f}" if hours > 9 else f"{hours:.1g}",
        }
    )
show_table(table, f"At {speed:,.0f} evaluations a second (parameter speed)")

# %% tags=["remove-cell"]
claim(cost["cifar10"] < min(v for k, v in cost.items() if k != "cifar10"))

# %% [markdown]
# Most of it is the price of the printed settings: a thousand noise levels, ten classes one by one, and AutoAttack, with a hundred steps
# of each of its gradient attacks and thousands of queries. The finding does not need them. The campaign of {ref}`nb-colour`, `rdc experiment run cifar10 --device cuda`, needs no file
# of weights, and asks the main question with a small network.
#
# ## What to remember
#
# - A table of a paper is data: rows, files, settings. Running it is one command, and the cost is known before.
# - What was not run says so.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gpu-hours
# :::
# **Before it starts** (5 minutes, easy). A classifier has 1000 levels and ten classes. PGD with 100 steps climbs the {term}`margin`, so a step has a pass for all classes and a gradient for two of them; a gradient counts as three evaluations. How many evaluations does an image take? How many hours do 512 images take at 5000 evaluations a second?
#
# :::{hint}
# :class: dropdown
# A step takes $1000 \cdot (10 + 2 \cdot 3)$.
# :::

# %%
# your code here
one_image, hours_512 = None, None

# %%
# check
fine = one_image == 1_600_000 and abs((hours_512 or 0) - 45.5) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gpu-hours
# :label: sol-gpu-hours
# :class: dropdown
# :::
# Two days for one cell of a table. With 16 levels it is less than an hour.

# %%
one_image = 100 * 1000 * (10 + 2 * 3)
hours_512 = 512 * one_image / 5000 / 3600
print(f"{one_image} evaluations, {hours_512:.1f} hours")

# %% tags=["remove-cell"]
claim(hours_512 * 16 / 1000 < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gpu-hour
# :::
# **What an hour buys** (5 minutes, easy). You stop that attack after one hour. How many images are finished? If six of them survive, how wide is the interval of the {term}`robust accuracy`, from its lower to its upper end?
#
# :::{hint}
# :class: dropdown
# Divide, and round down. `Accuracy.of(correct, n)` of {py:mod}`rdc.evaluate` has `low` and `high`.
# :::

# %%
# your code here
finished, width = None, None

# %%
# check
fine = finished == 11 and abs((width or 0) - 0.51) < 0.02
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gpu-hour
# :label: sol-gpu-hour
# :class: dropdown
# :::
# Enough to see that the path works, and to tell zero from all; for a comparison take more images, or fewer levels.

# %%
from rdc.evaluate import Accuracy

finished = 3600 * 5000 // 1_600_000
found = Accuracy.of(6, finished)
width = found.high - found.low
print(f"{found}: {width:.2f} wide")

# %% tags=["remove-cell"]
claim(finished == 11)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gpu-cost
# :::
# **Where does the time go?** (10 minutes, easy). Take the rows of `paper-rdc`. Which share of all evaluations do the rows take
# that read the paper as printed (`about["reading"]`)? And how many evaluations are left with 16 levels in the place of 1000, if all else stays?
#
# :::{hint}
# :class: dropdown
# `evaluations(row, 10)` is for one image. The cost of an image is nearly proportional to the number of levels: divide.
# :::

# %%
# your code here
printed_share, left_over = None, None

# %%
# check
total, part = cost["paper-rdc"], 0.0
for r in experiment("paper-rdc").rows:
    printed = r.about["reading"] == "printed"
    part += r.n * evaluations(r, 10) * printed
fine = None not in (printed_share, left_over)
fine = fine and abs(printed_share - part / total) < 0.01
fine = fine and abs(left_over / (total * 16 / 1000) - 1) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gpu-cost
# :label: sol-gpu-cost
# :class: dropdown
# :::
# The standard version of AutoAttack runs APGD against nine targets, and thousands of queries; the released code runs APGD with the DLR loss alone.

# %%
mine = experiment("paper-rdc").rows
spent = {"printed": 0.0, "mi-fgsm": 0.0, "released": 0.0}
for r in mine:
    spent[r.about["reading"]] += r.n * evaluations(r, 10)
printed_share = spent["printed"] / total
left_over = total * 16 / 1000
print(f"{printed_share:.0%} printed, {left_over:.1g} with 16 levels")

# %% tags=["remove-cell"]
claim(0.1 < printed_share < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The networks are those of {cite:t}`karras2022elucidating` and {cite:t}`dhariwal2021diffusion`.
