"""How configurations of a sweep are ranked, on data whose truth is known."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from pgjax.lab.sweep import scores

from . import synthetic


def coordinates(ranking, configuration):
    return {name: column[configuration] for name, column in ranking.hyper.items()}


def test_the_best_of_a_grid_is_found_with_its_centre_and_interval():
    data = synthetic.grid()
    (ranking,) = scores.rankings(data)
    assert coordinates(ranking, ranking.best) == synthetic.BEST
    runs = data["evaluation_return"].sel(synthetic.BEST).values
    assert ranking.summary.centre[ranking.best] == pytest.approx(stats.trim_mean(runs, 0.25))
    low, high = (end[ranking.best] for end in ranking.summary[1:])
    assert runs.min() < low < ranking.summary.centre[ranking.best] < high < runs.max()
    assert scores.place(ranking, ranking.best) == {"learning_rate": 2, "discount": 1, "form": 1}
    assert np.all(np.diff(ranking.summary.centre[ranking.order][:-1]) <= 0)


def test_the_order_of_dimensions_does_not_matter():
    data = synthetic.grid()
    (ranking,) = scores.rankings(data)
    dims = ("seed", "form", "learning_rate", "discount")
    (turned,) = scores.rankings(data.transpose(*dims, ...))
    assert coordinates(turned, turned.best) == coordinates(ranking, ranking.best)
    both = [one.summary.centre[one.order] for one in (ranking, turned)]
    np.testing.assert_allclose(*both)
    # The run that diverged is one of the configuration that has another without a score.
    for one in (ranking, turned):
        (place,), (seed,) = np.nonzero(scores.flags(one, "diverged") == 1)
        assert one.num_runs[place] == 7 and seed == 1


def test_a_sweep_that_went_through_a_file_is_ranked_the_same(tmp_path):
    data = synthetic.random()
    data.to_netcdf(tmp_path / "sweep.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "sweep.nc", engine="h5netcdf") as read:
        (again,) = scores.rankings(read)
    (ranking,) = scores.rankings(data)
    np.testing.assert_array_equal(again.order, ranking.order)
    np.testing.assert_array_equal(again.hyper["form"], ranking.hyper["form"])


def test_a_run_that_is_not_finished_has_no_score_and_one_that_diverged_has():
    data = synthetic.grid()
    where = {"learning_rate": 3, "discount": 0, "form": 0}
    # What stands in the place of a run that is not finished is not looked at.
    data["evaluation_return"][{**where, "seed": 2}] = 1e9
    (ranking,) = scores.rankings(data)
    assert ranking.num_runs.tolist().count(7) == 1 and ranking.num_runs.sum() == 127
    assert np.nanmax(ranking.values) < 1e3
    diverged = data["evaluation_return"][{**where, "seed": 1}].item()
    assert diverged in ranking.values[ranking.num_runs == 7]


def test_what_is_left_of_failed_runs_is_not_the_best():
    data = synthetic.grid()
    where = {"learning_rate": 0, "discount": 0, "form": 0}
    data["evaluation_return"][where] = [1e6, *[np.nan] * 7]
    (ranking,) = scores.rankings(data)
    assert coordinates(ranking, ranking.best) == synthetic.BEST
    # Behind all that are complete; before the other incomplete one, as its score is higher.
    assert ranking.num_runs[ranking.order[-2:]].tolist() == [1, 7]
    assert np.isnan(ranking.summary.low[ranking.order[-2]])


def test_nothing_finished_is_an_error():
    data = synthetic.grid()
    data["finished"][:] = False
    for unfinished in (data, data.drop_vars(["evaluation_return", "diverged"])):
        with pytest.raises(ValueError, match="nothing finished yet"):
            scores.rankings(unfinished)


def test_levels_are_the_best_and_the_average_over_the_others():
    data = synthetic.grid()
    (ranking,) = scores.rankings(data)
    returns = data["evaluation_return"].where(data["finished"])
    centres = xr.apply_ufunc(
        lambda x: np.apply_along_axis(
            lambda runs: stats.trim_mean(runs[~np.isnan(runs)], 0.25), -1, x
        ),
        returns,
        input_core_dims=[["seed"]],
    )
    found = scores.levels(ranking, "learning_rate")
    assert [level.value for level in found] == synthetic.GRID["learning_rate"]
    for level in found:
        of_level = centres.sel(learning_rate=level.value)
        assert ranking.summary.centre[level.best] == pytest.approx(float(of_level.max()))
        assert float(level.average.centre) == pytest.approx(float(of_level.mean()))
        assert level.average.low < level.average.centre < level.average.high
    assert [x.value for x in scores.levels(ranking, "form")] == ["reward_to_go", "gae"]


def test_the_interval_of_an_average_keeps_what_seeds_have_in_common():
    # A seed that is good is good everywhere: averaging over configurations does not help.
    data = synthetic.grid(noise=0.0)
    luck = np.random.default_rng(0).normal(0, 20, size=8)
    data["evaluation_return"] = data["evaluation_return"] + xr.DataArray(luck, dims="seed")
    data["finished"][:] = True
    data["evaluation_return"] = data["evaluation_return"].fillna(0.0)
    (ranking,) = scores.rankings(data)
    level = scores.levels(ranking, "learning_rate")[0]
    width = level.average.high - level.average.low
    alone = ranking.summary.high[level.best] - ranking.summary.low[level.best]
    assert width == pytest.approx(alone, rel=1e-6)


def test_choosing_on_one_half_and_scoring_on_the_other_takes_the_optimism_out():
    gains, honest = [], []
    for key in range(40):
        data = synthetic.random(configurations=20, seeds=10, key=key)
        noise = np.random.default_rng(key).normal(size=(20, 10))
        data["evaluation_return"] = (("configuration", "seed"), noise)  # All are equal: 0.
        (ranking,) = scores.rankings(data)
        gains.append(ranking.summary.centre[ranking.best])
        honest.append(scores.held_out(ranking))
    error = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest)) < 4 * error
    assert np.mean(gains) > 0.4  # What is reported without it: the negative control.


def test_of_few_seeds_nothing_is_held_out():
    (ranking,) = scores.rankings(synthetic.random(seeds=3))
    assert np.isnan(scores.held_out(ranking))


def test_environments_are_ranked_apart_and_normalised_together():
    axes = {"env": ["CartPole-v1", "Acrobot-v1"], **synthetic.GRID}
    one, two, both = scores.rankings(synthetic.grid(axes=axes))
    assert [x.name for x in (one, two, both)] == [*axes["env"], scores.ALL]
    for ranking in (one, two, both):
        assert coordinates(ranking, ranking.best) == synthetic.BEST
    means = both.values.mean(axis=2)
    np.testing.assert_allclose(means.min(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(means.max(axis=0), 1)
    # One environment has scores a thousand times those of the other.
    assert np.ptp(one.values) > 100 * np.ptp(two.values)


def test_environments_of_random_designs_are_ranked_apart():
    found = scores.rankings(synthetic.random(envs=["CartPole-v1", "Acrobot-v1"]))
    assert [(x.name, len(x.order)) for x in found] == [("CartPole-v1", 15), ("Acrobot-v1", 15)]


def test_chosen_values_of_a_random_design_are_told_from_those_of_a_range():
    data = synthetic.random(30)
    data["discount"] = ("configuration", np.resize([0.9, 0.95, 0.99], 30))
    (ranking,) = scores.rankings(data)
    told = {name: scores.has_levels(ranking, name) for name in ranking.hyper}
    assert told == {"learning_rate": False, "discount": True, "form": True}
    assert [x.value for x in scores.levels(ranking, "discount")] == [0.9, 0.95, 0.99]
