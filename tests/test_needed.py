"""How many images would decide: closed forms, brute force, and claims that no number decides."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp, ttest_rel

from rdc.findings.claim import missing
from rdc.runs.needed import needed
from rdc.runs.verdict import Comparison, Means, decide

YES, NO = True, False


def test_of_images_that_all_point_one_way_six_are_needed():
    """The sign test of m tosses that all agree has p = 2^(1 - m), below 0.05 from 6 on."""
    assert needed([Comparison([YES, NO, NO], [NO, NO, NO])]) == 6
    assert needed([Comparison([YES, YES, NO], [NO, NO, NO])]) == 3
    assert needed([Comparison([NO, NO, NO], [YES, YES, YES])]) == 2


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_so_many_decide_and_one_fewer_does_not(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    times = needed([Comparison(a, b)], most=500)
    balance = sum(a) - sum(b)
    assert times is not None or abs(balance) < 0.2 * len(a)
    if times is not None:
        assert balance and decide(a * times, b * times).outcome != "not decided"
        assert times == 1 or decide(a * (times - 1), b * (times - 1)).outcome == "not decided"


def test_a_rate_beside_a_bound_and_numbers_agree_with_brute_force():
    wanted = next(m for m in range(1, 400) if binomtest(3 * m, 5 * m).proportion_ci(method="exact").low > 0.5)
    assert needed([Comparison((3, 5), bound=0.5)]) == needed([Comparison([YES, NO, YES, NO, YES], bound=0.5)]) == wanted > 1
    a, b = [1.0, 2.0, 4.0], [0.0, 3.0, 2.0]
    wanted = next(m for m in range(1, 400) if ttest_rel(a * m, b * m).pvalue < 0.05)
    assert needed([Comparison(Means(a), Means(b))]) == wanted > 1
    assert needed([Comparison((30, 100), (10, 100))]) == 1


def test_a_claim_waits_for_its_last_comparison_and_a_margin_for_a_narrow_interval():
    quick, slow = Comparison([YES, NO], [NO, NO]), Comparison([YES, YES, NO] + [NO] * 17, [NO, NO, YES] + [NO] * 17)
    each = [needed([c]) for c in (quick, slow)]
    both = needed([quick, slow])
    assert None not in (*each, both) and both >= max(each) > min(each)
    margin = needed([Comparison([YES] * 9 + [NO], [YES] * 9 + [NO], equal=0.05)])
    z2 = 1.959964**2  # where nothing differs, the interval ends at z^2 / (n + z^2)
    assert margin == math.ceil(z2 * (1 / 0.05 - 1) / 10) == 8


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (Comparison([YES, NO], [NO, YES]), "If these numbers stayed as they are, 10000 images would not decide it"),
        (Comparison([YES] * 9, [NO] * 9, broken=0), "No number of images would decide it, because an attack broke nothing"),
    ],
)
def test_what_no_number_of_images_decides(comparison, words):
    assert needed([comparison]) is None and missing([comparison], comparison) == (words, None)


def test_what_is_missing_in_words():
    one, other = Comparison([YES, NO, NO], [NO, NO, NO]), Comparison([YES, NO], [NO, NO])
    assert missing([one], one) == ("If these numbers stayed as they are, 6 times as many images (18) would decide it", 18)
    assert missing([one, other], one) == ("If these numbers stayed as they are, 7 times as many images would decide it", 21)
    numbers = Comparison(Means([1.0, 2.0]), bound=0.0)
    wanted = next(m for m in range(1, 9) if ttest_1samp([1.0, 2.0] * m, 0.0).pvalue < 0.05)
    assert missing([numbers], numbers)[0].endswith(f", {wanted} times as many repetitions ({2 * wanted}) would decide it")
