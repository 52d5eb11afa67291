"""Statistics over seeds, against known values."""

import numpy as np
import pytest
from scipy import stats

from pgjax.lab import statistics


def test_iqm_is_the_mean_of_the_middle_half():
    values = np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0])
    assert statistics.iqm(values) == pytest.approx(np.mean([2.0, 3.0, 4.0, 5.0]))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_of_fewer_than_four_it_is_the_mean(seeds):
    values = np.random.default_rng(0).normal(size=(seeds, 3))
    np.testing.assert_allclose(statistics.iqm(values), values.mean(0))
    assert statistics.centre_name(seeds) == "mean"
    assert statistics.centre_name(4) == "IQM"
    assert statistics.iqm(np.array([0.0, 0.0, 0.0, 8.0])) == 0.0


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).normal(size=20)
    summary = statistics.summarise(values, num_resamples=20_000)
    oracle = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    np.testing.assert_allclose([summary.low, summary.high], oracle, atol=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        summary = statistics.summarise(rng.normal(size=20), num_resamples=200, seed=trial)
        hits += bool(summary.low <= 0 <= summary.high)
    # Percentile intervals of so few seeds are a little short: about 0.92.
    assert 0.86 <= hits / 200 <= 0.98


def test_curves_are_summarised_point_by_point_and_reproducibly():
    values = np.random.default_rng(4).normal(size=(6, 5))
    summary = statistics.summarise(values)
    assert summary.centre.shape == summary.low.shape == summary.high.shape == (5,)
    assert np.all(summary.low <= summary.centre) and np.all(summary.centre <= summary.high)
    np.testing.assert_array_equal(statistics.summarise(values).low, summary.low)


def test_one_seed_has_an_interval_of_no_width():
    summary = statistics.summarise(np.array([3.0]))
    assert summary.low == summary.centre == summary.high == 3.0
