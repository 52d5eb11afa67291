"""Sweeps: stopping, killing and damage change nothing in the end, and nothing is done twice."""

import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

from pgjax.lab import advance, checkpoints, directory, records, refusals
from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import dataset, design, outcome, plan, run
from pgjax.lab.sweep.settings import Sweep

from ..killing import KilledError, compiling_itself, kill_at

NUM_CHUNKS = 3  # of two runs each, in the undisturbed sweep


def assert_same(path, expected, rtol=0.0):
    """Results are equal, whatever time they took."""
    found = dataset.load(path).drop_vars("seconds")
    expected = expected.drop_vars("seconds")
    assert found["finished"].all()
    if rtol:  # XLA's order of summation goes by how many runs lie side by side.
        xr.testing.assert_allclose(found, expected, rtol=rtol)
    else:
        xr.testing.assert_equal(found, expected)


@pytest.fixture
def copied(undisturbed, tmp_path):
    """The undisturbed sweep, copied to where things may happen to it."""
    store, _ = undisturbed
    return run.Store(shutil.copytree(store.path, tmp_path / "runs" / "sweep"))


@pytest.fixture
def carried(monkeypatch):
    """The runs that are carried out, chunk by chunk."""
    original, found = chunks.carry_out, []

    def carry_out(*args, indices, **kwargs):
        found.append(list(indices))
        return original(*args, indices=indices, **kwargs)

    monkeypatch.setattr(chunks, "carry_out", carry_out)
    return found


def test_a_sweep_leaves_what_it_says(undisturbed):
    store, _ = undisturbed
    assert sorted(path.name for path in store.path.iterdir()) == [
        ".lock",
        "best.yaml",
        "chunks",
        "sweep.nc",
        "sweep.yaml",
        "widths.json",
    ]
    assert len(list(store.chunks.iterdir())) == NUM_CHUNKS


