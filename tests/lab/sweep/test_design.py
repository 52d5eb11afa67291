"""Sweeps as they are written, and the configurations they come to."""

import dataclasses

import numpy as np
import pytest
import yaml
from scipy import stats
from scipy.stats import qmc

from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.lab.sweep import design
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.settings import Sweep

WRITTEN = """
env: Pendulum-v1
seeds: 3
num_updates: 7
hidden: [8, 8]
lambda: [0.9, 1]
learning_rate: 1e-3..1e-1:log:3
max_grad_norm: [null, 1]
env_params:
  max_torque: 1.5
  g: 9.5..10.5:2
"""


def test_one_value_is_fixed_and_several_are_swept():
    sweep = design.parse(yaml.safe_load(WRITTEN))
    assert sweep.base == Config(
        env="Pendulum-v1",
        seeds=3,
        num_updates=7,
        hidden=(8, 8),
        env_params={"max_torque": 1.5},
    )
    assert sweep.axes == {
        "lambda_": (0.9, 1.0),
        "learning_rate": Range(1e-3, 1e-1, "log", 3),
        "max_grad_norm": (None, 1.0),
        "env_params.g": Range(9.5, 10.5, "linear", 2),
    }


def test_flags_say_what_a_file_says():
    flags = {
        "env": "Pendulum-v1",
        "seeds": "3",
        "num_updates": "7",
        "hidden": "8x8",
        "lambda_": "0.9,1",
        "learning_rate": "1e-3..1e-1:log:3",
        "max_grad_norm": "None,1",
        "env_params.max_torque": "1.5",
        "env_params.g": "9.5..10.5:2",
    }
    assert design.parse(flags) == design.parse(yaml.safe_load(WRITTEN))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "null", "loggers": ("trackio",), "hidden": (), "env_params": {"g": 9.0}},
        {"name": "1e3", "hidden": (3,), "max_grad_norm": 1e-05},
    ],
    ids=str,
)
def test_a_sweep_is_read_back_with_its_axes_in_order(options, backwards):
    axes = {
        "hidden": ((), (8,), (8, 8)),
        "learning_rate": Range(1e-5, 1, "log", 3),
        "env_params.length": (0.5, 1),
        "max_grad_norm": (None, 1.0),
        "form": ("gae", "reward_to_go"),
    }
    names = [name for name in axes if options.get(name) is None]
    axes = {name: axes[name] for name in (names[::-1] if backwards else names)}
    base = dataclasses.replace(Config(), **options)
    sweep = Sweep(base, axes, design="random", configurations=5, design_seed=3)
    again = design.parse(yaml.safe_load(design.dump(sweep)))
    assert again == sweep and list(again.axes) == list(sweep.axes)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"desing": "sobol"}, "did you mean 'design'"),
        ({"seeds": [1, 2]}, "seeds=.1, 2.*cannot be swept"),
        ({"seed": "1,2"}, "seed='1,2'.*cannot be swept"),
        ({"directory": ["a", "b"]}, "directory=.*cannot be swept"),
        ({"updates_per_call": "1..3:3"}, "updates_per_call=.*cannot be swept"),
        ({"env_params": 3}, "env_params=3"),
        ({"env_params": "g"}, "env_params='g'"),
        ({"configurations": "many"}, "configurations='many'"),
        ({"configurations": True}, "configurations=True"),
        ({"design": ["grid"]}, "design="),
        ({1: 2}, "key='1'"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        design.parse(written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"design": "gird"}, "did you mean 'grid'"),
        ({"design": "random", "learning_rate": "0..1"}, "design='random' needs a number"),
        ({"design": "sobol", "learning_rate": "0..1"}, "design='sobol' needs a number"),
        ({"design": "sobol", "configurations": 4}, "needs something to sweep"),
        ({"design": "sobol", "configurations": 0, "learning_rate": "0..1"}, "configurations=0"),
        ({"configurations": 4, "learning_rate": "0.1,0.2"}, "configurations=4"),
        ({"learning_rate": "0..1"}, "needs its number of levels"),
        ({"seeds": 0, "learning_rate": "0.1,0.2"}, "seeds=0"),
        ({"seed": 2**32 - 2, "seeds": 3}, "seed=4294967294"),
        ({"seeds": 10**6, "learning_rate": "1..2:100"}, "100,000,000 runs"),
        ({"learning_rate": "0..1:10000", "discount": "0..1:10000"}, "100,000,000 runs"),
        ({"design_seed": -1}, "design_seed=-1"),
        ({"trials": 5, "learning_rate": "0.1,0.2"}, "trials=5 goes with a search"),
        ({"prune": True, "learning_rate": "0.1,0.2"}, "prune=True goes with a search"),
        ({"storage": "x.log", "learning_rate": "0.1,0.2"}, "storage='x.log' goes with a search"),
        ({"search": "tpe", "design": "sobol", "learning_rate": "0..1"}, "design='sobol' goes with"),
        ({"search": "tpe", "learning_rate": "0..1:8"}, "needs no number of levels"),
        ({"search": "cmaes", "learning_rate": "0..1"}, "needs two ranges"),
        ({"search": "cmaes", "learning_rate": "0..1", "discount": "0.9,1"}, "list of choices"),
    ],
    ids=str,
)
def test_what_no_sweep_can_be_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        design.validate(design.parse(written))


