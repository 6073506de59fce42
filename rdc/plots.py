"""The figures that more than one chapter draws, in one style: seaborn's colour-blind palette, labelled axes."""

__all__ = ["image_grid", "legend_below", "plot_accuracy", "plot_intervals", "style"]

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rdc.runs.statistics import Accuracy, Interval


def style() -> None:
    """Set the style of the book: white background, thin grid, colour-blind palette."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100, "savefig.dpi": 100})


def legend_below(figure: Figure, columns: int = 3) -> None:
    """Put one legend of all axes, each label once, below a figure, where it covers no data; the layout becomes constrained."""
    named = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.set_layout_engine("constrained")
    figure.legend(named.values(), named, loc="outside lower center", ncols=columns)


def image_grid(
    x: Float[Tensor, "n c h w"],
    columns: int = 10,
    titles: Sequence[str] | None = None,
    size: float = 0.8,
    low: float = 0.0,
    high: float = 1.0,
) -> Figure:
    """Draw images in rows of ``columns``; values ``low`` and ``high`` are black and white.

    Arguments:
        x: Images, of one channel or three.
        columns: Images in a row.
        titles: A title for each image.
        size: Side of an image in inches.
        low: Value drawn black.
        high: Value drawn white.
    """
    rows = -(-len(x) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size * (1.35 if titles else 1.05)), squeeze=False)
    pictures = ((x.detach().cpu().float() - low) / (high - low)).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(x):
            ax.imshow(pictures[i].squeeze(), cmap="gray", vmin=0, vmax=1)
            if titles:
                ax.set_title(titles[i], fontsize=11)
    figure.tight_layout(pad=0.2)
    return figure


def plot_accuracy(ax: Axes, at: Sequence[float], values: Sequence[Accuracy], label: str, **line: Any) -> None:
    """Accuracy in percent with its 95 % interval against ``at``."""
    middle = [100 * a.value for a in values]
    bars = [[100 * (a.value - a.low) for a in values], [100 * (a.high - a.value) for a in values]]
    ax.errorbar(at, middle, yerr=bars, label=label, capsize=3, **{"marker": "o", **line})
    ax.set(ylabel="accuracy (%)", ylim=(-3, 103))


def plot_intervals(
    ax: Axes,
    at: Sequence[float],
    values: Sequence[Interval | Accuracy],
    label: str | None = None,
    across: bool = False,
    **line: Any,
) -> None:
    """Draw values with their intervals against ``at``; with ``across`` the values lie along the horizontal axis."""
    middle = [v.value for v in values]
    bars = [[max(v.value - v.low, 0) for v in values], [max(v.high - v.value, 0) for v in values]]
    style = {"marker": "o", "ms": 4, "lw": 1.2, "capsize": 2, "label": label, **line}
    if across:
        ax.errorbar(middle, at, xerr=bars, **{"ls": "", **style})
    else:
        ax.errorbar(at, middle, yerr=bars, **style)
