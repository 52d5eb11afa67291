"""Tables of a sweep."""

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from pgjax.lab import comparisons, statistics
from pgjax.lab.sweep import scores, tables, words

from . import synthetic


def test_every_configuration_has_a_row_with_its_numbers():
    data = synthetic.grid()
    (ranking,) = scores.rankings(data)
    rows = tables.configurations(ranking)
    assert [row["rank"] for row in rows] == list(range(1, 17))
    best = rows[0]
    assert {name: best[name] for name in synthetic.BEST} == synthetic.BEST
    runs = data["evaluation_return"].sel(synthetic.BEST).values
    oracle = statistics.summarise(runs)
    assert [best[x] for x in ("seeds", "mean", "min", "max")] == pytest.approx(
        [8, runs.mean(), runs.min(), runs.max()]
    )
    assert best["iqm"] == pytest.approx(float(oracle.centre))
    assert [best["low"], best["high"]] == pytest.approx([float(x) for x in oracle[1:]])
    assert sum(row["diverged"] for row in rows) == sum(row["without_score"] for row in rows) == 1


def test_configurations_without_a_score_come_last_and_unranked():
    data = synthetic.grid()
    data["finished"][{"learning_rate": 2, "discount": 1, "form": 1}] = False
    rows = tables.configurations(scores.rankings(data)[0])
    assert len(rows) == 16 and rows[-1]["rank"] == "" and rows[-1]["seeds"] == 0
    assert {name: rows[-1][name] for name in synthetic.BEST} == synthetic.BEST


def test_the_best_is_compared_with_all_others_and_corrected_for_all_pairs():
    data = synthetic.grid()
    (ranking,) = scores.rankings(data)
    found = tables.against_best(ranking)
    rows = tables.comparison_rows(ranking, found)
    assert [row["rank"] for row in rows] == list(range(2, 17))
    second = data["evaluation_return"].sel({**synthetic.BEST, "form": "reward_to_go"}).values
    best = data["evaluation_return"].sel(synthetic.BEST).values
    (row,) = [x for x in rows if x["other"].endswith("0.01, discount=0.99, form=reward_to_go")]
    assert row["p_value"] == pytest.approx(stats.mannwhitneyu(best, second).pvalue)
    assert (row["num_comparisons"], row["correction"]) == (120, "Holm")
    p_values = [row["p_value"] for row in rows]
    expected = comparisons.holm(p_values, 120)
    np.testing.assert_allclose([row["corrected_p_value"] for row in rows], expected)
    assert row["probability_of_improvement"] == pytest.approx(
        np.mean(best[:, None] > second), abs=1e-12
    )
    assert min(row["runs_of_other"] for row in rows) == 7  # One run is not finished.


def test_equal_configurations_raise_no_alarm_though_the_best_is_chosen():
    alarms = raw = 0
    for key in range(100):
        data = synthetic.random(configurations=5, seeds=8, key=key)
        noise = np.random.default_rng(key).normal(size=(5, 8))
        data["evaluation_return"] = (("configuration", "seed"), noise)
        found = tables.against_best(scores.rankings(data)[0])
        alarms += min(one.corrected for one in found) <= 0.05
        raw += min(one.p_value for one in found) <= 0.05
    assert alarms <= 100 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 100))
    assert raw > 15  # The negative control: without the correction there are many.


def test_over_environments_there_is_an_improvement_and_no_test():
    axes = {"env": ["CartPole-v1", "Acrobot-v1"], **synthetic.GRID}
    data = synthetic.grid(axes=axes)
    # A run that is missing in one environment only.
    data["finished"][{"env": 0, "learning_rate": 2, "discount": 1, "form": 0, "seed": 0}] = False
    both = scores.rankings(data)[-1]
    found = {one.other: one for one in tables.against_best(both)}
    assert all(math.isnan(one.p_value) and one.test == tables.NO_TEST for one in found.values())
    other = str(int(np.flatnonzero(both.num_runs == 15)[0]))
    expected = np.mean(
        [
            np.mean(x[:, None] > y)
            for x, y in zip(both.runs(both.best), both.runs(int(other)), strict=True)
        ]
    )
    assert float(found[other].improvement.centre) == pytest.approx(expected)
    (row, *_) = tables.metrics(both, 3)
    assert list(row) == ["configuration", *statistics.METRICS]


def test_hyperparameters_have_levels_or_a_trend():
    (grid,), (random,) = map(scores.rankings, (synthetic.grid(), synthetic.random(200)))
    rows = tables.hyperparameter_levels(grid)
    assert [row["value"] for row in rows] == [x for axis in synthetic.GRID.values() for x in axis]
    assert not tables.hyperparameter_trends(grid)
    assert {row["hyperparameter"] for row in tables.hyperparameter_levels(random)} == {"form"}
    rate, discount = tables.hyperparameter_trends(random)
    name = "rank correlation with the score"
    oracle = stats.spearmanr(
        random.hyper["discount"][random.order], random.summary.centre[random.order]
    )
    assert discount[name] == pytest.approx(oracle.statistic) and discount[name] > 0.1
    assert rate["lowest"] <= rate["of the best"] <= rate["highest"]


def test_tables_can_be_read_back_with_all_digits():
    (ranking,) = scores.rankings(synthetic.random(6, seeds=1))
    rows = tables.configurations(ranking)
    read = list(csv.DictReader(io.StringIO(tables.as_csv(rows))))
    assert [float(row["iqm"]) for row in read] == [row["iqm"] for row in rows]
    assert float(read[0]["learning_rate"]) == rows[0]["learning_rate"]
    assert {row["low"] for row in read} == {""}  # One seed.
    assert tables.as_csv([], ["a", "b"]) == "a,b\n"


def test_markdown_keeps_bars_in_their_cell():
    table = tables.markdown([{"a": "x|y", "b": math.nan}, {"a": 0.123456, "b": 1}])
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y |  |", "| 0.1235 | 1 |"]


def test_a_centre_without_an_interval_stands_alone():
    one, many = statistics.Summary(1.0, math.nan, math.nan), statistics.Summary(2.0, 1.0, 3.0)
    assert (words.in_words(one), words.in_words(many)) == ("1", "2 [1, 3]")