def test_what_is_written_later_about_lambda_holds_under_either_name():
    assert design.parse({"lambda": [0.5, 0.6], "lambda_": "0.9"}).base.lambda_ == 0.9
    assert not design.parse({"lambda": [0.5, 0.6], "lambda_": "0.9"}).axes


@pytest.mark.parametrize("text", ["- 1", "a: [", "3"])
def test_a_file_that_is_no_mapping_is_refused(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="mine.yaml"):
        configs.read(tmp_path / "mine.yaml")


def test_the_last_axis_of_a_grid_is_the_fastest():
    sweep = Sweep(axes={"form": ("gae", "n_step"), "n": Range(1, 3, "linear", 3)})
    assert design.lay_out(sweep) == [
        {"form": form, "n": n} for form in ("gae", "n_step") for n in (1, 2, 3)
    ]
    assert design.num_configurations(sweep) == 6
    assert design.lay_out(Sweep()) == [{}]


def drawn(name, num, seed=0):
    axes = {"learning_rate": Range(1e-4, 1e-1, "log"), "discount": Range(0.5, 1.0)}
    return Sweep(axes=axes, design=name, configurations=num, design_seed=seed)


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_drawn_points_are_uniform_within_their_ranges_in_the_logarithm_where_it_is_one(name):
    points = design.lay_out(drawn(name, 1000))
    rates, discounts = (
        np.array([point[axis] for point in points]) for axis in ("learning_rate", "discount")
    )
    assert rates.min() >= 1e-4 and rates.max() <= 1e-1
    assert discounts.min() >= 0.5 and discounts.max() <= 1
    evenly = lambda x, low, high: stats.kstest((x - low) / (high - low), "uniform").pvalue
    assert evenly(np.log10(rates), -4, -1) > 0.01
    assert evenly(discounts, 0.5, 1) > 0.01
    assert evenly(rates, 1e-4, 1e-1) < 1e-9  # what the test would see of a linear scale
    assert abs(np.corrcoef(np.log(rates), discounts)[0, 1]) < 4 / np.sqrt(1000)


def test_sobol_points_fill_the_square_better_than_random_ones():
    def discrepancy(name):
        points = design.lay_out(drawn(name, 64))
        scaled = [(np.log10(x["learning_rate"]) / 3 + 4 / 3, 2 * x["discount"] - 1) for x in points]
        return qmc.discrepancy(scaled)

    assert discrepancy("sobol") < discrepancy("random") / 4


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_points_are_the_same_for_the_same_seed_only(name):
    assert design.lay_out(drawn(name, 5)) == design.lay_out(drawn(name, 5))
    assert design.lay_out(drawn(name, 5)) != design.lay_out(drawn(name, 5, seed=1))
    assert len(design.lay_out(drawn(name, 5))) == 5  # no power of two, and no warning


def test_drawn_designs_keep_to_levels_where_there_are_any():
    axes = {"form": ("gae", "n_step"), "learning_rate": Range(0.1, 0.3, "linear", 3)}
    sweep = Sweep(axes=axes, design="random", configurations=60)
    found = {tuple(point.values()) for point in design.lay_out(sweep)}
    assert found == set(
        (form, rate) for form in axes["form"] for rate in (0.1, 0.1 + 0.5 * (0.3 - 0.1), 0.3)
    )


def test_the_runs_of_a_configuration_differ_in_their_seed():
    base = Config(seed=5, seeds=3, env_params={"g": 9.0, "l": 1.0})
    runs = design.runs_of(Sweep(base), {"discount": 0.5, "env_params.g": 10.0})
    assert [run.seed for run in runs] == [5, 6, 7]
    changed = {"discount": 0.5, "env_params": {"g": 10.0, "l": 1.0}, "seeds": 1}
    assert runs[1] == dataclasses.replace(base, seed=6, **changed)


def test_a_sweep_is_the_same_wherever_it_stands(sweep, changed):
    elsewhere = changed(name="other", directory="x", checkpoint_every=3, loggers=("wandb",))
    assert design.identity(elsewhere) == design.identity(sweep)
    assert design.identity(changed(seeds=3)) != design.identity(sweep)
    assert design.identity(changed({"learning_rate": (0.1, 0.03, 0.3)})) != design.identity(sweep)
