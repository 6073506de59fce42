"""Small scripts of the book, in headless Chromium: tables that sort, old addresses, the blind comparison."""

import json
import re

import blind_pairs
from browser import STATIC, in_browser, needs_chromium

ROWS = [("b", "10 of 48"), ("a", "9 of 48"), ("c", "-"), ("d", "\u22121.5"), ("e", "1 397"), ("f", "2")]
TABLE = f"""<article><table><thead><tr><th><p>name</p></th><th>value</th></tr></thead><tbody>
{"".join(f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in ROWS)}</tbody></table></article>"""
CLICKS = """
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table"), seen = [];
  for (const column of [1, 1, 0]) {
    table.querySelectorAll("th button")[column].click();
    seen.push([...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(""));
  }
  seen.push([...table.querySelectorAll("th")].map((th) => [th.scope, th.getAttribute("aria-sort")]));
  document.body.textContent = JSON.stringify(seen);
});"""


@needs_chromium
def test_long_tables_sort_by_number_or_word(tmp_path):
    found = json.loads(in_browser(tmp_path, ["tables.js"], CLICKS, TABLE))
    assert found == ["dabfec", "efbadc", "abcdef", [["col", "ascending"], ["col", None]]]


@needs_chromium
def test_shares_sort_by_their_quotient(tmp_path):
    """Percentages and numbers with a sign by the number with which they begin."""
    values = ["135/512 = 26.4 %", "64/64", "9 of 48", "+0.30 [-0.1, 0.7]", "43.8 % [30, 58], 42.2", "-2/4"]
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in zip("abcdef", values, strict=True))
    table = f"<article><table><thead><tr><th>name</th><th>value</th></tr></thead><tbody>{rows}</tbody></table></article>"
    assert json.loads(in_browser(tmp_path, ["tables.js"], CLICKS, table))[0] == "fcadbe"


@needs_chromium
def test_a_wide_table_scrolls_in_a_box_of_its_own(tmp_path):
    cells = "".join(f"<th>a&nbsp;rather&nbsp;long&nbsp;head&nbsp;number&nbsp;{i}</th>" for i in range(12))
    wide = f"<article><table><caption>Counts</caption><thead><tr>{cells}</tr></thead></table></article>"
    style = f'<link rel="stylesheet" href="{(STATIC / "book.css").as_uri()}">'
    seen = in_browser(tmp_path, ["tables.js", "scroll.js"], "", style + wide)
    assert '<div class="table-wide more-right" tabindex="0" role="region" aria-label="Counts"><table>' in seen


@needs_chromium
def test_rows_of_sentences_carry_what_a_telephone_shows(tmp_path):
    heads, cells = ("id", "claim", "verdict", "evidence"), ("A1", "It is so.", "holds", "word " * 30)
    head, row = "".join(f"<th>{one}</th>" for one in heads), "".join(f"<td>{one}</td>" for one in cells)
    table = f"<article><table><thead><tr>{head}</tr></thead><tbody><tr>{row}</tr></tbody></table></article>"
    seen = in_browser(tmp_path, ["tables.js"], "", table)
    assert '<table class="sentences" role="table">' in seen
    assert 'data-head="evidence"' in seen and 'data-head="verdict"' not in seen
    numbers = table.replace("word " * 30, "0.5").replace("verdict", "rate")
    assert "sentences" not in in_browser(tmp_path, ["tables.js"], "", numbers)


@needs_chromium
def test_an_old_address_of_a_name_leads_to_its_page(tmp_path):
    (tmp_path / "attack.html").write_text("<body>attacks</body>", encoding="utf8")
    (tmp_path / "all.html").write_text("<body>all</body>", encoding="utf8")
    links = '<a href="all.html#module-rdc">rdc</a><a href="attack.html#module-rdc.attack">rdc.attack</a><p id="rdc.here">here</p>'
    assert in_browser(tmp_path, ["redirect.js"], "", links, "#rdc.attack.pgd") == "attacks"
    assert in_browser(tmp_path, ["redirect.js"], "", links, "#module-rdc.attackers") == "all"
    assert "here" in in_browser(tmp_path, ["redirect.js"], "", links, "#rdc.here")


@needs_chromium
def test_the_blind_comparison_counts_right_answers(tmp_path):
    """Whoever looks up the sealed answer is right twelve times."""
    widget = (blind_pairs.ROOT / "book" / "blind" / "widget.html").read_text(encoding="utf8")
    record = blind_pairs.read_pairs()
    guided = blind_pairs.unseal(record["sealed"], len(record["pairs"]))
    cells = [pair["cells"][0 if first else 1] for pair, first in zip(record["pairs"], guided, strict=True)]
    x = [100 * (c % record["columns"]) / (record["columns"] - 1) for c in cells]
    y = [100 * (c // record["columns"]) / (record["rows"] - 1) for c in cells]
    program = f"""
      document.addEventListener("DOMContentLoaded", () => {{
        const wanted = {json.dumps(list(zip(x, y, strict=True)))}, box = document.querySelector("#blind");
        const at = (side) => box.querySelector(`[data-part="${{side}}"]`).style.backgroundPosition.split(" ").map(parseFloat);
        const is = (p) => wanted.some((w) => Math.hypot(w[0] - p[0], w[1] - p[1]) < 0.01);
        const side = () => (is(at("left")) ? "left" : "right");
        for (let i = 0; i < wanted.length; i += 1) box.querySelector(`[data-answer="${{side()}}"]`).click();
      }});"""
    seen = in_browser(tmp_path, ["blind.js"], program, widget + blind_pairs.PAGE.read_text(encoding="utf8"))
    assert re.search(r"<th scope=\"row\">right</th><td>12</td>", seen) and "12 are right" in seen
