"""Slides of the four sessions: python -m sphinx -b revealjs course/slides OUT"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "_ext")]

project = "Robust diffusion classifiers"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_revealjs", "offline_mathjax", "stored"]
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
mathjax3_config = {"tex": {"macros": {"E": r"\mathbb{E}", "norm": [r"\lVert #1 \rVert", 1]}}}
html_copy_source = False
html_show_sourcelink = False
revealjs_style_theme = "white"
revealjs_static_path = ["static"]
revealjs_css_files = ["slides.css"]
revealjs_script_conf = {"hash": True, "slideNumber": "c", "transition": "none", "pdfSeparateFragments": False}
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]
