"""Laws of the statistics of repetitions: closed forms, scipy's tests, and coverage."""

import numpy as np
import pytest
from scipy.stats import f_oneway, mannwhitneyu, norm, ttest_1samp, ttest_ind, ttest_rel

from rdc.runs.statistics import Interval, auroc, beside, main_effects, ratio_of_spreads, repeated


def test_repetitions_have_students_interval():
    values = np.random.default_rng(0).normal(size=5).tolist()
    low, high = ttest_1samp(values, 0).confidence_interval(0.9)
    found = repeated(values, 0.9)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 5)
    assert f"{Interval(1.5, 1.25, 1.75, 4):.1f}" == "1.5 [1.2, 1.8]"
    with pytest.raises(ValueError, match="at least two"):
        repeated([1.0])


def test_the_ratio_of_spreads_covers_its_truth_and_its_p_is_uniform_without_effect():
    rng, hits, small = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        cells, seeds = rng.normal(5, 1, 15), rng.normal(5, 1, 5)
        found = ratio_of_spreads(cells.tolist(), seeds.tolist())
        ratio = found.interval
        assert ratio.value == pytest.approx(np.std(cells, ddof=1) / np.std(seeds, ddof=1)) and found.degrees == (14, 4)
        hits, small = hits + (ratio.low <= 1 <= ratio.high), small + (found.p < 0.1)
        wide = ratio_of_spreads((3 * cells).tolist(), seeds.tolist()).interval
        assert (wide.low, wide.value, wide.high) == pytest.approx((3 * ratio.low, 3 * ratio.value, 3 * ratio.high))
    assert 929 <= hits <= 971 and 71 <= small <= 129  # three standard deviations
    for cells, seeds in (([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="a spread needs two values"):
            ratio_of_spreads(cells, seeds)


def test_two_columns_are_a_paired_t_test():
    table = np.random.default_rng(1).normal(size=(4, 2))
    _, columns = main_effects(table.tolist())
    pair = ttest_rel(table[:, 0], table[:, 1])
    assert columns.F == pytest.approx(pair.statistic**2) and columns.p == pytest.approx(pair.pvalue)
    low, high = pair.confidence_interval(0.95)
    assert [(e.high - e.low) / 2 for e in columns.effects] == pytest.approx([(high - low) / 4] * 2)


def test_main_effects_are_least_squares():
    table = np.random.default_rng(2).normal(size=(5, 3)) + np.arange(5)[:, None] + 2 * np.arange(3)
    found = main_effects(table.tolist())
    rows, columns = (np.kron(a, b) for a, b in ((np.eye(5), np.ones((3, 1))), (np.ones((5, 1)), np.eye(3))))
    one, left = np.ones((15, 1)), {}
    for name, design in (("all", [one, rows, columns]), ("rows", [one, columns]), ("columns", [one, rows])):
        design = np.concatenate(design, axis=1)
        left[name] = ((table.ravel() - design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]) ** 2).sum()
    for margin, name, count in zip(found, ("rows", "columns"), (4, 2), strict=True):
        assert margin.F == pytest.approx((left[name] - left["all"]) / count / (left["all"] / 8))
    moved = main_effects((table + np.array([[10], [0], [0], [0], [-10]])).tolist())
    assert [e.low for e in moved[1].effects] == pytest.approx([e.low for e in found[1].effects])
    assert moved[0].effects[0].value == pytest.approx(found[0].effects[0].value + 10)
    alone = f_oneway(*(table - np.array([c.value for c in found[1].effects])))  # columns known: 10 degrees in place of 8
    assert found[0].F == pytest.approx(alone.statistic * 8 / 10)


def test_the_effects_of_a_table_without_any_are_covered():
    rng = np.random.default_rng(3)
    tables = [main_effects(rng.normal(size=(5, 3)).tolist()) for _ in range(600)]
    for k in (0, 1):
        inside = np.mean([e.low <= 0 <= e.high for found in tables for e in found[k].effects])
        assert inside == pytest.approx(0.95, abs=0.02)
        assert np.mean([found[k].p < 0.2 for found in tables]) == pytest.approx(0.2, abs=0.05)


def test_one_run_beside_several():
    rng = np.random.default_rng(4)
    one, several = 3.0, rng.normal(size=5).tolist()
    found, p = beside(one, several), ttest_ind([one], several).pvalue  # pooled: the variance of the several
    edge = beside(one, several, level=1 - p)
    assert edge.low == pytest.approx(0, abs=1e-9) and found.value == pytest.approx(one - np.mean(several))
    again = [beside(v[0], v[1:]) for v in rng.normal(size=(2000, 6)).tolist()]
    assert np.mean([a.low <= 0 <= a.high for a in again]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("share", [None, 0.9])
def test_the_auroc_is_mann_whitneys_and_its_interval_covers_its_truth(share):
    """Two normal distributions, of the same images with a correlation, or of others."""
    rng, hits, truth = np.random.default_rng(1), 0, norm.cdf(1 / np.sqrt(2))
    for _ in range(400):
        a, b = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
        a = a if share is None else 1 + share * b + np.sqrt(1 - share**2) * (a - 1)
        found = auroc(a.tolist(), b.tolist(), paired=share is not None)
        assert found.value == pytest.approx(mannwhitneyu(a, b).statistic / 1600) and found.low < found.value < found.high
        hits += found.low <= truth <= found.high
        turned = auroc(b.tolist(), a.tolist(), paired=share is not None)
        assert (1 - turned.high, 1 - turned.low) == pytest.approx((found.low, found.high))
    assert 366 <= hits <= 393  # three standard deviations, and DeLong is a little short


def test_an_auroc_of_ties_and_of_sides_that_are_apart():
    assert auroc([1, 1], [1, 1]).value == 0.5
    apart = auroc([2.0, 3.0, 4.0], [0.0, 1.0])
    assert apart.value == 1 == apart.high and apart.low < 0.5 and auroc([0, 1], [2, 3]).low == 0
    with pytest.raises(ValueError, match="got 1 and 2"):
        auroc([1], [1, 2])
    with pytest.raises(ValueError, match="got 3 and 2"):
        auroc([1, 2, 3], [1, 2], paired=True)
