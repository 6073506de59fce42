"""The figures that move, ``{moving} NAME``: the file of book/moving/ with the data, a caption, and what is seen without a script.

_static/moving/moving.js draws them. Its place holds a table or a picture of the same data until then; without a script it stays.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from laboratory import keep
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CAPTIONS = {
    "radius": "Four classifiers and one digit, as the attack grows. Margins are those of the logits, divided by that of the "
    "clean image: 1 is untouched, and below 0 the image is lost. PGD with 20 steps; of RDC through the gradient "
    "that you choose.",
    "levels": "A test image with noise, denoised as each of the ten classes. Below each is the squared error: the diffusion "
    "classifier chooses the class with the least, summed over levels.",
    "certificate": "From counts to a certified radius. The curve holds for one number of draws, noise and error.",
    "scale": "Guided samples by scale of the guide, from the record: what you choose, with 95 % intervals over repetitions.",
}


def still(name: str, data: dict[str, Any]) -> str:
    """What is seen of a figure without a script."""
    if name == "levels":
        names = ", ".join(data["classes"])
        alt = f"A row for each image and level: the noisy image, and what the denoiser makes of it as {names}"
        return f'<img src="data:image/png;base64,{data["sprite"]}" alt="{escape(alt)}" class="moving-sprite">'
    if name == "radius":
        at = data["radii"].index(0.1)
        head = [
            "classifier",
            "attack",
            *(f"image {i}, {data['classes'][y]}" for i, y in zip(data["index"], data["labels"], strict=True)),
        ]
        rows = [[s["model"], s["attack"], *(data["classes"][said[at]] for said in s["said"])] for s in data["series"]]
        return table("What the classifiers say at Linf radius 0.1", head, rows)
    if name == "scale":
        head = ["guide", "class known", "scale", "agreement", "recall", "Frechet distance"]
        shown = ("agreement", "recall", "frechet")
        rows = [
            [r["guide"], "yes" if r["conditional"] else "no", r["scale"], *(f"{r[k][0]:g}" for k in shown)] for r in data["rows"]
        ]
        return table("Means over repetitions", head, rows)
    head = ["draws", *(f"{100 * share:g} % of them right" for share in data["shares"])]
    rows = [[n, *(f"{r:.2f}" for r in row)] for n, row in data["radii"]]
    return table("Certified radius, in units of sigma, at alpha 0.001", head, rows)


def table(caption: str, head: list[str], rows: list[list[Any]]) -> str:
    """A table as HTML."""
    top = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="moving-wide"><table class="table">{inside}</table></div>'


def certificate() -> dict[str, Any]:
    """Radii of some counts, for readers without a script."""
    from rdc.certify.clopper_pearson import radius_from_counts

    shares, draws = (0.6, 0.8, 0.9, 0.99, 1.0), (100, 1000, 10_000, 100_000)
    return {"shares": shares, "radii": [[n, [radius_from_counts(round(s * n), n, 1.0, 0.001) for s in shares]] for n in draws]}


def html(name: str, content: str) -> str:
    """A figure for the page, with its data: the text of its file, empty for that of certificates, which has none."""
    data = json.loads(content) if content else certificate()
    place = f'<div data-part="place">{still(name, data)}</div><figcaption>{escape(CAPTIONS[name])}</figcaption>'
    script = f'<script type="application/json">{content or "{}"}</script>'
    return f'<figure class="moving" data-moving="{name}">{place}{script}</figure>'


class Moving(SphinxDirective):
    """The place of a figure."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Put the figure there, and remember the page."""
        keep(self.env, "moving")
        file = Path(self.env.srcdir, "book", "moving", f"{(name := self.arguments[0])}.json")
        self.env.note_dependency(str(file))
        return [nodes.raw("", html(name, file.read_text(encoding="utf8") if file.exists() else ""), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("moving", Moving)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
