"""No result is typed in prose, and the front pages claim no more than the verdicts that they cite.

Code, formulas, roles (which paste from records), links and comments are no prose. In what is left a number is suspicious as a
count (``34 of 96``), a share (``51.6 %``), a factor (``3.4x``) or a decimal fraction (``0.82 accuracy``). Whole numbers are
sizes, years and places. What may stand all the same is listed below, with the reason.
"""

import json
import re
from collections.abc import Iterator

import pytest

from rdc.runs.record import book_folder

ROOT = book_folder("results").parent
PROSE = [page for folder in ("book", "course") for page in sorted((ROOT / folder).rglob("*.md"))]
PAGES = [*PROSE, ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.py"))]
NO_PROSE = re.compile(
    r"^(`{3,}|~~~).*?^\1"  # code, and directives with fences of backticks
    r"|<!--.*?-->|<[^>\n]+>|\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\2\}"
    r"|\{[\w:+-]+\}`[^`]*`|``[^`]+``|`[^`]+`|\$(?:\\.|[^$\\])+\$"  # roles, code, formulas
    r"|\[[^\]\n]*\]\([^)\n]*\)|https?://\S+|^:(?!label)[\w-]+:.*?$",  # links, options of directives
    re.DOTALL | re.MULTILINE,
)
#: An exercise gives its numbers; a solution is prose again.
GIVEN = re.compile(r"\{exercise-start\}.*?(?=\{(?:exercise-end|solution-start)\}|\Z)", re.DOTALL)
START, FRACTION = r"(?<![\w.,/^-])", r"\d+\.\d+"
RESULT = re.compile(
    rf"{START}\d[\d ]*(?:\.\d+)? of (?:the |its )?\d+"
    rf"|{START}\d+(?:\.\d+)?[ ~]?(?:%|per ?cent|percentage points?|points)"
    rf"|{START}\d+(?:\.\d+)? ?(?:x(?! \d)|×|-fold)(?!\w)"
    rf"|{START}\d+(?:\.\d+)? times (?:more|less|fewer|as|the|smaller|larger|faster|slower)"
    rf"|{START}{FRACTION}(?![\w.])"
)
SEVERAL = rf"{FRACTION}(?:(?:,| and|, and| or| to) {FRACTION})*"
#: Phrases that may hold such a number, and why.
ALLOWED = {
    rf"(?:[Ss]ections?|Theorems?|Corollar(?:y|ies)|Appendix|Tables?|Figures?|Python|text of) {SEVERAL}": "a place, or a version",
    r"95 % (?:\w+ )?intervals?|interval of 95 %|intervals are of 95 %|fall with 95 %|certify 95 % of it": "a level of confidence",
    rf"(?:radius|radii|[Rr]ates?(?: of)?|L2|Linf|steps of|noise of|share\W*) {SEVERAL}": "a parameter",
    rf"(?:from|near|between|floors?(?: of)?|noise level to) {FRACTION}(?:(?: and to| to| and|,) {FRACTION})*": "noise levels",
    rf"in which {FRACTION} is usual|best scale is {FRACTION} for|below {FRACTION} %|{FRACTION}/255": "a parameter",
    r"a stated 5 %|9900 of 10 000|more than 9[05] %|must reach 0 %": "a definition, a question or a rule of choice",
    r"and 640 times as many|probability 0\.0086": "arithmetic of a solution",
    r"which is 0\.2 here|not below 0\.05 in spite of 9 against 2": "arithmetic of a solution",
    r": 0\.98 when the common part|than its 5 % if": "the same, and a level",
    r"nearest distance|within 10 % of|less than 1 %|is 2\.3 nats|that is 1\.5 for all": "arithmetic that the sentence makes",
    r"\W100 %(?: robust| robust accuracy)?|The 100 % of the paper|leave the 100 %|So the 100 %": "the paper's claim A4, quoted",
    r"93\.55 % clean and 35\.94 %|the 35\.94 % was|about 5 % for EDM": "the RDC paper, Table 1, and issue 3 of its code, quoted",
    r"75\.67 % under|69\.53 %|0\.39 points more": "the RDC paper, Table 2, quoted",
    r"(?:exceeds|such as|above|is the) 0\.98|only 60 %|91\.79 %|82\.48 %|\"?0 % robustness": "the RDC paper, B.1, quoted",
    r"82\.42 %|78\.85 %|9\.86 and 1\.43|1\.67 points|3\.57 of|falls by 6\.9": "the RDC paper, Table 3, quoted",
    r"640 times more random": "the RDC paper, Figure 2a, quoted",
    r"82\.2, 70\.7 and 54\.5 % at": "the NDC paper, abstract, quoted",
    r"25\.09 on|40\.4 %|32\.4 %|27\.2 %|108 %|20\.5|threshold of \d+ %|At 60 %": "the guidance paper's survey, quoted",
    r"FID 5\.91|2\.97 vanilla|2\.85 robust|precision 0\.70, 0\.78, 0\.82|recall 0\.65, 0\.59, 0\.56": "the same, Table 1, quoted",
    r"7\.60 and 7\.67|7\.58 to 7\.79|7\.62 to 7\.87|and 7\.67 without": "the guidance paper, Tables 4 and 5, quoted",
    r"74 % under AutoAttack|plateau near 90 %": "abstract of the scaling laws of adversarial training (2404.09349), quoted",
    r"epsilon = 0\.5|alpha = 0\.05|8/255(?: in Linf)? and (?:\N{REPLACEMENT CHARACTER} )?0\.5|Dashed: 5 % smaller": "a parameter",
}  # fmt: skip
#: Pages that print a table of the guidance paper on its survey (Table 2), and discuss its misprint.
SURVEY = ("blind", "10c_guidance_samples")
SHARES = r"\b(?:[5678]0 %|(?:61\.5|31\.5|7\.0|51\.0|28\.5|35\.0|13\.5|51\.5|21\.5|8\.5|70\.0)(?: %)?(?!\d))"


def cells(text: str, notebook: bool) -> Iterator[str]:
    """Yield the prose of a page; of a notebook its Markdown cells and its captions."""
    if not notebook:
        yield text
        return
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        yield from (json.loads(caption) for caption in re.findall(r'"caption": ("(?:[^"\\]|\\.)*")', head))
        if "[markdown]" in head:
            read = re.sub(GIVEN, "", body)
            yield "\n".join(line.removeprefix("#").removeprefix(" ") for line in read.split("\n"))


def typed(text: str, notebook: bool = False, name: str = "") -> Iterator[str]:
    """Yield each suspicious number among the words around it."""
    for cell in cells(text, notebook):
        prose = re.sub(r"\s+", " ", NO_PROSE.sub(" \N{REPLACEMENT CHARACTER} ", cell)).replace("*", "")
        for phrase in [*ALLOWED, *([SHARES] if name in SURVEY else [])]:
            prose = re.sub(phrase, " \N{REPLACEMENT CHARACTER} ", prose)
        for found in RESULT.finditer(prose):
            yield prose[max(0, found.start() - 60) : found.end() + 40]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_result_is_typed(path):
    found = list(typed(path.read_text(encoding="utf8"), path.suffix == ".py", path.stem))
    assert not found, f"{path.name}: cite the record (CONTRIBUTING, A number): {found}"


@pytest.mark.parametrize("text", [
    "It keeps 34 of 96 images.", "It keeps 34 of the 96.", "Accuracy falls to 51.6 %.", "Accuracy falls to 5%.",
    "It is 3.4x faster.", "It is 3.4 times faster.",
    "a 0.82 accuracy", "It gains 12 points.", "| RDC | 0.39 |", "a cosine of 0.97 ($n = 16$)",
    "with radius 8/255 it keeps 12.5 percent", "2 of 512 images are broken",
])  # fmt: skip
def test_a_typed_result_is_found(text):
    assert list(typed(text))


@pytest.mark.parametrize("text", [
    "The first 96 test images of 2024.", "Sections 3.1, 3.2 and 4.4, Python 3.10", "with 95 % intervals", "a radius of 8/255",
    "It keeps {kept}`rdc-bpda` images, {res}`a:b.c:.1%`", "$0.82$ and `34 of 96`", "```console\n34 of 96\n```",
    "L2 0.5 with 7 steps",
    "images of 28 x 28 pixels", "levels from 0.5 to 3",
])  # fmt: skip
def test_sizes_places_parameters_and_pasted_numbers_are_not(text):
    assert not list(typed(text))


# Words of the front pages

FRONT = (ROOT / "README.md", ROOT / "book" / "index.md")
STRONG = re.compile(
    r"\b(?:(?:non-)?robust(?:ly|ness)?|hard to (?:fool|attack)|fool(?:s|ed)?|breaks?|broken|withst\w+|secure|safe|defeat\w*"
    r"|stronger|strongest|outperform\w*|state of the art)\b",
    re.IGNORECASE,
)
#: Names in which such a word claims nothing.
NAMES = {
    r"[Rr]obust [Dd]iffusion [Cc]lassifiers?": "the title of the book and the name of RDC",
    r"Robust Classification via a Single Diffusion Model|Diffusion Models are Certifiably Robust Classifiers": "titles of papers",
    r"Robust Classifier Guidance|robust classifier guidance": "the title of a paper, and its method",
    r"[Rr]obust accurac(?:y|ies)": "the name of a measure",
    r"broken-[\w-]+": "names of models",
}
CITED = re.compile(r"\{claim\}`(\w+)`|claim (\w+), which (holds|does not hold|is not decided)")
DECIDED = {"holds", "does not hold", "refuted"}


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page without code and titles of links, but with roles."""
    prose = re.sub(r"^```.*?^```|^:\w+:.*?$|\[[^\]]*\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"(\{[\w:]+\}`[^`]*`)|`[^`]*`", lambda found: found.group(1) or " ", prose)
    for block in re.split(r"\n\s*\n|\n(?=[-#|:] ?)|\n(?=\*)", prose):
        yield from re.split(r"(?<=[.!?])\*{0,2}\s+(?=[A-Z*])", " ".join(block.split()))


def unsupported(text: str, verdicts: dict[str, str]) -> Iterator[str]:
    """Yield sentences with a strong word that cite no decided claim, or state another verdict than the record."""
    for sentence in sentences(text):
        plain = sentence
        for name in NAMES:
            plain = re.sub(name, " ", plain)
        cited = [(role or name, said) for role, name, said in CITED.findall(sentence)]
        right = all(verdicts.get(name) in DECIDED and said in ("", verdicts[name]) for name, said in cited)
        if (STRONG.search(plain) and not cited) or not right:
            yield sentence


@pytest.mark.parametrize("path", FRONT, ids=lambda path: path.stem)
def test_the_front_pages_say_no_more_than_their_verdicts(path):
    claims = json.loads((ROOT / "results" / "claims.json").read_text(encoding="utf8"))
    found = list(unsupported(path.read_text(encoding="utf8"), {claim["id"]: claim["verdict"] for claim in claims}))
    assert not found, f"{path.name}: cite a decided claim: {found}"


@pytest.mark.parametrize(("text", "wrong"), [
    ("RDC is robust.", True), ("RDC is robust ({claim}`A8`).", False), ("RDC is robust ({claim}`A9`).", True),
    ("It is hard to fool. The verdict is {claim}`A8`.", True), ("It breaks under claim A8, which holds.", True),
    ("It breaks under claim A8, which does not hold.", False), ("The robust accuracy is an upper bound.", False),
    ("*Diffusion Models are Certifiably Robust Classifiers*", False), ("Nothing is claimed.", False), ("As {claim}`Z9` "
    "says.", True),
])  # fmt: skip
def test_a_strong_word_needs_a_verdict(text, wrong):
    assert bool(list(unsupported(text, {"A8": "does not hold", "A9": "not decided"}))) == wrong


def test_the_finding_is_cited_in_one_way():
    entry = (ROOT / "finding.bib").read_text(encoding="utf8").strip()
    assert f"```bibtex\n{entry}\n```" in (ROOT / "README.md").read_text(encoding="utf8")
    version = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf8"), re.MULTILINE)
    assert version is not None and f"version {version.group(1)}" in entry