@pytest.mark.parametrize(
    ("module", "name", "call", "before"),
    [
        (directory, "make", 1, False),  # nothing was carried out
        (advance, "fetch", 4, False),  # updates were made, their records were not written
        (records.Records, "append", 2, False),  # their records were, the checkpoint was not
        (checkpoints, "_seal", 2, False),  # the checkpoint is written, but not in its place
        (checkpoints, "save", 9, False),  # all updates are done, the evaluation is not
        (chunks, "_conclude", 1, True),
        (chunks, "_conclude", 2, False),  # there are results, and checkpoints still
        (dataset, "enter", 2, True),  # there are results, they are not entered
        (dataset, "write", 2, True),
        (xr.Dataset, "to_netcdf", 2, False),  # the dataset is written, but not in its place
        (outcome, "conclude", 1, True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_a_killed_sweep_ends_as_if_never_killed(
    undisturbed, sweep, begin, monkeypatch, module, name, call, before
):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, module, name, call, before)
        run.follow(begin(sweep, at_once=2), save_every=0)
    path = f"{sweep.base.directory}/sweep"
    assert run.follow(run.resume(path), save_every=0) is None
    assert_same(path, undisturbed[1])
    found = run.Store(Path(path))
    assert len(list(found.chunks.glob("*/result.json"))) == NUM_CHUNKS
    assert not list(found.chunks.glob("*/checkpoints"))


def test_a_sweep_killed_while_the_next_call_is_under_way_ends_as_if_never_killed(
    undisturbed, sweep, begin, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, records.Records, "append", 5)  # the second call of the second chunk
        run.follow(begin(sweep, at_once=2))
    path = f"{sweep.base.directory}/sweep"
    assert not list(run.Store(Path(path)).chunks.glob("*/checkpoints"))
    assert run.follow(run.resume(path)) is None
    assert_same(path, undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_under_way_and_says_how_to_go_on(
    undisturbed, sweep, begin, monkeypatch, capsys, carried, number
):
    original, calls = advance.fetch, []

    def interrupting(*args):
        calls.append(args)
        if len(calls) == 4:  # the first of the second chunk; the next is under way
            signal.raise_signal(number)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(advance, "fetch", interrupting)
        started = begin(sweep, at_once=2)
        assert run.follow(started) == number
    path = started.store.path
    out = capsys.readouterr().out
    assert "stopped with 2 of 6 runs finished" in out
    assert f"continue with: pgjax sweep --resume {path}\n" in out
    assert dataset.load(path)["finished"].sum() == 2
    (unfinished,) = started.store.chunks.glob("*/checkpoints")
    assert checkpoints.updates(unfinished) == [4]
    carried.clear()
    assert run.follow(run.resume(path)) is None
    assert carried == [[(1, 0), (1, 1)], [(2, 0), (2, 1)]]
    assert_same(path, undisturbed[1])


def test_a_finished_sweep_is_neither_compiled_nor_carried_out_again(
    undisturbed, copied, carried, monkeypatch
):
    copied.dataset.unlink()
    monkeypatch.setattr(plan.programs, "fit", None)
    resumed = run.resume(copied.path)
    with pytest.raises(TypeError, match="at_onec"):
        run.resume(copied.path, at_onec=1)
    assert plan.describe(resumed.plan).endswith("\n6 of 6 runs are finished already")
    assert run.follow(resumed) is None
    assert carried == []
    assert_same(copied.path, undisturbed[1])


def test_results_that_are_lost_after_planning_are_noticed(copied):
    resumed = run.resume(copied.path)
    lost, *_ = copied.chunks.iterdir()
    shutil.rmtree(lost)
    with pytest.raises(refusals.RefusalError, match="are gone by now; resume"):
        run.follow(resumed)
    assert not (run.resume(copied.path).plan.finished) >= resumed.plan.finished


def test_a_sweep_is_resumed_with_other_widths(undisturbed, copied, carried):
    for number, folder in enumerate(sorted(copied.chunks.iterdir())):
        if number != 1:
            (folder / "result.json").unlink()
    finished = chunks.read(sorted(copied.chunks.iterdir())[1]).runs
    assert run.follow(run.resume(copied.path, at_once=3)) is None
    left = [(c, s) for c in range(3) for s in range(2) if (c, s) not in finished]
    assert sorted(sum(carried, [])) == left and len(carried) == 2
    assert_same(copied.path, undisturbed[1], rtol=1e-6)
    assert all((folder / "result.json").is_file() for folder in copied.chunks.iterdir())


@pytest.mark.parametrize(
    ("file", "text"),
    [("result.json", "torn"), ("result.json", "{}"), ("metrics.jsonl", '{"update": 1}\n')],
)
def test_a_damaged_chunk_is_made_again(undisturbed, copied, carried, file, text):
    damaged = sorted(copied.chunks.iterdir())[0]
    runs = chunks.read(damaged).runs
    (damaged / file).write_text(text)
    with pytest.warns(UserWarning, match=f"damaged results: .*{damaged.name}"):
        assert run.follow(run.resume(copied.path)) is None
    assert carried == [runs]
    assert_same(copied.path, undisturbed[1])


def test_results_of_other_configurations_are_not_taken_for_its_own(undisturbed, copied, carried):
    text = copied.sweep.read_text()
    assert "- 0.3\n" in text
    copied.sweep.write_text(text.replace("- 0.3\n", "- 0.4\n"))
    assert run.follow(run.resume(copied.path)) is None
    assert carried == [[(2, 0), (2, 1)]]
    found, before = dataset.load(copied.path), undisturbed[1]
    xr.testing.assert_equal(
        found.isel(learning_rate=slice(2)).drop_vars("seconds"),
        before.isel(learning_rate=slice(2)).drop_vars("seconds"),
    )
    last = [np.asarray(x["param_norm"].isel(learning_rate=2)) for x in (found, before)]
    assert np.all(last[0] != last[1])


def test_a_sweep_that_is_followed_is_not_followed_twice(copied):
    resumed = run.resume(copied.path)
    with directory.locked(copied.path):
        for attempt in (lambda: run.resume(copied.path), lambda: run.follow(resumed)):
            with pytest.raises(ValueError, match="in use by another process"):
                attempt()


def test_what_diverged_is_named_and_the_best_is_not_among_it(changed, begin, capsys):
    sweep = changed({"learning_rate": (0.03, 1e6)})
    started = begin(sweep, at_once=2)
    assert run.follow(started) is None
    out = capsys.readouterr().out
    assert "diverged: learning_rate=1e+06, seeds 0, 1\n" in out
    found = dataset.load(started.store.path)
    np.testing.assert_array_equal(found["diverged"], [[0, 0], [1, 1]])


def test_a_configuration_that_is_drawn_twice_has_results_twice(changed, begin, carried):
    swept = {"learning_rate": (0.03, 0.1)}
    sweep = dataclasses.replace(changed(swept), design="random", configurations=3, design_seed=2)
    assert len({str(values) for values in design.lay_out(sweep)}) < 3
    started = begin(sweep, at_once=2)
    assert run.follow(started) is None
    assert run.follow(run.resume(started.store.path)) is None
    assert len(carried) == 3
    found = dataset.load(started.store.path)
    assert found["finished"].all()
    first, second = (
        found.isel(configuration=index)
        for index in np.flatnonzero(found["learning_rate"] == found["learning_rate"].values[1])[:2]
    )
    np.testing.assert_array_equal(first["param_norm"], second["param_norm"])


def test_a_group_compiles_its_training_once(changed, begin, caplog, request):
    # Choices of their own: no other test has compiled them.
    sweep = changed(
        {"learning_rate": (0.03, 0.1, 0.3), "num_episodes": (5, 6)}, num_updates=6, seeds=1
    )
    # Of all threads: planning compiles beside this one.
    jax.config.update("jax_log_compiles", True)
    request.addfinalizer(lambda: jax.config.update("jax_log_compiles", False))
    run.follow(begin(sweep, at_once=2))
    for name in ("train", "evaluate"):
        assert sum(f"XLA compilation of jit({name})" in text for text in caplog.messages) == 2


def written(tmp_path, name, **fields):
    """A sweep in a file, of runs long enough to be killed."""
    base = Config(
        env="ShortCorridor",
        policy="tabular",
        horizon=12,
        num_episodes=4,
        evaluation_episodes=5,
        seeds=2,
        name=name,
        directory=str(tmp_path / "runs"),
    )
    base = dataclasses.replace(base, **fields)
    file = tmp_path / f"{name}.yaml"
    file.write_text(design.dump(Sweep(base, {"learning_rate": (0.03, 0.1, 0.3)})))
    return file, run.Store(tmp_path / "runs" / name)


def command(*arguments, devices=1):
    """A process of its own."""
    environment = compiling_itself() | {"JAX_NUM_CPU_DEVICES": str(devices)}
    argv = [sys.executable, "-m", "pgjax", "sweep", "--save-every", "0", *map(str, arguments)]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)


def size(store):
    """Bytes of records so far."""
    return sum(file.stat().st_size for file in store.chunks.glob("*/metrics.jsonl"))


def test_a_process_killed_once_ends_as_if_never_killed(tmp_path, begin):
    file, store = written(tmp_path, "killed", num_updates=60)
    with command("--config", file, "--at-once", 3) as process:
        while process.poll() is None and not list(store.chunks.glob("*/checkpoints/[1-9]*")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not store.dataset.exists() or not dataset.load(store.path)["finished"].all()
    assert run.follow(run.resume(store.path)) is None
    file, straight = written(tmp_path, "straight", num_updates=60)
    run.follow(begin(design.parse(configs.read(file)), at_once=3))
    assert_same(store.path, dataset.load(straight.path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_minus_nine_at_any_moment(tmp_path):
    file, straight = written(tmp_path, "straight", num_updates=300)
    assert command("--config", file, "--at-once", 2).wait() == 0
    file, store = written(tmp_path, "killed", num_updates=300)
    arguments, kills, rng = ("--config", file, "--at-once", 2), 0, random.Random(0)
    while True:
        process = command(*arguments)
        if kills < 10:
            # Anywhere from a little before the first update to well into training.
            before = size(store)
            while process.poll() is None and size(store) == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.0))
            process.kill()
            kills += 1
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        arguments = ("--resume", store.path)
    assert kills == 10
    assert_same(store.path, dataset.load(straight.path))


@pytest.mark.slow
def test_it_does_not_matter_how_many_devices_there_are(tmp_path):
    found = []
    for devices in (1, 2):
        file, store = written(tmp_path, f"on-{devices}", num_updates=20, updates_per_call=5)
        assert command("--config", file, devices=devices).wait() == 0
        found.append(store)
    assert dataset.load(found[0].path).attrs["device"] == "1 x cpu (cpu)"
    assert dataset.load(found[1].path).attrs["device"] == "2 x cpu (cpu)"
    assert_same(found[1].path, dataset.load(found[0].path), rtol=1e-6)
