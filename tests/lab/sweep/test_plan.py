"""Which runs share a program, how many go at once, and what cannot be planned."""

import jax
import pytest

from pgjax.lab.config import Config
from pgjax.lab.sweep import axes, design, plan
from pgjax.lab.sweep import program as programs
from pgjax.lab.sweep.settings import Sweep


@pytest.fixture
def uncompiled(monkeypatch):
    """Makes every run take a megabyte, with no program compiled to find out."""
    monkeypatch.setattr(
        programs.parallel, "memory", lambda placed, inputs, config: 10**6 * len(inputs.init)
    )


def groups(base, **swept):
    """The configurations of each group."""
    sweep = Sweep(base, swept)
    found = plan.group(sweep, design.lay_out(sweep))
    return [sorted({index for index, _ in group.runs}) for group in found]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("learning_rate", (0.1, 0.2)),
        ("value_learning_rate", (0.1, 0.2)),
        ("discount", (0.9, 1.0)),
        ("lambda_", (0.0, 1.0)),
        ("n", (1, 2)),
        ("constant", (0.0, 1.0)),
        ("entropy_cost", (0.1, 0.2)),
        ("max_grad_norm", (0.5, 1.0)),
        ("initial_log_std", (-1.0, 0.0)),
        ("env_params.g", (9, 10.5)),
    ],
)
def test_what_differs_in_numbers_shares_a_program(name, levels):
    assert groups(Config(env="Pendulum-v1"), **{name: levels}) == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("form", ("gae", "reward_to_go")),
        ("baseline", ("value", "none")),
        ("hidden", ((8,), (8, 8))),
        ("policy", ("mlp", "linear")),
        ("num_episodes", (2, 4)),
        ("num_updates", (2, 4)),
        ("horizon", (2, None)),
        ("optimizer", ("adam", "sgd")),
        ("env", ("CartPole-v1", "Pendulum-v1")),
        ("entropy_cost", (0.0, 0.1)),
        ("max_grad_norm", (None, 1.0)),
        ("env_params.max_torque", (1.0, 2.0)),
        ("env_params.max_steps_in_episode", (10, 20)),
    ],
)
def test_what_shapes_a_program_makes_groups(name, levels):
    env = "CartPole-v1" if name == "env" else "Pendulum-v1"
    assert groups(Config(env=env), **{name: levels}) == [[0], [1]]


def test_groups_stand_in_the_order_their_first_runs_do():
    assert groups(Config(), learning_rate=(0.1, 0.2), entropy_cost=(0.0, 0.1, 0.2)) == [
        [0, 3],
        [1, 2, 4, 5],
    ]


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ({"discount": (0.5, 1.5)}, "^discount=1.5 must be"),
        ({"lambda_": (0.5, 2.0)}, "^lambda=2.0 must be"),
        ({"learning_rate": (0.1, float("inf"))}, "learning_rate=inf"),
        ({"n": (0, 1)}, "n=0"),
        ({"env_params.gravty": (9.0, 10.0)}, "did you mean 'gravity'"),
        ({"env_params.gravity": (9.0, True)}, "gravity=True"),
        ({"env_params.max_steps_in_episode": (5, 10.5)}, "max_steps_in_episode=10.5"),
        ({"hidden": ((8,), (0,))}, "hidden=0"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused_by_its_values(swept, message):
    with pytest.raises(ValueError, match=message):
        groups(Config(), **swept)


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ({"form": ("reward_to_go", "total_return"), "baseline": ("value",)}, "total_return"),
        ({"form": ("gae", "reward_to_com")}, "did you mean 'reward_to_go'"),
        ({"policy": ("mlp", "mpl")}, "did you mean 'mlp'"),
        ({"env": ("CartPole-v1", "CartPol-v1")}, "did you mean 'CartPole-v1'"),
        ({"num_episodes": (4, 1)}, "num_episodes=1"),
    ],
    ids=str,
)
def test_a_program_that_cannot_be_is_refused_before_any_is_compiled(
    changed, swept, message, monkeypatch
):
    monkeypatch.setattr(programs, "fit", None)
    with pytest.raises(ValueError, match=message):
        plan.make(changed(swept), devices=jax.local_devices()[:1])


@pytest.mark.parametrize(
    ("at_once", "sizes"), [(None, [6]), (1, [1] * 6), (2, [2] * 3), (4, [3, 3]), (99, [6])]
)
@pytest.mark.usefixtures("uncompiled")
def test_chunks_are_even_and_no_wider_than_asked(sweep, at_once, sizes):
    made = plan.make(sweep, devices=jax.local_devices()[:1], at_once=at_once)
    assert [len(chunk.runs) for chunk in made.chunks()] == sizes
    runs = [run for chunk in made.chunks() for run in chunk.runs]
    assert runs == [(index, seed) for index in range(3) for seed in range(2)]
    assert made.programs[0].width == sizes[0]


