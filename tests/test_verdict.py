"""Laws of the one rule: exact tests against enumeration, coverage of the intervals, and cases whose answer is known."""

import math
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, ttest_ind, ttest_rel

from rdc.runs.intervals import newcombe, tango
from rdc.runs.statistics import beside
from rdc.runs.verdict import OUTCOMES, Comparison, Means, decide, decide_all

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def split(pairs: list[tuple[bool, bool]]) -> tuple[list[bool], list[bool]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


@given(outcomes)
def test_exchanging_the_two_turns_the_verdict_round(pairs: list[tuple[bool, bool]]) -> None:
    a, b = split(pairs)
    one, other = decide(a, b), decide(b, a)
    turned = {"holds": "does not hold", "does not hold": "holds"}
    assert other.outcome == turned.get(one.outcome, one.outcome)
    assert math.isclose(one.p, other.p) and math.isclose(one.value, -other.value, abs_tol=1e-12)
    assert all(math.isclose(x, -y, abs_tol=1e-12) for x, y in zip(one.interval, reversed(other.interval), strict=True))


@given(outcomes)
def test_the_p_value_is_that_of_a_sign_test_by_enumeration(pairs: list[tuple[bool, bool]]) -> None:
    a, b = split(pairs)
    won, lost = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    m = won + lost
    each = [math.comb(m, k) / 2**m for k in range(m + 1)]
    wanted = min(1.0, sum(q for q in each if q <= each[won] * (1 + 1e-9)))
    assert math.isclose(decide(a, b).p, wanted, rel_tol=1e-9)
    assert decide(a, b).outcome == ("not decided" if wanted >= 0.05 else "holds" if won > lost else "does not hold")


@pytest.mark.parametrize("disagree", [0.05, 0.2, 0.5])
def test_two_equal_defences_are_told_apart_at_most_at_the_level(disagree: float) -> None:
    n, wrong = 48, 0.0
    for m in range(n + 1):
        for won in range(m + 1):
            if binomtest(won, m).pvalue < 0.05 if m else False:
                wrong += binom.pmf(m, n, disagree) * binom.pmf(won, m, 0.5)
    assert 0 < wrong <= 0.05


@pytest.mark.parametrize(("n", "only_a", "only_b"), [(40, 0.2, 0.05), (96, 0.3, 0.1), (40, 0.1, 0.1), (20, 0.5, 0.02)])
def test_the_paired_interval_covers(n: int, only_a: float, only_b: float) -> None:
    covered = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            low, high = tango(i, j, n)
            if low <= only_a - only_b <= high:
                rest = n - i - j
                log = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(j + 1) - math.lgamma(rest + 1)
                covered += math.exp(log + i * math.log(only_a) + j * math.log(only_b) + rest * math.log(1 - only_a - only_b))
    assert 0.93 < covered < 0.99


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_at_the_ends_of_the_paired_interval_the_score_is_the_quantile(only_a: int, only_b: int, rest: int) -> None:
    """The likelihood is maximised by search, with the difference held at the end, and the score is computed from its cells."""
    n = only_a + only_b + rest
    assume(n > 0)

    def score(difference: float) -> float:
        low, high = max(0.0, -difference), (1 - difference) / 2

        def loss(q: float) -> float:
            cells = ((only_a, q + difference), (only_b, q), (rest, 1 - difference - 2 * q))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        q = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
        q = min((q, low, high), key=loss)
        variance = n * ((q + difference) + q - difference**2)
        return abs(only_a - only_b - n * difference) / math.sqrt(variance)

    for end in tango(only_a, only_b, n):
        if abs(end) < 1 - 1e-9:
            assert math.isclose(score(end), 1.959964, rel_tol=2e-3)


def test_the_paired_interval_without_images_that_decide() -> None:
    """Closed form: z^2 / (n + z^2) on either side; it shrinks with n and does not vanish."""
    for n in (1, 48, 1000):
        end = 1.959964**2 / (n + 1.959964**2)
        assert tango(0, 0, n) == pytest.approx((-end, end), rel=1e-6)
    assert tango(30, 0, 30)[1] == 1 and tango(0, 30, 30)[0] == -1


def test_a_margin_and_no_effect_at_zero_is_monotone_in_the_number_of_images() -> None:
    """134 against 141 of 192, less five points: open now, and more of the same only ever make it hold."""
    one = paired(134, 0, 7, 51)
    verdicts = [decide(*(side * m for side in one), bound=-0.05).outcome for m in (1, 2, 4, 8, 16)]
    assert verdicts == sorted(verdicts, key=["not decided", "holds"].index) and verdicts[0] == "not decided"
    assert verdicts[-1] == "holds"


@pytest.mark.parametrize(("p", "q", "n", "m"), [(0.3, 0.1, 32, 48), (0.9, 0.7, 32, 32), (0.5, 0.5, 24, 96)])
def test_the_unpaired_interval_covers(p: float, q: float, n: int, m: int) -> None:
    covered = 0.0
    for i, j in product(range(n + 1), range(m + 1)):
        low, high = newcombe(i, n, j, m)
        covered += (low <= p - q <= high) * binom.pmf(i, n, p) * binom.pmf(j, m, q)
    assert 0.93 < covered < 0.985


def paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Outcomes from the four counts."""
    pairs = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    return split(pairs)


def test_cases_whose_answer_is_known() -> None:
    n512 = paired(117, 127, 3, 265)  # two defences under the same attack, 127 right for one only, 3 for the other
    assert decide(*n512).outcome == "holds" and decide(*n512).p < 1e-30
    assert decide(*paired(10, 5, 5, 28)).outcome == "not decided"
    assert decide(*paired(20, 0, 0, 76), equal=0.05).outcome == "holds"  # the same images: equal within 5 %
    assert decide(*paired(5, 1, 0, 6), equal=0.05).outcome == "not decided"  # too few images to say so
    assert decide(*paired(0, 30, 0, 18), equal=0.05).outcome == "does not hold"


def test_an_effect_can_be_refuted_at_its_size_though_zero_is_not_excluded() -> None:
    found = decide((15, 32), (16, 32), effect=0.69)  # claimed: 2 % against 72 %
    assert found.outcome == "refuted" and found.interval[0] < 0 < found.interval[1] < 0.69
    assert decide((15, 32), (16, 32), effect=0.1).outcome == "not decided"


def test_a_rate_against_a_bound() -> None:
    assert decide((30, 32), bound=0.72).outcome == "holds"
    assert decide((15, 32), bound=0.72).outcome == "does not hold"
    assert decide((23, 32), bound=0.72).outcome == "not decided"
    low, high = decide((0, 10), bound=0.5).interval
    assert low == 0 and math.isclose(high, 1 - 0.025**0.1)


def test_an_attack_that_breaks_nothing_decides_nothing() -> None:
    a, b = paired(10, 20, 0, 0)
    assert decide(a, b, broken=1).outcome == "holds"
    assert decide(a, b, broken=0).outcome == "not decided" and "nothing" in decide(a, b, broken=0).reason


def comparison(won: int, lost: int, n: int = 60) -> Comparison:
    return Comparison(*paired(0, won, lost, n - won - lost))


def test_comparisons_of_a_claim_are_corrected_together() -> None:
    """p = 0.0039, 0.031 and 0.25: Holm keeps the first at 0.05 / 3 and not the second, though each is below 0.05 alone."""
    parts = [comparison(9, 0), comparison(6, 0), comparison(3, 0)]
    whole, each = decide_all(parts)
    assert [v.outcome for v in each] == ["holds", "not decided", "not decided"] and whole.outcome == "not decided"
    assert decide_all([comparison(12, 0), comparison(0, 12), comparison(1, 1)])[0].outcome == "does not hold"
    assert decide_all([comparison(12, 0)] * 3)[0].outcome == "holds"
    alone, _ = decide_all(parts[:1])
    assert alone.p == decide(parts[0].a, parts[0].b).p


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=6), st.randoms())
def test_the_order_of_the_comparisons_does_not_matter(numbers: list[tuple[int, int]], random: object) -> None:
    parts = [comparison(*pair) for pair in numbers]
    whole, each = decide_all(parts)
    shuffled = list(range(len(parts)))
    random.shuffle(shuffled)
    again, other = decide_all([parts[i] for i in shuffled])
    assert again.outcome == whole.outcome and whole.outcome in OUTCOMES
    assert sorted(v.outcome for v in other) == sorted(v.outcome for v in each)


def test_a_family_of_true_hypotheses_is_contradicted_at_most_at_the_level() -> None:
    """Two comparisons without any difference, of 10 discordant images each, by enumeration."""
    wrong = 0.0
    for i, j in product(range(11), repeat=2):
        _, each = decide_all([comparison(i, 10 - i), comparison(j, 10 - j)])
        wrong += binom.pmf(i, 10, 0.5) * binom.pmf(j, 10, 0.5) * any(v.outcome != "not decided" for v in each)
    assert 0 < wrong <= 0.05


@pytest.mark.parametrize(
    ("a", "b", "options", "word"),
    [
        ([True], [True, False], {}, "same images"),
        ([], [], {}, "n >= 1"),
        ((5, 4), (1, 4), {}, "0 <= k <= n"),
        ((1, 4), [True], {}, "both"),
        ((1, 4), None, {}, "bound"),
        ((1, 4), (2, 4), {"equal": 0.0}, "positive"),
        ((1, 4), (2, 4), {"equal": 0.1, "bound": 0.2}, "without"),
    ],
)
def test_what_cannot_be_compared_is_named(a: object, b: object, options: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        decide(a, b, **options)


def test_a_claim_needs_a_comparison() -> None:
    with pytest.raises(ValueError, match="needs a comparison"):
        decide_all([])


@given(st.integers(0, 40), st.floats(0.05, 0.95))
def test_where_the_interval_decides_p_is_the_level_at_which_it_begins_to(k: int, bound: float) -> None:
    found = decide((k, 40), bound=bound)
    assert 0 < found.p <= 1 and (found.p < 0.05) == (found.outcome != "not decided")
    if 1e-9 < found.p < 0.99:
        assert decide((k, 40), bound=bound, level=1.01 * found.p).outcome != "not decided"
        assert decide((k, 40), bound=bound, level=0.99 * found.p).outcome == "not decided"


RATES = [(9, 51, 0.5), (90, 96, 0.99), (41, 51, 0.75), (0, 8, 0.3), (8, 8, 0.6), (30, 60, 0.5)]


@pytest.mark.parametrize(("k", "n", "bound"), RATES)
def test_the_p_value_of_a_rate_is_the_level_at_which_its_interval_begins_to_decide(k, n, bound):
    p = decide((k, n), bound=bound).p
    assert p == 1 or decide((k, n), bound=bound, level=p * 1.001).outcome in ("holds", "does not hold")
    assert decide((k, n), bound=bound, level=p * 0.999).outcome == "not decided"


def test_means_are_decided_by_students_test() -> None:
    a, b = [3.1, 4.2, 5.0, 4.4], [2.9, 3.1, 4.4, 3.6]
    pair, two = ttest_rel(a, b), ttest_ind(a, b)
    found, free = decide(Means(a), Means(b)), decide(Means(a, False), Means(b, False))
    assert math.isclose(found.p, pair.pvalue) and math.isclose(free.p, two.pvalue) and math.isclose(found.value, free.value)
    assert (found.outcome, free.outcome) == ("holds", "not decided") and decide(Means(b), Means(a)).outcome == "does not hold"
    assert all(math.isclose(x, y) for x, y in zip(found.interval, pair.confidence_interval(), strict=True))
    assert all(math.isclose(x, y) for x, y in zip(free.interval, two.confidence_interval(), strict=True))
    assert decide(Means(a), bound=2.5).outcome == "holds" and decide(Means(a), bound=4.0).outcome == "not decided"
    assert decide(Means(a), Means(a)).p == 1 and decide(Means(a), Means(b), equal=2.0).outcome == "holds"


def test_one_run_is_compared_with_the_seeds_of_another() -> None:
    seeds = [1.0, 1.2, 0.8, 1.1, 0.9]
    found, wanted = decide(Means([2.0], False), Means(seeds, False)), beside(2.0, seeds)
    assert found.outcome == "holds" and found.interval == pytest.approx((wanted.low, wanted.high))
    _, parts = decide_all([Comparison(Means([2.0], False), Means(seeds, False)) for _ in range(3)])
    assert all(part.interval[0] < wanted.low for part in parts), "corrected together"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Means([1.0, 2.0]), [True, False]), (Means([1.0, 2.0]), Means([1.0, 2.0], False)), (Means([1.0, 2.0]), Means([1.0])),
        (Means([1.0], False), Means([2.0], False)), (Means([], False), Means([1.0, 2.0], False)),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_compared_are_told(a: Means, b: object) -> None:
    with pytest.raises(ValueError, match="numbers|repetitions"):
        decide(a, b)
