"""Statistics over seeds, against known values and against rliable."""

import json
from pathlib import Path

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


RLIABLE = json.loads(Path(__file__).with_name("rliable.json").read_text(encoding="utf-8"))
SCORES = np.array(RLIABLE["x"])
# The ends of percentile intervals of 20,000 samples differ by the chance of the draws.
CHANCE = 0.015


def same_as_rliable(summary, found):
    np.testing.assert_allclose(np.ravel(summary.centre), found["centre"], rtol=1e-12)
    ends = np.stack([np.ravel(summary.low), np.ravel(summary.high)])
    np.testing.assert_allclose(ends, found["interval"], atol=CHANCE)


@pytest.mark.parametrize("name", statistics.METRICS)
def test_metrics_and_their_intervals_are_those_of_rliable(name):
    metric = statistics.METRICS[name]
    summary = statistics.aggregate(SCORES, metric, num_resamples=20_000)
    same_as_rliable(summary, RLIABLE["metrics"][name])


def test_the_metrics_differ_on_these_scores():
    centres = [RLIABLE["metrics"][name]["centre"][0] for name in statistics.METRICS]
    assert np.min(np.diff(np.sort(centres))) > 2e-3


def test_profiles_and_their_bands_are_those_of_rliable():
    thresholds = np.array(RLIABLE["thresholds"])
    summary = statistics.performance_profile(SCORES, thresholds, num_resamples=20_000)
    # Shares move in steps of 1/36: an end of the band may fall on either side of one.
    np.testing.assert_allclose(summary.centre, RLIABLE["profile"]["centre"], rtol=1e-12)
    band = np.stack([summary.low, summary.high])
    np.testing.assert_allclose(band, RLIABLE["profile"]["interval"], atol=1 / 36 + 1e-9)


def test_curves_over_tasks_are_those_of_rliable():
    curve = np.array(RLIABLE["curve"])
    summary = statistics.aggregate(curve, num_resamples=20_000)
    found = RLIABLE["sample efficiency"]
    np.testing.assert_allclose(summary.centre, found["centre"], rtol=1e-12)
    ends = np.stack([summary.low, summary.high])
    spread = np.diff(found["interval"], axis=0)
    assert np.max(np.abs(ends - found["interval"]) / spread) < 0.05


def test_runs_are_drawn_within_tasks():
    # Tasks apart by far more than runs: drawn across tasks, the mean would move with the mixture.
    scores = np.array([0.0, 100.0]) + np.random.default_rng(5).normal(size=(10, 2))
    low, high = statistics.aggregate(scores, statistics.task_mean)[1:]
    assert high - low < 2
    pooled = statistics.aggregate(scores.reshape(-1), statistics.task_mean)
    assert pooled.high - pooled.low > 20


def test_tasks_may_differ_in_runs_and_come_by_name():
    ragged = {"one": np.array([0.0, 1.0, 2.0]), "two": np.array([10.0])}
    assert statistics.aggregate(ragged, statistics.task_mean).centre == pytest.approx(5.5)
    assert statistics.aggregate(list(ragged.values()), statistics.pooled_iqm).centre == 1.5
    with pytest.raises(ValueError, match="scores="):
        statistics.aggregate({"one": np.array([]), "two": np.array([1.0])})


def test_memory_is_bounded_without_changing_anything(monkeypatch):
    values = np.random.default_rng(6).normal(size=(8, 3, 5))
    whole = statistics.aggregate(values), statistics.resampled_iqms(values)
    monkeypatch.setattr(statistics, "AT_ONCE", 500)
    parts = statistics.aggregate(values), statistics.resampled_iqms(values)
    np.testing.assert_array_equal(whole[0].high, parts[0].high)
    np.testing.assert_array_equal(whole[1], parts[1])


def test_rows_with_gaps_have_the_iqm_of_what_they_hold():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(40, 11))
    values[rng.random(values.shape) < 0.4] = np.nan
    values[0] = np.nan
    expected = [stats.trim_mean(row[~np.isnan(row)], 0.25) for row in values[1:]]
    found = statistics.iqm_of_rows(values)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-12)
    assert np.isnan(found[0])


def test_many_configurations_at_once_have_the_intervals_of_one_at_a_time():
    rng = np.random.default_rng(8)
    values = rng.normal(size=(4, 1, 12))
    values[1, 0, 3:7] = np.nan  # Eight runs.
    resampled = statistics.resampled_iqms(values, num_resamples=20_000)
    found = np.stack(statistics.interval(resampled), axis=1)
    for row, ends in zip(values[:, 0], found, strict=True):
        oracle = statistics.summarise(row[~np.isnan(row)], num_resamples=20_000)
        # Of eight runs an end is one of few values, 0.05 apart; drawing twelve would move it 0.12.
        np.testing.assert_allclose(ends, oracle[1:], atol=0.06)


def test_where_no_run_is_missing_the_intervals_are_those_of_aggregate():
    values = np.random.default_rng(11).normal(size=(3, 2, 7))
    ends = np.stack(statistics.interval(statistics.resampled_iqms(values)), axis=1)
    oracle = [statistics.aggregate(list(tasks))[1:] for tasks in values]
    np.testing.assert_allclose(ends, oracle, rtol=1e-12)


def test_configurations_draw_the_same_seeds():
    shared = np.random.default_rng(9).normal(size=(1, 1, 10))
    resampled = statistics.resampled_iqms(np.concatenate([shared, shared + 1]))
    np.testing.assert_allclose(resampled[:, 1] - resampled[:, 0], 1.0)


def test_a_profile_leaves_out_what_was_not_made():
    scores = np.array([[1.0, 5.0], [2.0, np.nan], [np.nan, np.nan]])  # Seeds, configurations.
    summary = statistics.performance_profile([scores], np.array([0.0, 1.0, 1.5, 9.0]))
    np.testing.assert_allclose(summary.centre, [1, 2 / 3, 2 / 3, 0])
    assert np.all(summary.low <= summary.centre) and np.all(summary.centre <= summary.high)


def test_a_profile_is_strictly_above_and_its_band_holds_the_truth_as_often_as_it_says():
    assert statistics.performance_profile(np.array([1.0, 1.0]), np.array([1.0])).centre == 0.0
    rng = np.random.default_rng(10)
    hits = 0
    for trial in range(300):
        summary = statistics.performance_profile(
            rng.uniform(size=(15, 2)), np.array([0.4]), num_resamples=200, seed=trial
        )
        hits += bool(summary.low[0] <= 0.6 <= summary.high[0])
    # Nominal 0.95, a little less for percentiles of few runs; five standard errors are 0.06.
    assert 0.87 <= hits / 300 <= 0.99
