"""Five findings in a picture each: decided claims of all three papers, drawn from the stored results."""

__all__ = ["PANELS", "Panel"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdc.findings.certified import certified
from rdc.findings.figure import BLUE, GREY, ORANGE, draw_headline
from rdc.findings.guidance import made
from rdc.findings.side import Side, numbers, rate
from rdc.findings.sides import LEVELS

Folder = str | Path | None
STYLES = (("o", ORANGE), ("s", BLUE), ("D", GREY))


@dataclass(frozen=True)
class Panel:
    """A picture.

    Attributes:
        draw: Called with axes, folder of the results, and the colour of text and intervals.
        claims: Ids of the decided claims that it shows.
        alt: What one sees, for those who do not.
    """

    draw: Callable[[Any, Folder, str], None]
    claims: tuple[str, ...]
    alt: str


def intervals(ax: Any, x: Any, sides: list[Side], folder: Folder, label: str, style: tuple[str, str]) -> None:
    """Draw rates with their 95 % intervals in percent, as points that are joined."""
    found = [rate(side, folder) for side in sides]
    if any(value is None for value in found):
        raise ValueError(f"no results for {label}")
    values = [value for value in found if value is not None]
    ends = [[100 * (v.value - v.low) for v in values], [100 * (v.high - v.value) for v in values]]
    marker, color = style
    ax.errorbar(x, [100 * v.value for v in values], ends, marker=marker, color=color, label=label, capsize=3)


def likelihood(ax: Any, folder: Folder, color: str) -> None:
    """Draw for how many adversarial images likelihood maximisation raises exact quantities, by the noise of the density."""
    named = {"log p(z)": "likelihood", "log p(z | y)": "likelihood of the true class", "log-odds": "log-odds of the true class"}
    for i, (quantity, title) in enumerate(named.items()):
        sides = [Side("laboratory", {"LM": "released", "images": "adversarial"}, f"{quantity}, sigma {s}") for s in LEVELS]
        intervals(ax, np.arange(len(LEVELS)) + 0.06 * (i - 1), sides, folder, title, STYLES[i])
    ax.axhline(50, color=color, linewidth=0.8, linestyle=":")
    ax.set(xlabel="noise level of the density, model units", ylabel="adversarial images\nfor which it rises (%)", ylim=(-4, 104))
    ax.set_xticks(range(len(LEVELS)), LEVELS)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def stored(ax: Any, folder: Folder, color: str) -> None:
    """Draw how many images that it has not stored the optimal classifier keeps."""
    bars = {
        "clean": Side("optimal", {"norm": "Linf"}, "clean"), "PGD, Linf 8/255": Side("optimal", {"norm": "Linf"}),
        "PGD, L2 0.5": Side("optimal", {"norm": "L2"}),
    }  # fmt: skip
    for i, side in enumerate(reversed(bars.values())):
        value = rate(side, folder)
        if value is None:
            raise ValueError("no results for optimal")
        ends = [[100 * (value.value - value.low)], [100 * (value.high - value.value)]]
        ax.barh(i, 100 * value.value, xerr=ends, color=GREY if i == 2 else ORANGE, ecolor=color, capsize=3)
        ax.text(100 * value.high + 1.5, i, f"{value.correct} of {value.n}", va="center", color=color)
    ax.axvline(100, color=BLUE, linestyle="--")
    ax.text(99, 2.6, "if stored", color=color, ha="right")
    ax.set_yticks(range(len(bars)), list(reversed(bars)))
    ax.set(xlim=(0, 104), xlabel="images right, none of them stored (%)")


def certificates(ax: Any, folder: Folder, color: str) -> None:
    """Draw how many images one diffusion model certifies, by radius."""
    for style, (sigma, last) in zip(STYLES, {0.25: 0.5, 0.5: 1.0, 1.0: 1.75}.items(), strict=True):
        radii = np.arange(0.25, last + 0.01, 0.25)
        sides = [certified("APNDC", sigma, r) for r in radii]
        intervals(ax, radii + 0.02 * sigma, sides, folder, f"smoothing noise {sigma:g}", style)
    ax.axhline(10, color=color, linewidth=0.8, linestyle=":")
    ax.text(1.76, 11, "guess", color=color, ha="right", va="bottom")
    ax.set(xlabel="radius, L2, images in [0, 1]", ylabel="images right and certified (%)", ylim=(0, 100))
    ax.legend(frameon=False)


def guides(ax: Any, folder: Folder, color: str) -> None:
    """Draw the Frechet distances of the repetitions with each guide, and their means."""
    for i, guide in enumerate(("robust", "vanilla", "none")):
        values = list(numbers(made(guide, "frechet", "heun", True), folder).values())
        if not values:
            raise ValueError(f"no results for the {guide} guide")
        ax.plot(values, np.full(len(values), i), STYLES[i][0], color=STYLES[i][1], alpha=0.7)
        ax.plot([np.mean(values)] * 2, [i - 0.3, i + 0.3], color=color, linewidth=2)
    ax.set_yticks(range(3), ["robust guide", "vanilla guide", "no guide"])
    ax.set(xlabel="Frechet distance of 200 samples, lower is better", ylim=(-0.6, 2.6))


#: By name, in the order of the page.
PANELS = {
    "headline": Panel(
        draw_headline, ("A16b", "A8"),
        "Bars of images kept under attack. Under BPDA RDC keeps about as many as adversarial training, under the smoothed "
        "gradient far fewer, fewer than the nearest neighbour has proved. Below, on CIFAR-10, RDC keeps some under BPDA and next "
        "to none under the exact gradient.",
    ),
    "likelihood": Panel(
        likelihood, ("A27", "A11a"),
        "Points by noise level. The likelihood rises for nearly all adversarial images, the log-odds of the true class for "
        "fewer than half.",
    ),
    "stored": Panel(
        stored, ("A4a",),
        "Three bars: clean images, and fewer under two attacks, all well below a line at 100 percent, which marks stored images.",
    ),
    "certificates": Panel(
        certificates, ("B5",),
        "Falling curves of certified images by radius, one a smoothing noise, above a line at ten percent.",
    ),
    "guides": Panel(
        guides, ("C3b1",),
        "Dots of repetitions and their means: those of both guides lie below no guide, and close to each other."
    ),
}  # fmt: skip
