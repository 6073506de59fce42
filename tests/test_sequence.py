"""Looked at again and again, the bounds are wrong with probability at most alpha: exactly, by recursion over the counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binom, norm

from rdc.certify.clopper_pearson import clopper_pearson
from rdc.certify.confidence_sequence import STOPPINGS, Plan, log_mixture, sequence_lower, split_alpha

COUNTS = st.integers(0, 60).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, 60)))


def walk(looks, p, ends):
    """Distribution of the count over a schedule of looks, stopped where ``ends(look, k)`` names an event; exact.

    Returns the probability of each event and the mean number of draws.
    """
    alive, made, events, mean = np.ones(1), 0, {}, 0.0
    for look, n in enumerate(looks):
        mean += alive.sum() * (n - made)
        alive = np.convolve(alive, binom.pmf(np.arange(n - made + 1), n - made, p))
        made, k = n, np.arange(len(alive))
        for name, hit in ends(look, k).items():
            events[name] = events.get(name, 0.0) + alive[hit].sum()
            alive = np.where(hit, 0.0, alive)
    return {**events, "left": alive.sum()}, mean


def outcome(plan, p):
    """Exact probabilities of the outcomes of a plan when the probability of success is p."""
    return walk(plan.looks, p, lambda look, k: {"met": plan.met(k, look), "futile": plan.futile(k, look)})


@given(COUNTS, st.floats(0.05, 0.95))
def test_the_mixture_is_the_integral(counts, p):
    k, failures = counts
    prior = beta(1, 0.5)

    def ratio(u):  # q = 1 - u^2, so that the pole of the prior at 1 is no pole any more
        q = 1 - u * u
        return math.exp(k * math.log(q / p) + 2 * failures * math.log(u) - failures * math.log1p(-p)) if 0 < u < 1 else 0.0

    top = math.sqrt(1 - p)
    value = quad(ratio, 0, top, limit=200, epsabs=0, epsrel=1e-9)[0] / prior.sf(p)  # the density of q times 2u is 1
    assert math.exp(log_mixture(k, k + failures, p)) == pytest.approx(value, rel=1e-6)


@given(COUNTS, st.floats(0.05, 0.95), st.floats(0, 1))
def test_the_mixture_is_a_supermartingale(counts, p, fraction):
    """For every true probability that is at most p, one more draw raises the mean by nothing; at p itself it keeps it."""
    k, n = counts[0], sum(counts)
    now, success, failure = (math.exp(log_mixture(a, b, p)) for a, b in ((k, n), (k + 1, n + 1), (k, n + 1)))
    q = p * fraction
    assert q * success + (1 - q) * failure <= now * (1 + 1e-9)
    assert p * success + (1 - p) * failure == pytest.approx(now, rel=1e-9)


def test_the_bound_inverts_the_mixture_and_is_below_the_one_for_a_single_look():
    n = np.array([20, 100, 1000, 10_000])[:, None]
    k = np.round(n * np.array([0.3, 0.55, 0.9, 0.95, 1.0]))
    low = sequence_lower(k, n, 0.001)
    assert np.allclose(log_mixture(k, n, low), math.log(1000), atol=1e-5)
    assert np.all(log_mixture(k, n, low + 1e-7) < math.log(1000))  # valid side: what is above is not rejected
    assert np.all(low < clopper_pearson(k, n, 0.001)) and np.all(np.diff(low, axis=1) > 0)
    assert sequence_lower(0, 0, 0.01) == sequence_lower(0, 50, 0.01) == 0.0
    assert [round(float(norm.ppf(sequence_lower(k, 10_000, 0.001))), 3) for k in (10_000, 9_900)] == [3.153, 2.173]


@pytest.mark.parametrize("p", [0.5, 0.75, 0.95, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_ever_wrong_with_probability_at_most_alpha(p, alpha):
    """At every n up to 400 one looks; the bound is above the truth p exactly where p is rejected."""
    every = range(1, 401)

    def sequence(look, k):
        return {"wrong": log_mixture(k, every[look], p) >= -math.log(alpha)}

    assert walk(every, p, sequence)[0]["wrong"] <= alpha
    geometric = [10, 15, 23, 34, 51, 76, 114, 171, 256, 384]

    def split(look, k):
        return {"wrong": clopper_pearson(k, geometric[look], float(split_alpha(alpha, look + 1))) > p}

    assert walk(geometric, p, split)[0]["wrong"] <= alpha


def test_peeking_with_the_bound_for_a_single_look_is_wrong_far_more_often():
    looks = range(10, 401, 10)
    naive = walk(looks, 0.9, lambda look, k: {"wrong": clopper_pearson(k, looks[look], 0.05) > 0.9})[0]["wrong"]
    assert naive > 0.15


@pytest.mark.parametrize("stopping", STOPPINGS)
@pytest.mark.parametrize(("p", "alpha"), [(0.5, 0.01), (0.8413, 0.001), (0.9773, 0.01)])
def test_a_plan_keeps_alpha_and_its_chance_to_give_up(stopping, p, alpha):
    """At the target itself "met" would be a lie by nothing, below it by more; both have probability at most alpha."""
    plan = Plan(stopping, 2000, p, alpha, give_up=0.02)
    at, below = outcome(plan, p)[0], outcome(plan, p - 0.02)[0]
    assert 0 < below["met"] <= at["met"] <= alpha

    def rejected(look, k):
        return {"gave up": plan.futile(k, look) & ~plan.hopeless(k, look)}

    assert 0 < walk(plan.looks, p, rejected)[0]["gave up"] <= 0.02
    assert Plan(stopping, 2000, p, alpha, give_up=0).futile(0, 0) == plan.hopeless(0, 0)


@pytest.mark.parametrize("stopping", STOPPINGS)
def test_simulated_runs_agree_with_the_recursion(stopping):
    """1000 runs of the plan: false claims at most alpha, and shares and draws as computed."""
    plan, runs = Plan(stopping, 600, 0.9, 0.05, give_up=0.05), 1000
    for p in (0.9, 0.95):
        successes = np.cumsum(np.random.default_rng(0).random((runs, plan.n), dtype=np.float32) < p, axis=1)
        running, met, draws = np.ones(runs, bool), np.zeros(runs, bool), np.zeros(runs)
        for look, n in enumerate(plan.looks):
            k = successes[:, n - 1]
            draws[running] = n
            met |= running & plan.met(k, look)
            running &= ~(plan.met(k, look) | plan.futile(k, look))
        exact, mean = outcome(plan, p)
        low, high = binom.interval(1 - 1e-4, runs, exact["met"])
        assert low <= met.sum() <= high and draws.mean() == pytest.approx(mean, rel=0.1)
        assert p > 0.9 or met.sum() <= binom.ppf(1 - 1e-4, runs, plan.alpha)


def test_what_is_clear_is_clear_early():
    """Draws for "is the radius at least sigma?": where all succeed, and on average; of a fixed n of 10 000 a small part."""
    assert [Plan("sequence", 10_000, norm.cdf(r), 0.001).fewest for r in (1, 2, 3)] == [47, 351, 5977]
    assert [Plan("split", 10_000, norm.cdf(r), 0.001).fewest for r in (1, 2, 3)] == [44, 331, 5627]
    for stopping in STOPPINGS:
        plan = Plan(stopping, 2000, norm.cdf(1), 0.001)
        clear_in, clear_out = outcome(plan, 0.95), outcome(plan, 0.6)
        assert clear_in[0]["met"] > 0.999 and clear_in[1] < 250
        assert clear_out[0]["futile"] > 0.999 and clear_out[1] < 120


@given(st.sampled_from(STOPPINGS), st.integers(100, 800), st.floats(0.5, 0.93), st.sampled_from([0.05, 0.001]), st.floats(0, 1))
def test_looks_shares_and_hopelessness(stopping, n, p, alpha, fraction):
    plan = Plan(stopping, max(n, Plan(stopping, 10**6, p, alpha).fewest), p, alpha)
    looks = np.array(plan.looks)
    assert looks[-1] == plan.n and np.all(np.diff(looks) > 0)
    assert split_alpha(alpha, np.arange(1, len(looks) + 1)).sum() < alpha
    at = int(fraction * (len(looks) - 1))
    k = np.arange(looks[at] + 1)
    ahead = [plan.met(k + looks[j] - looks[at], j) for j in range(at + 1, len(looks))]
    assert np.array_equal(plan.hopeless(k, at), ~np.any(ahead, axis=0) if ahead else np.ones(len(k), bool))
    low = plan.lower(k, at)
    assert np.array_equal(plan.met(k, at), low >= p) or np.abs(low[plan.met(k, at) != (low >= p)] - p).max() < 1e-9


def test_the_fewest_draws_are_the_fewest():
    for stopping in STOPPINGS:
        for p in (0.5, 0.8, 0.99):
            need = Plan(stopping, 10**6, p, 0.001).fewest
            assert bool(Plan(stopping, need, p, 0.001).met(need, 0)) or stopping == "sequence"
            with pytest.raises(ValueError, match=f"do not reach the target at alpha 0.001; it takes about {need}"):
                Plan(stopping, need - 1, p, 0.001)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stopping": "peek"}, "unknown stopping 'peek'; there are sequence, split"),
        ({"alpha": 0.0}, "alpha must lie"),
        ({"p": 0.4}, "p in"),
        ({"p": 1.0}, "more draws than there can be"),
        ({"n": 0}, "n must be positive"),
        ({"give_up": 1.0}, "give_up"),
    ],
)
def test_a_bad_plan_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Plan(**{"stopping": "sequence", "n": 1000, "p": 0.8, "alpha": 0.01, **options})
    with pytest.raises(ValueError, match="0 <= k <= n"):
        sequence_lower(3, 2, 0.1)
