"""The book's finding as one figure: how many images RDC keeps, as the attacker's gradient sees more of it."""

__all__ = ["draw_headline", "headline", "in_colour", "save_figure", "save_headline"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdc.findings.colour import colour, defence
from rdc.findings.side import Side, outcomes
from rdc.findings.sides import alone, rdc, trained
from rdc.runs.statistics import Accuracy

BARS: dict[str, tuple[str, Side]] = {
    "cnn": ("undefended network", trained("cnn")),
    "dc": ("diffusion classifier alone", alone("DC")),
    "rdc-all": ("RDC, all three gradients", rdc()),
    "rdc-smoothed": ("RDC, smoothed gradient", rdc(gradient="smoothed 0.3")),
    "rdc-exact": ("RDC, exact gradient", rdc(gradient="exact")),
    "1-nn": ("nearest neighbour, proved", Side("nearest", {}, "radius Linf", above=8 / 255)),
    "at": ("adversarial training", trained()),
    "rdc-bpda": ("RDC, BPDA", rdc(gradient="bpda")),
}
#: The same on CIFAR-10, from the bottom up.
COLOUR: dict[str, tuple[str, Side]] = {
    "cnn": ("undefended network", defence("cnn")),
    "dc": ("diffusion classifier alone", colour("DC")),
    "rdc-all": ("RDC, all three gradients", colour()),
    "rdc-smoothed": ("RDC, smoothed gradient", colour(gradient="smoothed 0.3")),
    "rdc-exact": ("RDC, exact gradient", colour(gradient="exact")),
    "at": ("adversarial training", defence("at-linf")),
    "rdc-bpda": ("RDC, BPDA", colour(gradient="bpda")),
}
FEWEST = 16  # images of a bar on CIFAR-10
GREY, BLUE, ORANGE = "#949494", "#0173b2", "#de8f05"  # of seaborn's colour-blind palette


def headline(folder: str | Path | None = None) -> dict[str, Accuracy]:
    """Return how many of the first test images of Fashion-MNIST each defence keeps under Linf 8/255, by short name.

    The images are those that all of them have met, so that the rates compare.

    Arguments:
        folder: Where the results are; by default those of the book.

    Raises:
        ValueError: if one of them was not run.
    """
    found = {name: outcomes(side, folder) for name, (_, side) in BARS.items()}
    if missing := [name for name, images in found.items() if not images]:
        raise ValueError(f"no results for {', '.join(missing)}; run: rdc experiment run rdc-gradient reference nearest")
    return on_shared(found)


def in_colour(folder: str | Path | None = None) -> dict[str, Accuracy]:
    """Return how many of the first test images of CIFAR-10 are kept, by the same names, on the images that all have met.

    What was not run is left out, and with it the union of all three gradients; there are no bars of fewer than 16 images.
    """
    found = {name: outcomes(side, folder) for name, (_, side) in COLOUR.items()}
    if not all(found[f"rdc-{gradient}"] for gradient in ("bpda", "exact", "smoothed")):
        del found["rdc-all"]
    kept = on_shared({name: images for name, images in found.items() if images})
    return kept if all(rate.n >= FEWEST for rate in kept.values()) else {}


def on_shared(found: dict[str, dict[int, bool]]) -> dict[str, Accuracy]:
    """Return the rates of some outcomes on the images that all of them have."""
    shared = set.intersection(*map(set, found.values())) if found else set()
    return {name: Accuracy.of(sum(images[i] for i in shared), len(shared)) for name, images in found.items()}


def draw_headline(ax: Any, folder: str | Path | None = None, color: str = "black") -> None:
    """Draw the bars with their 95 % intervals into matplotlib axes; those of CIFAR-10 below, if there are any.

    Arguments:
        ax: The axes.
        folder: Where the results are; by default those of the book.
        color: Of text and intervals.
    """
    below, labels = in_colour(folder), dict[float, str]()
    groups = ([("CIFAR-10: ", COLOUR, below)] if below else []) + [("", BARS, headline(folder))]
    for number, (data, bars, rates) in enumerate(groups):
        for name, value in rates.items():
            y = len(labels) + 0.5 * number
            labels[y] = data + bars[name][0]
            ends = [[100 * (value.value - value.low)], [100 * (value.high - value.value)]]
            shade = ORANGE if name.startswith("rdc") else BLUE if name in ("at", "1-nn") else GREY
            ax.barh(y, 100 * value.value, xerr=ends, color=shade, ecolor=color, capsize=3)
            ax.text(100 * value.high + 1.5, y, f"{value.correct} of {value.n}", va="center", color=color)
    ax.set_yticks(list(labels), list(labels.values()))
    ax.set(xlim=(0, 100), xlabel="images right under attack, Linf 8/255 (%)")
    ax.grid(axis="y", visible=False)
    ax.figure.set_figheight(max(ax.figure.get_figheight(), 0.33 * len(labels)))


def save_headline(path: str | Path, folder: str | Path | None = None, color: str = "black", ground: str = "none") -> None:
    """Write the figure as SVG; the arguments are those of :func:`save_figure`."""
    save_figure(path, draw_headline, folder, color, ground)


def save_figure(
    path: str | Path,
    draw: Callable[[Any, str | Path | None, str], None],
    folder: str | Path | None = None,
    color: str = "black",
    ground: str = "none",
    narrow: bool = False,
) -> None:
    """Write a figure as SVG, the same bytes for the same results; its words stay text.

    Arguments:
        path: The file.
        draw: What is drawn, called with axes, folder and colour.
        folder: Where the results are; by default those of the book.
        color: Of text and intervals.
        ground: Colour behind it; ``none`` is transparent.
        narrow: Whether it is for a telephone: words that stood beside the data stand above or below them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), color)
    style |= {"svg.hashsalt": "rdc", "svg.fonttype": "none", "font.size": 11}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"}
    with plt.rc_context(style):
        fig, ax = plt.subplots(figsize=(4.2 if narrow else 7.2, 3.6), layout="constrained")
        draw(ax, folder, color)
        if narrow:
            stack(ax)
        fig.savefig(path, facecolor=ground, metadata={"Date": None})
        plt.close(fig)


def stack(ax: Any) -> None:
    """Put the words beside bars or points above them, and a legend below the axes."""
    words = {at: label.get_text() for at, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    if any(word[:1].isalpha() for word in words.values()):
        for bar in ax.patches:
            bar.set(y=bar.get_y() + bar.get_height() / 4, height=bar.get_height() / 2)
        gap = 0.24 if ax.patches else 0.32
        for at, word in words.items():
            ax.text(ax.get_xlim()[0], at + gap, f" {word}", va="bottom")
        ax.set(yticks=[], ylim=(min(words) - 0.5, max(words) + 0.9))
        ax.figure.set_figheight(0.5 * len(words) + 0.9)
    if ax.get_legend():
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        ax.figure.set_figheight(4.4)
