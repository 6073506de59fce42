"""The laboratory in the browser, ``{laboratory}``, whole or with the option ``small``.

The place of it holds a still picture, computed by the package, until _static/lab/page.js fills it; without a script it stays.
Pages without a laboratory do not load its scripts, those without a figure that moves (:mod:`moving`) not theirs.
"""

from functools import cache
from html import escape
from typing import Any

import torch
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from torch import Tensor

from rdc.analyse.laboratory import likelihoods
from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.defend.likelihood import LikelihoodMaximization
from rdc.denoise import OptimalDenoiser
from rdc.evaluate import predict
from rdc.schedule import levels

DIGIT, RADIUS, SIGMA, CELL = 7, 0.2, 0.5, 14  # as page.js begins: test digit, radius, noise level; SVG units a pixel


def squares(x: Tensor, left: int) -> str:
    """An image as squares."""
    return "".join(
        f'<rect x="{left + CELL * j}" y="{CELL * i}" width="{CELL}" height="{CELL}" fill="rgb({v},{v},{v})"/>'
        for i, row in enumerate((255 * x[0, 0]).round().int().tolist())
        for j, v in enumerate(row)
    )


@cache
def still() -> str:
    """A test digit, attacked, and after likelihood maximisation, with the exact log-odds: an SVG of 3 pictures."""
    train, test = load("digits", "train"), load("digits", "test")
    optimal = OptimalDenoiser(train.x.double(), train.y)
    model = DiffusionClassifier(optimal, levels("elbo", 8, sigma_min=0.1))
    x, y = test.x[DIGIT : DIGIT + 1].double(), test.y[DIGIT : DIGIT + 1]
    attacked = pgd(model, x, y, eps=RADIUS, steps=20, index=torch.tensor([0]))
    moved = LikelihoodMaximization(optimal, method="sign", budget=RADIUS)(attacked)
    parts, words = [], []
    for n, (name, image) in enumerate({"digit": x, "attacked": attacked, "after LM": moved}.items()):
        odds = float(likelihoods(optimal, image, y, SIGMA)["log-odds"][0])
        said = f"{name}: a {int(predict(model, image)[0])}, log-odds {odds:.0f}"
        left = n * 10 * CELL
        for k, line in enumerate(said.split(", ")):
            parts.append(f'<text x="{left}" y="{CELL * (9.2 + k)}" fill="currentColor">{line}</text>')
        parts.append(squares(image, left))
        words.append(said)
    label = escape(f"A {int(y[0])} of 8 by 8 pixels, attacked, and after likelihood maximisation. " + "; ".join(words))
    head = f'<svg class="lab-still" viewBox="0 0 {28 * CELL} {11 * CELL}" width="100%" role="img" aria-label="{label}">'
    return head + "".join(parts) + "</svg>"


class Laboratory(SphinxDirective):
    """The place of a laboratory."""

    option_spec = {"small": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Put the picture there, and remember the page."""
        keep(self.env, "lab")
        kind = "small" if "small" in self.options else "full"
        return [nodes.raw("", f'<div class="lab" data-lab="{kind}">{still()}</div>', format="html")]


def keep(env: BuildEnvironment, folder: str) -> None:
    """Remember that the page at hand needs the scripts of a folder of _static."""
    env.metadata[env.docname][f"scripts-{folder}"] = "yes"


def lighten(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Take the scripts of laboratory and moving figures from a page that has none."""
    idle = [folder for folder in ("lab", "moving") if f"scripts-{folder}" not in app.env.metadata.get(page, {})]
    away = tuple(f"{root}{folder}/" for folder in idle for root in ("", "_static/"))
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if not away or not str(getattr(s, "filename", s)).startswith(away)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("laboratory", Laboratory)
    app.connect("html-page-context", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
