"""Figures that more than one page draws."""

import matplotlib.pyplot as plt
import pytest
import torch

from rdc.plots import image_grid, legend_below, plot_accuracy
from rdc.runs.statistics import Accuracy


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def test_a_legend_below_names_each_line_once_and_covers_no_axes():
    figure, axes = plt.subplots(1, 2, figsize=(6, 3))
    for ax in axes:
        ax.plot([0, 1], label="rise")
    axes[1].plot([1, 0], label="fall")
    legend_below(figure)
    figure.canvas.draw()
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["rise", "fall"]
    box = legend.get_window_extent()
    assert all(not box.overlaps(ax.get_tightbbox()) for ax in axes)
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0


def test_an_accuracy_is_drawn_with_its_interval():
    _, ax = plt.subplots()
    value = Accuracy.of(30, 40)
    plot_accuracy(ax, [8], [value], "DC")
    line, caps, _ = ax.containers[0]
    assert line.get_ydata() == pytest.approx([75])
    ends = sorted(float(cap.get_ydata()[0]) for cap in caps)
    assert ends == pytest.approx([100 * value.low, 100 * value.high])


def test_a_grid_shows_each_image_between_black_and_white():
    x = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    shown = [ax.images[0] for ax in image_grid(x, columns=2, low=-1, titles=list("abc")).axes if ax.images]
    assert [float(picture.get_array().mean()) for picture in shown] == [0, 0.5, 1]
    assert all(picture.get_clim() == (0, 1) for picture in shown)
