"""Figures of a sweep: what they say, and that every kind of sweep can be drawn."""

import json

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from pgjax.lab import statistics
from pgjax.lab.sweep import figures, panels, scores, sensitivity, tables

from . import synthetic


def ranked(data):
    return scores.rankings(data)[0]


def lines(axes):
    """What a panel's lines are called, and their points."""
    handles, labels = axes.get_legend_handles_labels()
    drawn = (x.lines[0] if hasattr(x, "lines") else x for x in handles)
    return dict(zip(labels, (x.get_xydata() for x in drawn), strict=True))


def test_all_figures_of_a_grid_are_drawn_and_not_blank(tmp_path):
    paths = figures.draw(synthetic.grid(), tmp_path / "made")
    names = ["sensitivity", "heat_maps", "sample_efficiency", "performance_profiles"]
    assert [x.name for x in paths] == [f"{x}.png" for x in (*names, "probability_of_improvement")]
    assert sorted((tmp_path / "made").iterdir()) == sorted(paths)
    for path in paths:
        image = (255 * matplotlib.image.imread(path)[..., :3]).astype(int)
        assert len(np.unique(image @ [1, 256, 65536])) > 100


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (synthetic.random(8), {"heat_maps"}),
        (synthetic.alone(), {"heat_maps", "sensitivity", "probability_of_improvement"}),
        (synthetic.alone(1), {"heat_maps", "sensitivity", "probability_of_improvement"}),
        (synthetic.grid(seeds=1), set()),
    ],
    ids=["random", "seeds only", "one run", "one seed"],
)
def test_what_a_sweep_has_not_is_not_drawn(data, missing, tmp_path):
    names = {path.stem for path in figures.draw(data, tmp_path)}
    everything = {"sensitivity", "heat_maps", "sample_efficiency", "performance_profiles"}
    assert names == (everything | {"probability_of_improvement"}) - missing


def test_environments_have_figures_of_their_own(tmp_path):
    axes = {"env": ["CartPole-v1", "Acrobot/odd name"], "form": synthetic.GRID["form"]}
    names = [path.name for path in figures.draw(synthetic.grid(axes=axes), tmp_path)]
    assert "sensitivity-CartPole-v1.png" in names
    assert "sample_efficiency-Acrobot_odd_name.png" in names
    assert "performance_profiles-all_environments.png" in names
    # Steps of different environments have nothing in common.
    assert "sample_efficiency-all_environments.png" not in names


def test_all_equal_and_no_finite_curve_can_be_drawn(tmp_path):
    data = synthetic.grid()
    data["evaluation_return"][:] = 1.0
    data["return"][:] = np.nan
    assert len(figures.draw(data, tmp_path)) == 5


def test_sensitivity_shows_the_best_and_the_average():
    ranking = ranked(synthetic.grid())
    figure = sensitivity.sensitivity(ranking)
    assert figure is not None
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("learning_rate", "log")
    assert axes.get_ylabel().split() == ranking.label.split()
    assert ranking.label.endswith("[reward]")
    drawn = lines(axes)
    assert list(drawn) == ["best of the other hyperparameters", "average over the others"]
    levels = scores.levels(ranking, "learning_rate")
    for points, centres in zip(
        drawn.values(),
        (
            [ranking.summary.centre[level.best] for level in levels],
            [level.average.centre for level in levels],
        ),
        strict=True,
    ):
        np.testing.assert_allclose(points[:, 0], synthetic.GRID["learning_rate"])
        np.testing.assert_allclose(points[:, 1], np.array(centres, float))
    edge = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edge.min() == pytest.approx(min(ranking.summary.low[x.best] for x in levels))
    assert edge.max() == pytest.approx(max(ranking.summary.high[x.best] for x in levels))
    choices = [label.get_text() for label in figure.axes[2].get_xticklabels()]
    assert choices == synthetic.GRID["form"]


def test_with_nothing_else_swept_there_is_one_line():
    ranking = ranked(synthetic.grid(axes={"learning_rate": [0.001, 0.01]}))
    figure = sensitivity.sensitivity(ranking)
    assert figure is not None and list(lines(figure.axes[0])) == ["IQM over seeds"]


def test_of_a_random_design_every_configuration_is_a_point_and_the_best_is_marked():
    ranking = ranked(synthetic.random(30))
    figure = sensitivity.sensitivity(ranking)
    assert figure is not None
    everything, best = (x.get_offsets() for x in figure.axes[0].collections)
    assert len(everything) == 30
    expected = ranking.hyper["learning_rate"][ranking.best], ranking.summary.centre.max()
    np.testing.assert_allclose(best, [expected])