def test_widths_are_shared_out_evenly_over_devices():
    assert programs._even(6, 6, 2) == 6
    assert programs._even(6, 5, 2) == 4
    assert programs._even(5, 5, 2) == 4
    assert programs._even(3, 3, 2) == 2
    assert programs._even(7, 1, 1) == 1
    for num_runs in range(1, 20):
        for at_most in range(1, num_runs + 1):
            for devices in range(1, at_most + 1):
                width = programs._even(num_runs, at_most, devices)
                assert width % devices == 0 and devices <= width <= at_most
                # A resumed sweep asks for the width that it had.
                assert programs._even(num_runs, width, devices) == width


@pytest.mark.usefixtures("uncompiled")
def test_programs_of_finished_groups_are_not_compiled(changed):
    outlined = plan.outline(changed({"form": ("reward_to_go", "total_return")}))
    finished = {(0, 0), (0, 1), (1, 0)}
    made = plan.compiled(outlined, devices=jax.local_devices()[:1], finished=finished)
    assert list(made.programs) == [1]
    assert [chunk.runs for chunk in made.chunks()] == [[(1, 1)]]
    _, already, _, row, _ = plan.describe(made).splitlines()
    assert already == "3 of 4 runs are finished already"
    assert row.split() == ["2", "form=total_return", "1", "2", "1", "2", "MB"]


@pytest.mark.usefixtures("uncompiled")
def test_finished_runs_are_in_no_chunk(sweep):
    made = plan.make(sweep, devices=jax.local_devices()[:1], at_once=2)
    finished = {(0, 0), (1, 0), (1, 1)}
    assert [chunk.runs for chunk in made.chunks(finished)] == [[(0, 1), (2, 0)], [(2, 1)]]


@pytest.mark.usefixtures("uncompiled")
def test_programs_are_as_wide_as_memory_and_devices_allow(sweep):
    for devices, limit, width in [(1, 6, 6), (1, 5.9, 3), (1, 1, 1), (2, 5.9, 4)]:
        shared = [object()] * devices
        made = plan.make(sweep, devices=shared, memory_limit=int(limit * 10**6))
        assert made.programs[0].width == width
    assert len(plan.make(sweep, devices=shared, at_once=1).programs[0].placed.devices) == 1
    with pytest.raises(ValueError, match="memory_limit=1 MB is too little: 2 runs at once"):
        plan.make(sweep, devices=shared, memory_limit=10**6)


def test_memory_narrows_programs_and_too_little_is_refused(sweep):
    devices = jax.local_devices()[:1]
    free = plan.make(sweep, devices=devices).programs[0]
    tight = plan.make(sweep, devices=devices, memory_limit=free.memory - 1).programs[0]
    assert tight.width < free.width == 6 and tight.memory < free.memory
    with pytest.raises(ValueError, match="memory_limit=3 kB is too little: 1 run at once of 4"):
        plan.make(sweep, devices=devices, memory_limit=3000)


def test_results_that_do_not_fit_are_refused_before_anything_is_compiled(changed, monkeypatch):
    monkeypatch.setattr(programs, "fit", None)
    large = changed({"learning_rate": axes.Range(0.1, 1.0, "log", 100)}, num_updates=10**6)
    with pytest.raises(ValueError, match="the design is too large.*100 configurations x 2 seeds"):
        plan.make(large, devices=jax.local_devices()[:1], memory_limit=10**9)


@pytest.mark.parametrize("at_once", [0, -1])
def test_at_once_is_a_count(sweep, at_once):
    with pytest.raises(ValueError, match=f"at_once={at_once}"):
        plan.make(sweep, devices=jax.local_devices()[:1], at_once=at_once)


@pytest.mark.usefixtures("uncompiled")
def test_a_plan_in_words(changed):
    made = plan.make(
        changed({"learning_rate": (0.03, 0.1, 0.3), "max_grad_norm": (None, 1.0)}),
        devices=jax.local_devices()[:1],
        at_once=4,
        memory_limit=10**9,
    )
    text = plan.describe(made)
    assert text.startswith(
        "6 configurations (grid, 3 learning_rate x 2 max_grad_norm) x 2 seeds = 12 runs, in 2 "
        "groups of one program each\n"
    )
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ["1", "max_grad_norm=None", "6", "3", "2", "3", "MB"],
        ["2", "max_grad_norm=1", "6", "3", "2", "3", "MB"],
    ]
    assert "1 GB are allowed" in text


@pytest.mark.parametrize(
    ("num", "block", "num_devices"), [(12, 2, 2), (12, 2, 3), (6, 8, 2), (7, 2, 2)]
)
def test_devices_are_dealt_blocks_in_turn(num, block, num_devices):
    runs = list(range(num))
    found = plan.dealt(runs, block, num_devices)
    assert sorted(found) == runs
    assert found[:block] == runs[:block]
    assert (found == runs) == (num % num_devices > 0 or block >= num)


def test_a_device_has_runs_of_either_end():
    found = plan.dealt(list(range(16)), 2, 2)
    assert found == [0, 1, 6, 7, 8, 9, 14, 15, 2, 3, 4, 5, 10, 11, 12, 13]
    assert sum(found[:8]) == sum(found[8:])  # growing evenly, they have as much to do
