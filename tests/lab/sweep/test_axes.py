"""Lists and ranges as they are written, and what is no list and no range."""

import numpy as np
import pytest

from pgjax.lab.sweep import axes
from pgjax.lab.sweep.axes import Range


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("learning_rate", "1e-4..1e-1:log:16", Range(1e-4, 1e-1, "log", 16)),
        ("learning_rate", "0..1", Range(0, 1)),
        ("learning_rate", "0..1:8", Range(0, 1, "linear", 8)),
        ("learning_rate", "0.1..1.0:log", Range(0.1, 1.0, "log")),
        ("learning_rate", Range(0.1, 1.0), Range(0.1, 1.0)),
        ("initial_log_std", "-2..-1:3", Range(-2, -1, "linear", 3)),
        ("learning_rate", "0.1", (0.1,)),
        ("learning_rate", "1e-3, 1", (0.001, 1.0)),
        ("learning_rate", ["1e-3", 1], (0.001, 1.0)),
        ("learning_rate", 1, (1.0,)),
        ("lambda_", (0.5, 1), (0.5, 1.0)),
        ("horizon", "None,12", (None, 12)),
        ("max_grad_norm", [None, 1], (None, 1.0)),
        ("num_episodes", "8..64:log:4", Range(8, 64, "log", 4)),
        ("form", "gae,reward_to_go", ("gae", "reward_to_go")),
        ("env", ["ShortCorridor", "CartPole-v1"], ("ShortCorridor", "CartPole-v1")),
        ("hidden", "64x64,32", ((64, 64), (32,))),
        ("hidden", [64, 32], ((64, 32),)),
        ("hidden", [[64, 32], [8]], ((64, 32), (8,))),
        ("hidden", ["64x64", [32], 8], ((64, 64), (32,), (8,))),
        ("hidden", 64, ((64,),)),
        ("hidden", [], ((),)),
        ("hidden", [[], [8]], ((), (8,))),
        ("env_params.gravity", "9..11:3", Range(9, 11, "linear", 3)),
        ("env_params.gravity", [9, 9.8], (9, 9.8)),
        ("env_params.sutton_barto_reward", "true,false", (True, False)),
    ],
    ids=str,
)
def test_what_is_written_is_read_and_written_again(name, given, expected):
    axis = axes.parse(name, given)
    assert axis == expected and list(map(type, axis)) == list(map(type, expected))
    assert axes.parse(name, axes.dump(axis)) == axis


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rate", "", "is empty"),
        ("learning_rate", [], "is empty"),
        ("learning_rate", "1,,2", "is empty"),
        ("learning_rate", "1..1:3", "empty range"),
        ("learning_rate", "2..1", "empty range"),
        ("learning_rate", "0..1:log:3", "through zero"),
        ("learning_rate", "-1..1:log:3", "through zero"),
        ("learning_rate", "a..b:3", "from a number to a number"),
        ("learning_rate", "1..inf:3", "finite"),
        ("learning_rate", "nan..1:3", "finite"),
        ("learning_rate", "1..2:1", "from 2 to"),
        ("learning_rate", "1..2:99999999", "from 2 to"),
        ("learning_rate", "1..2:x", "scale='x'"),
        ("learning_rate", "1..2:lo:3", "did you mean 'log'"),
        ("learning_rate", "1..2:log:1.5", "whole number"),
        ("learning_rate", "1..2:LOG:3", "must be of type float"),
        ("learning_rate", "0.1,1e-1", "twice"),
        ("hidden", "8x8,8x8", "twice"),
        ("form", "1..2:3", "no number"),
        ("form", "gae,7", "must be of type str"),
        ("n", "1.5,2", "n=1.5 must be of type int"),
        ("hidden", "8xa", "must be of type tuple"),
        ("learning_rate", "[", "learning_rate='['"),
        ("learning_rate", "2020-13-45", "learning_rate='2020-13-45'"),
        ("learning_rate", True, "learning_rate=True"),
        ("learning_rate", {"low": 1}, "must be of type float"),
        ("env_params.gravity", "heavy", "env_params={'gravity': 'heavy'}"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(name, given, message):
    with pytest.raises(ValueError, match="(?i)" + name.partition(".")[0]) as refused:
        axes.parse(name, given)
    assert message in str(refused.value)


def test_levels_are_evenly_spaced_and_hold_both_ends():
    levels = axes.levels("learning_rate", axes.parse("learning_rate", "1e-4..1e-1:log:16"))
    assert levels[0] == 1e-4 and levels[-1] == 1e-1 and len(levels) == 16
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(1e3) / 15)
    levels = axes.levels("discount", axes.parse("discount", "0..1:5"))
    np.testing.assert_allclose(levels, [0, 0.25, 0.5, 0.75, 1])
    assert all(type(level) is float for level in levels)


def test_ranges_of_counts_are_whole_and_name_no_level_twice():
    assert axes.levels("num_episodes", Range(8, 64, "log", 4)) == (8, 16, 32, 64)
    assert axes.levels("n", Range(1, 3, "linear", 9)) == (1, 2, 3)
    assert axes.levels("env_params.max_steps", Range(10, 20, "linear", 3)) == (10, 15, 20)


def test_a_range_without_levels_has_none():
    with pytest.raises(ValueError, match="learning_rate.*needs its number of levels.*:8"):
        axes.levels("learning_rate", Range(0.1, 1.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rat", "did you mean 'learning_rate'"),
        ("desing", "did you mean 'design'"),
        ("seeds", "seeds cannot be swept"),
        ("loggers", "loggers cannot be swept"),
        ("env_params", "each of its parameters can"),
    ],
)
def test_what_has_no_levels_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        axes.check_name(name)


def test_values_as_text():
    values = [(64, 64), 0.1, 1e-5, 1 / 3, True, None, "gae", 3]
    text = ["64x64", "0.1", "1e-05", "0.3333333333333333", "True", "None", "gae", "3"]
    assert [axes.label(value) for value in values] == text