def test_heat_maps_are_means_over_the_others():
    ranking = ranked(synthetic.grid())
    figure = sensitivity.heat_maps(ranking)
    assert figure is not None
    drawn = figure.axes[0].images[0].get_array()
    centres = ranking.summary.centre.reshape(4, 2, 2)
    np.testing.assert_allclose(drawn, centres.mean(axis=2))
    assert figure.axes[-1].get_ylabel().split() == ranking.label.split()
    assert "mean over the others" in figure.get_suptitle()


def test_not_more_than_six_pairs_are_drawn_and_the_figure_says_so():
    axes = {f"axis_{index}": [1.0, 2.0] for index in range(5)}
    data = synthetic.grid(axes={"learning_rate": [0.01]}, seeds=2)
    names = list(axes)
    data = data.squeeze("learning_rate", drop=True).expand_dims(axes)
    data.attrs |= {"swept": json.dumps(names), "scales": json.dumps(dict.fromkeys(names, "linear"))}
    figure = sensitivity.heat_maps(ranked(data))
    assert figure is not None and "the first 6 of 10 pairs" in figure.get_suptitle()
    assert sum(bool(axes.images) for axes in figure.axes) == 6


def test_learning_curves_are_those_of_finished_runs():
    data = synthetic.grid()
    ranking = ranked(data)
    figure = figures.sample_efficiency(ranking)
    assert figure is not None
    drawn = lines(figure.axes[0])
    best = data.sel(synthetic.BEST)
    label = panels.label(ranking, 0, ranking.best)
    end = drawn[label][-1]
    # All runs are at the end of their curves, or nearly: they differ in steps.
    steps = best["env_steps"].values[:, -1]
    assert end[0] == pytest.approx(steps.max())
    at_end = [
        np.interp(end[0], *pair)
        for pair in zip(best["env_steps"].values, best["return"].values, strict=True)
    ]
    assert end[1] == pytest.approx(stats.trim_mean(at_end, 0.25))
    assert len(drawn) == 5
    # The last has a run that is not finished and stops early; the curve does not.
    assert figure.axes[0].lines[-1].get_xdata().max() > 12 * 400


def test_a_curve_with_gaps_is_bridged():
    figure = figures.sample_efficiency
    data = synthetic.alone(3)  # Of three nothing is trimmed: a gap that is not bridged is seen.
    whole = lines(figure(ranked(data)).axes[0])
    # Returns are linear between the neighbours here, so nothing changes where one is missing.
    steps = data["env_steps"].values
    data["return"][:] = 2 * steps
    straight = lines(figure(ranked(data)).axes[0])
    data["return"][2, 5] = np.nan
    bridged = lines(figure(ranked(data)).axes[0])
    (one,), (two,), (other,) = (list(x.values()) for x in (straight, bridged, whole))
    np.testing.assert_allclose(one, two)
    assert not np.allclose(one, other)


def test_profiles_have_a_curve_for_each_choice():
    data = synthetic.grid()
    ranking = ranked(data)
    figure = figures.performance_profiles(ranking)
    assert figure is not None
    drawn = lines(figure.axes[0])
    assert list(drawn) == ["form=reward_to_go (63 runs)", "form=gae (64 runs)"]
    runs = data["evaluation_return"].sel(form="gae").values.ravel()
    for threshold, share in drawn["form=gae (64 runs)"]:
        assert share == pytest.approx(np.mean(runs > threshold))


def test_without_choices_profiles_are_those_of_configurations():
    axes = {name: synthetic.GRID[name] for name in ("learning_rate", "discount")}
    ranking = ranked(synthetic.grid(axes=axes))
    figure = figures.performance_profiles(ranking)
    assert figure is not None
    drawn = lines(figure.axes[0])
    assert [label.split(":")[0] for label in drawn] == ["1", "2", "3", "4", "8"]
    thresholds, shares = next(iter(drawn.values())).T
    expected = statistics.performance_profile(ranking.runs(ranking.best), thresholds)
    np.testing.assert_allclose(shares, expected.centre)


def test_the_forest_shows_what_was_compared():
    ranking = ranked(synthetic.grid())
    compared = tables.against_best(ranking)
    figure = figures.improvement(ranking, compared)
    assert figure is not None
    axes = figure.axes[0]
    centres = [bar.lines[0].get_xdata()[0] for bar in axes.containers]
    assert centres == [float(one.improvement.centre) for one in compared[:10]]
    filled = [bar.lines[0].get_markerfacecolor() != "white" for bar in axes.containers]
    assert filled == [one.corrected <= 0.05 for one in compared[:10]]
    assert True in filled and False in filled
    assert "Holm" in axes.get_title()
