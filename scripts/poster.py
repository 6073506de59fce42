"""Write one page for a talk, from the stored results: the finding, four more, and where the evidence is.

``PYTHONPATH=tools python scripts/poster.py FOLDER`` writes poster.html, which needs no network, and poster.pdf if Chromium is
found.
"""

import html
import re
import sys
import tempfile
from pathlib import Path

from build_book import repository
from print_book import print_page

from rdc.findings import claims, judge
from rdc.findings.figure import headline, save_figure
from rdc.findings.panels import PANELS

TITLES = {
    "headline": "The number depends on the gradient that measures it",
    "likelihood": "LM raises the likelihood and does not repair the image",
    "stored": "&ldquo;100 % robust&rdquo; is memory",
    "certificates": "One diffusion model certifies",
    "guides": "A guide makes better samples than none",
}
STYLE = """
@page { size: A3 landscape; margin: 10mm }
body { font: 15px/1.35 sans-serif; color: #222; background: white; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.9rem; margin: 0 } h2 { font-size: 1.05rem; margin: 0.2rem 0 } p { margin: 0.3rem 0 }
main { display: grid; grid-template-columns: 1fr; gap: 0.6rem 1.6rem } svg { width: 100%; height: auto } small { color: #444 }
@media (min-width: 60rem), print {
  main { grid-template-columns: repeat(3, 1fr) } .first { grid-column: span 2 } .first svg { height: 21rem }
}
@media print { body { margin: 0 auto; zoom: 0.85 } }
"""


def picture(name: str) -> str:
    """Return a panel as SVG to be put into a page."""
    with tempfile.TemporaryDirectory() as folder:
        save_figure(path := Path(folder, "panel.svg"), PANELS[name].draw, None, "#222222")
        text = path.read_text(encoding="utf8")
    mark = f'<svg role="img" aria-label="{html.escape(PANELS[name].alt, quote=True)}" '
    own = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg ") :])  # no two of a page alike
    return own.replace("<svg ", mark, 1)


def section(name: str) -> str:
    """Return a finding: title, picture, and the claims with their verdicts."""
    lines = [judge(claims()[one]).entry() for one in PANELS[name].claims]
    said = "".join(f"<p><b>{c['id']}: {c['verdict']}.</b> {html.escape(c['claim'])}<br><small>{html.escape(c['sentence'])} "
                   f"{html.escape(c['record'])}</small></p>" for c in lines)  # fmt: skip
    return f'<section class="{"first" if name == "headline" else ""}"><h2>{TITLES[name]}</h2>{picture(name)}{said}</section>'


def page() -> str:
    """Return the poster as HTML."""
    found = headline()
    kept = {name: f"{value.correct} of {value.n}" for name, value in found.items()}
    lead = (
        f"RDC keeps {kept['rdc-bpda']} images of Fashion-MNIST (Linf 8/255) under BPDA, and {kept['rdc-all']} when the gradient "
        f"sees its likelihood maximisation. A small adversarially trained network keeps {kept['at']}."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Robust diffusion classifiers</title><style>{STYLE}</style></head><body>"
        f"<h1>Robust diffusion classifiers, audited</h1><p>{lead}</p><main>{''.join(map(section, PANELS))}</main>"
        "<p><small>95 % intervals; verdicts by one rule from the records named; small networks, so that other data may differ. "
        f"{html.escape(': '.join(filter(None, ('An executable book', repository()))))}</small></p></body></html>\n"
    )


def main(folder: Path) -> None:
    """Write the page, and print it with Chromium if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder.resolve() / "poster.html"
    target.write_text(page(), encoding="utf8")
    print(f"wrote {target}")
    print(f"wrote {printed}" if print_page(target, printed := target.with_suffix(".pdf")) else "There is no Chromium that prints")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
