"""The dataset of a sweep: dimensions, coordinates, attributes, and what is not there yet."""

import json

import numpy as np
import pytest
import xarray as xr
import yaml

from pgjax.lab import config
from pgjax.lab.sweep import dataset, design
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.chunk import Result
from pgjax.lab.sweep.settings import Sweep


def result(runs, updates, **curves):
    """A chunk's result, whose values tell configuration, seed and update: 100 c + 10 s + u."""
    values = np.array([[100 * c + 10 * s + u for u in range(1, updates + 1)] for c, s in runs])
    final = {"evaluation_return": values[:, -1].astype(float), "diverged": np.zeros(len(runs))}
    return Result(runs, {"return": values, "env_steps": 10**9 + values} | curves, final, 6.0, "cpu")


def built(sweep, *results, updates=3):
    configurations = design.lay_out(sweep)
    table = dataset.empty(len(configurations), sweep.base.seeds, updates)
    for found in results:
        dataset.enter(table, found)
    return dataset.build(sweep, configurations, table)


def test_a_grid_has_a_dimension_a_hyperparameter(changed):
    swept = {"form": ("gae", "n_step"), "lambda_": (0.5, 0.9, 1.0)}
    runs = [(c, s) for c in range(6) for s in range(2)]
    found = built(changed(swept, seed=7), result(runs, 3))
    assert found["return"].dims == ("form", "lambda", "seed", "update")
    assert found["evaluation_return"].dims == ("form", "lambda", "seed")
    assert list(found["form"].values) == ["gae", "n_step"]
    np.testing.assert_array_equal(found["lambda"], [0.5, 0.9, 1.0])
    np.testing.assert_array_equal(found["seed"], [7, 8])
    np.testing.assert_array_equal(found["update"], [1, 2, 3])
    picked = found["return"].sel({"form": "n_step", "lambda": 0.9, "seed": 8, "update": 2})
    assert picked == 100 * 4 + 10 * 1 + 2
    assert found["env_steps"].max() == 10**9 + 513  # more than float32 tells apart
    np.testing.assert_array_equal(found["seconds"], 0.5)


def test_a_drawn_design_has_one_dimension():
    sweep = Sweep(
        axes={"learning_rate": Range(0.1, 1.0, "log"), "form": ("gae", "n_step")},
        design="random",
        configurations=4,
    )
    found = built(sweep, result([(c, 0) for c in range(4)], 3))
    assert found["return"].dims == ("configuration", "seed", "update")
    expected = [values["learning_rate"] for values in design.lay_out(sweep)]
    np.testing.assert_array_equal(found["learning_rate"], expected)
    assert found["form"].dims == ("configuration",)


def test_seeds_alone_have_no_other_dimension():
    assert built(Sweep(), result([(0, 0)], 3))["return"].dims == ("seed", "update")


def test_what_is_not_finished_is_not_there(sweep):
    found = built(sweep, result([(1, 0), (2, 1)], 3))
    finished = found["finished"].values
    np.testing.assert_array_equal(finished, [[False, False], [True, False], [False, True]])
    for name in ("evaluation_return", "diverged", "seconds"):
        np.testing.assert_array_equal(np.isfinite(found[name]), finished)
    np.testing.assert_array_equal(np.isfinite(found["return"]).all("update"), finished)


def test_groups_of_other_lengths_and_metrics_lie_side_by_side(changed):
    sweep = changed({"num_updates": (2, 3)}, seeds=1)
    losses = {"value_loss": np.array([[7.0, 8.0]])}
    found = built(sweep, result([(0, 0)], 2, **losses), result([(1, 0)], 3))
    np.testing.assert_array_equal(found["return"][0, 0], [1, 2, np.nan])
    np.testing.assert_array_equal(found["return"][1, 0], [101, 102, 103])
    np.testing.assert_array_equal(found["value_loss"][:, 0], [[7, 8, np.nan], [np.nan] * 3])
    assert found["finished"].all()


@pytest.mark.parametrize(
    ("name", "levels", "expected"),
    [
        ("hidden", ((), (8,), (8, 4)), ["", "8", "8x4"]),
        ("max_grad_norm", (None, 0.5), ["None", "0.5"]),
        ("env_params.sutton_barto_reward", (True, False), ["True", "False"]),
        ("num_episodes", (2, 4), [2, 4]),
    ],
)
def test_what_is_no_number_is_text_on_disk_too(changed, tmp_path, name, levels, expected):
    found = built(changed({name: levels}))
    dataset.write(found, tmp_path / "sweep.nc")
    for opened in (xr.open_dataset(tmp_path / "sweep.nc"), dataset.load(tmp_path)):
        with opened:
            assert opened[name].values.tolist() == expected
            assert opened["finished"].dims == (name, "seed")


def test_it_says_what_it_is(undisturbed):
    store, found = undisturbed
    for name in found.data_vars:
        assert {"long_name", "units"} <= set(found[name].attrs), name
        assert name in dataset.UNITS
    assert found["evaluation_return"].attrs["units"] == "reward"
    assert found["env_steps"].attrs["units"] == "environment steps"
    attributes = found.attrs
    assert attributes["design"] == "grid" and json.loads(attributes["swept"]) == ["learning_rate"]
    assert json.loads(attributes["scales"]) == {"learning_rate": "linear"}
    assert set(json.loads(attributes["versions"])) >= {"pgjax", "jax", "numpy"}
    assert attributes["device"].endswith("(cpu)")
    fields = yaml.safe_load(attributes["config"])
    assert fields["env"] == "ShortCorridor" and fields["num_updates"] == 6
    assert "learning_rate" not in fields
    with xr.open_dataset(store.dataset) as opened:
        xr.testing.assert_identical(opened.load(), found)


def test_scales_are_those_of_ranges_and_guessed_of_lists(changed):
    swept = {
        "learning_rate": Range(0.1, 1.0, "log", 2),
        "discount": Range(0.1, 1.0, "linear", 2),
        "value_learning_rate": (0.001, 0.1),
        "lambda_": (0.0, 1.0),
        "form": ("gae", "n_step"),
    }
    scales = json.loads(built(changed(swept)).attrs["scales"])
    assert list(scales.values()) == ["log", "linear", "log", "linear", "choice"]


def test_a_dataset_is_written_whole_or_not_at_all(undisturbed, tmp_path, monkeypatch):
    _, found = undisturbed
    dataset.write(found, tmp_path / "sweep.nc")
    before = (tmp_path / "sweep.nc").read_bytes()
    original = xr.Dataset.to_netcdf

    def torn(self, path, **kwargs):
        original(self, path, **kwargs)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError("no space left")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", torn)
    with pytest.raises(OSError, match="no space"):
        dataset.write(found * 2, tmp_path / "sweep.nc")
    assert (tmp_path / "sweep.nc").read_bytes() == before


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no results of a sweep"):
        dataset.load(tmp_path)
    (tmp_path / "sweep.nc").write_text("torn")
    with pytest.raises(ValueError, match="cannot be read"):
        dataset.load(tmp_path)


def test_a_configuration_that_did_best_is_kept_as_a_config(undisturbed):
    store, found = undisturbed
    means = found["evaluation_return"].mean("seed")
    best = config.load(store.best)
    assert best.learning_rate == means["learning_rate"][int(means.values.argmax())]
    assert best.seeds == 2 and best.name is None
    assert best.seed == found["seed"].values.max() + 1  # not those that it was chosen on
