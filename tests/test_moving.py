"""The figures that move: their files are what the tool makes, and what they show in headless Chromium is the package's."""

import json
import re
import sys

import make_moving
import numpy as np
import pytest
import torch
from browser import STATIC, in_browser, needs_chromium

from rdc.certify.clopper_pearson import clopper_pearson, radius_from_counts
from rdc.data import load
from rdc.denoise.checkpoints import locate, read_checkpoint
from rdc.tasks.attack import weights

sys.path.append(str(STATIC.parent / "_ext"))
import moving

SCRIPTS = ["moving/mathematics.js", "moving/page.js"]
FILES = {name: (make_moving.FOLDER / f"{name}.json").read_text(encoding="utf8") for name in ("scale", "levels", "radius")}


def test_the_scales_are_those_of_the_record():
    assert make_moving.text(make_moving.scale()) == FILES["scale"]


def test_the_levels_are_what_the_shipped_denoiser_makes():
    found, test = json.loads(FILES["levels"]), load(make_moving.DATA, "test")
    assert found["labels"] == test.y[: make_moving.DENOISED].tolist() and found["sigmas"] == list(make_moving.SIGMAS)
    assert found["weights"] == {make_moving.DATA: read_checkpoint(locate(make_moving.DATA), "denoiser")[1]["tensors_sha256"]}
    _, errors = make_moving.denoised(0)
    np.testing.assert_allclose(errors, found["errors"][0], rtol=2e-3)


def test_the_attacks_are_what_is_stored():
    """All of it but the slow gradients of RDC, on the first digit."""
    found, test = json.loads(FILES["radius"]), load(make_moving.DIGITS, "test")
    assert found["weights"] == dict(item for _, one in make_moving.MODELS for item in weights(one).items())
    index = torch.tensor(found["index"][:1])
    for model, kind, one in make_moving.SERIES[:4]:
        stored = next(s for s in found["series"] if (s["model"], s["attack"]) == (model, kind))
        _, [(said, margins)] = make_moving.by_radius(make_moving.attacked, [one], test.x[index], test.y[index], index)
        assert said == stored["said"][:1]
        np.testing.assert_allclose(margins, stored["margin"][:1], rtol=0.02, atol=0.05)


def test_nothing_is_stored_sent_or_loaded():
    words = "localStorage|sessionStorage|indexedDB|cookie|fetch|XMLHttpRequest|sendBeacon|WebSocket|EventSource|caches|import"
    for path in (*(STATIC / "moving").glob("*.js"), STATIC / "tables.js", STATIC / "redirect.js"):
        code = re.sub(r"(?m)//.*$", "", path.read_text(encoding="utf8").replace("http://www.w3.org", ""))
        assert not re.findall(rf"\b({words})\b|https?:|src=|<form|innerHTML|eval\(", code), path


@needs_chromium
def test_radii_from_counts_are_the_packages(tmp_path):
    cases = [
        (round(share * n), n, sigma, alpha)
        for n in (1, 7, 100, 1000, 100_000)
        for share in (0, 0.3, 0.5, 0.52, 0.9, 0.999, 1)
        for sigma, alpha in ((0.25, 0.001), (1.0, 0.05), (0.5, 1e-6))
    ]
    both = "([k, n, s, a]) => [Moving.lower(k, n, a), Moving.radius(k, n, s, a)]"
    program = f"document.body.textContent = JSON.stringify({json.dumps(cases)}.map({both}))"
    found = json.loads(in_browser(tmp_path, SCRIPTS[:1], program))
    wanted = [(clopper_pearson(k, n, alpha), radius_from_counts(k, n, sigma, alpha)) for k, n, sigma, alpha in cases]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


#: What each figure is moved to (choices, then the slider), and what it then says.
MOVES = {
    "radius": ([], 0, r"At radius 0, CNN, AT, DC, RDC still say 0\."),
    "levels": ([], 0, r"At \u03c3 = 0\.05 the least error is that of "),
    "certificate": (["10000"], 10_000, r"10\u202f000 of 10\u202f000: p is at least 0\.999309, the radius is 0\.7996\."),
    "scale": ([], 3, r"4 guides were tried at scale 1; each mean is of 8 times 200 images"),
}


@needs_chromium
@pytest.mark.parametrize("name", MOVES)
def test_a_figure_draws_and_says_what_is_chosen(name, tmp_path):
    chosen, value, says = MOVES[name]
    program = f"""
      document.addEventListener("DOMContentLoaded", () => {{
        const box = document.querySelector("figure.moving");
        const move = (e, v, what) => {{ e.value = v; e.dispatchEvent(new Event(what)); }};
        {json.dumps(chosen)}.forEach((v, i) => move(box.querySelectorAll("select")[i], v, "change"));
        move(box.querySelector("input"), {value}, "input");
      }});"""
    seen = in_browser(tmp_path, SCRIPTS, program, moving.html(name, FILES.get(name, "")))
    assert re.search(rf'role="status">{says}', seen), re.findall(r'role="status".*?</p>', seen)
    assert re.search(r'<svg[^>]* role="img" aria-label="[^"]+ by [^"]+"', seen)
    assert "NaN" not in re.sub(r"base64,[\w+/=]+", "", seen.split("<script")[0])
    assert re.search(r"<label>[^<]+<select>", seen) and 'aria-valuetext="' in seen


@pytest.mark.parametrize("name", MOVES)
def test_without_a_script_there_is_a_table_or_a_picture(name):
    place = re.search(r'data-part="place">(.*)</div><figcaption>', moving.html(name, FILES.get(name, ""))).group(1)
    assert ("<caption>" in place and 'scope="col"' in place) or re.search(r'<img [^>]*alt="[^"]+"', place)
