"""Where runs go: all devices by default, the same training on any number of them, within memory."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from pgjax.lab import cli, config, experiment, machine, parallel, run
from pgjax.lab.config import Config


def on_devices(num, code, *arguments):
    """What a program prints on a CPU of so many devices; it fails where the program does."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAINING = """
import dataclasses, sys
from pgjax.lab import config, run

settings = config.load(sys.argv[1])
for num in map(int, sys.argv[2:]):
    started = run.start(dataclasses.replace(settings, name=f"on-{num}"), devices=num)
    assert len(started.placed.devices) == num
    shared_episodes = started.placed.mesh is not None
    assert shared_episodes == (settings.seeds % num != 0), (num, started.placed)
    run.follow(started)
"""


@pytest.mark.parametrize(
    ("seeds", "devices"),
    [(1, (1, 2, 8)), pytest.param(2, (1, 2), marks=pytest.mark.slow)],
)
def test_a_training_is_the_same_on_any_number_of_devices(tiny, tmp_path, seeds, devices):
    settings = dataclasses.replace(tiny, num_episodes=8, num_updates=5, seeds=seeds)
    file = tmp_path / "tiny.yaml"
    file.write_text(config.dump(settings))
    on_devices(max(devices), TRAINING, file, *devices)
    one, *others = (run.load(f"{tiny.directory}/on-{num}") for num in devices)
    for found, progress in others:
        assert progress.update == one[1].update == 5
        pairs = zip(*(jax.tree.leaves(x.state.params) for x in (one[1], progress)), strict=True)
        for expected, actual in pairs:
            if seeds > 1:  # whole runs are dealt out
                np.testing.assert_array_equal(actual, expected)
            else:
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        assert found.directory.evaluation.is_file()


RESUMED = """
import dataclasses, sys
from pgjax.lab import config, run

settings = config.load(sys.argv[1])
first = run.start(settings, devices=8)
run.follow(first._replace(config=dataclasses.replace(settings, num_updates=3)))
first.directory.evaluation.unlink()
resumed = run.resume(first.directory.path, devices=2)
assert resumed.restored.update == 3, resumed.restored
assert len(resumed.placed.devices) == 2
run.follow(resumed)
"""


def test_a_run_can_be_resumed_on_another_number_of_devices(tiny, tmp_path):
    settings = dataclasses.replace(tiny, num_episodes=8, seeds=1)
    file = tmp_path / "tiny.yaml"
    file.write_text(config.dump(settings))
    on_devices(8, RESUMED, file)
    straight = run.start(dataclasses.replace(settings, name="straight"), devices=1)
    run.follow(straight)
    found, resumed = run.load(f"{tiny.directory}/tiny")
    _, alone = run.load(straight.directory.path)
    assert run.is_finished(found._replace(restored=resumed))
    pairs = zip(*(jax.tree.leaves(x.state.params) for x in (alone, resumed)), strict=True)
    for expected, actual in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


PLACES = """
import json, sys
import jax
from pgjax.lab import parallel
from pgjax.lab.config import Config

def where(num, **choices):
    config = Config(env="ShortCorridor", policy="tabular", horizon=12, **choices)
    placed = parallel.place(config, jax.devices()[:num])
    return "episodes" if placed.mesh else "runs", len(placed.devices)

assert where(8, seeds=8, num_episodes=64) == ("runs", 8)
assert where(8, seeds=16, num_episodes=7) == ("runs", 8)
assert where(8, seeds=1, num_episodes=64) == ("episodes", 8)
assert where(8, seeds=6, num_episodes=64) == ("episodes", 8)
assert where(8, seeds=6, num_episodes=7) == ("episodes", 7)
assert where(8, seeds=1, num_episodes=11) == ("runs", 1)
assert where(8, seeds=6, num_episodes=11) == ("runs", 6)
assert where(1, seeds=6, num_episodes=64) == ("runs", 1)
"""


def test_as_many_devices_are_used_as_have_equal_shares():
    on_devices(8, PLACES)


def test_on_a_cpu_every_core_is_a_device(tmp_path):
    environment = {name: x for name, x in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "pgjax", "train", "--devices", "1000000"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    cores = machine.cores()
    said = f"devices=1000000 must be from 1 to {cores}, the devices there are"
    assert done.stderr == f"pgjax: error: {said}\n"
    assert done.returncode == 2


def of_cartpole(**choices):
    return Config(env="CartPole-v1", hidden=(32,), horizon=64, num_updates=2, **choices)


def fitted(config, memory_limit):
    """What a placement takes of memory, and the parameters it comes to."""
    placed = parallel.fit(config, jax.devices()[:1], memory_limit)
    inputs = experiment.inputs(experiment.each_seed(config))
    state, _ = placed.experiment.train(inputs, placed.experiment.init(inputs), num_steps=1)
    return parallel.memory(placed, inputs, config), jax.tree.leaves(state.params)


def test_a_memory_limit_leaves_fewer_runs_at_a_time_and_the_same_bits():
    config = of_cartpole(num_episodes=16, seeds=16, evaluation_episodes=4)
    wide, params = fitted(config, None)
    narrow, same = fitted(config, wide * 2 // 3)
    assert narrow <= wide * 2 // 3
    for one, other in zip(params, same, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_memory_limit_leaves_fewer_runs_evaluated_at_a_time():
    """Where an evaluation takes more than the training does."""
    config = of_cartpole(num_episodes=16, seeds=16, evaluation_episodes=256)
    wide = parallel.place(config, jax.devices()[:1])
    inputs = experiment.inputs(experiment.each_seed(config))
    needed = parallel.memory(wide, inputs, config)
    narrow = parallel.fit(config, jax.devices()[:1], needed // 2)
    assert parallel.memory(narrow, inputs, config) <= needed // 2
    params = wide.experiment.init(inputs).params
    one, other = (
        placed.experiment.evaluate(inputs, params, num_episodes=256) for placed in (wide, narrow)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_memory_limit_makes_chunks_smaller():
    config = of_cartpole(num_episodes=64, chunk_size=4096, evaluation_episodes=4)
    wide, params = fitted(config, None)
    narrow, near = fitted(config, wide * 2 // 3)
    assert narrow <= wide * 2 // 3
    for one, other in zip(params, near, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_what_cannot_fit_is_one_line_that_says_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = "train --memory-limit 100k --hidden 32 --num-episodes 64 --horizon 64"
    assert cli.main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("pgjax: error: memory_limit=100 kB is too little: 1 run of 64 episodes")
    assert said.count("\n") == 1 and "at least" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num", [0, -1, 10**6])
def test_devices_that_are_not_there_are_refused(num):
    with pytest.raises(ValueError, match=f"devices={num} must be from 1 to"):
        machine.take(num)
