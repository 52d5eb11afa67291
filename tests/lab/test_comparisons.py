"""Comparisons of runs: against rliable, brute force, and their rate of false alarms."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pgjax.lab import comparisons

RLIABLE = json.loads((Path(__file__).with_name("rliable.json")).read_text(encoding="utf-8"))


def test_the_probability_of_improvement_is_that_of_rliable():
    x, y = np.array(RLIABLE["x"]), np.array(RLIABLE["y"])
    found, oracle = (
        comparisons.probability_of_improvement(x, y, num_resamples=20_000),
        RLIABLE["improvement"],
    )
    assert found.centre == pytest.approx(oracle["centre"][0], rel=1e-12)
    np.testing.assert_allclose([found.low, found.high], np.ravel(oracle["interval"]), atol=0.01)


def test_the_probability_of_improvement_counts_pairs_and_half_of_the_ties():
    x, y = [np.array([1.0, 2.0, 2.0]), np.array([0.0])], [np.array([2.0, 0.0]), np.array([5.0])]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(x[0], y[0])]
    found = comparisons.probability_of_improvement(x, y)
    assert found.centre == pytest.approx((np.mean(pairs) + 0.0) / 2)
    back = comparisons.probability_of_improvement(y, x)
    assert back.centre == pytest.approx(1 - found.centre)
    with pytest.raises(ValueError, match="2 tasks; it must have 1"):
        comparisons.probability_of_improvement(x[0], y)


def test_the_interval_of_improvement_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(0.5 / np.sqrt(2))
    hits = 0
    for trial in range(300):
        x, y = rng.normal(0.5, 1, size=20), rng.normal(size=15)
        found = comparisons.probability_of_improvement(x, y, num_resamples=300, seed=trial)
        hits += bool(found.low <= truth <= found.high)
    assert 0.87 <= hits / 300 <= 0.99


def holm_by_hand(p_values, count):
    """Rejects from the smallest p-value up; the corrected one is the level at which it goes."""
    corrected = {}
    worst = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (count - done) * p_values[index]))
        corrected[index] = worst
    return [corrected[index] for index in range(len(p_values))]


def test_holm_is_what_the_definition_gives():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    p_values = np.random.default_rng(1).uniform(size=12) ** 3
    for count in (12, 66):
        found = comparisons.holm(p_values, count)
        np.testing.assert_allclose(found, holm_by_hand(list(p_values), count))
    with pytest.raises(ValueError, match="num_comparisons=3"):
        comparisons.holm([0.1] * 4, 3)


def test_a_comparison_says_what_was_done():
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(2, 1, size=12), rng.normal(size=10), rng.normal(2, 1, size=9)
    clear, same = comparisons.compare(x, {"y": y, "z": z})
    oracle = stats.mannwhitneyu(x, y, alternative="two-sided")
    assert (clear.statistic, clear.p_value) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert clear.num_runs == (12, 10) and clear.num_comparisons == 2
    assert clear.corrected == pytest.approx(2 * clear.p_value)
    assert clear.improvement.centre == pytest.approx(clear.statistic / 120)
    assert clear.corrected < 0.01 < 0.2 < same.corrected
    assert (clear.test, clear.correction) == ("Mann-Whitney U, two-sided", "Holm")


def test_the_smallest_p_value_is_that_of_runs_that_do_not_overlap():
    for n, m in ((1, 1), (3, 4), (5, 5)):
        apart = stats.mannwhitneyu(np.arange(n), 100 + np.arange(m)).pvalue
        assert comparisons.smallest_p_value(n, m) == pytest.approx(apart)


def test_choosing_the_best_on_the_same_runs_raises_no_false_alarms():
    rng, configurations, trials = np.random.default_rng(3), 6, 400
    pairs = configurations * (configurations - 1) // 2
    alarms = {"all pairs": 0, "raw": 0}
    for _ in range(trials):
        runs = rng.normal(size=(configurations, 10))
        best = int(np.argmax(stats.trim_mean(runs, 0.25, axis=1)))
        others = np.delete(runs, best, axis=0)
        raw = stats.mannwhitneyu(runs[best][None], others, axis=1).pvalue
        alarms["all pairs"] += comparisons.holm(raw, pairs).min() <= 0.05
        alarms["raw"] += raw.min() <= 0.05
    # At most 0.05 up to three standard errors; uncorrected tests of the best far exceed it.
    assert alarms["all pairs"] / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert alarms["raw"] / trials > 0.15


@pytest.mark.parametrize("num", [3, 4, 5, 8])
def test_ties_make_no_p_value_smaller_than_there_is(num):
    # Where all runs reach the limit, SciPy's own choice is the normal approximation.
    best, other = np.full(num, 500.0), np.full(num, 9.0)
    (found,) = comparisons.compare(best, {"other": other})
    smallest = comparisons.smallest_p_value(num, num)
    assert found.p_value == pytest.approx(smallest)
    assert stats.mannwhitneyu(best, other).pvalue < smallest
