"""Runs: what they leave, and that stopping, killing and damage change nothing in the end."""

import dataclasses
import errno
import fcntl
import json
import os
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

from pgjax.lab import (
    advance,
    checkpoints,
    config,
    directory,
    evaluation,
    experiment,
    parallel,
    records,
    refusals,
    run,
)

from .killing import KilledError, compiling_itself, kill_at


def contents(where):
    """What must not depend on when and how often a run was stopped: metrics, state, evaluation."""
    _, progress = run.load(where.path)
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(progress.state)]
    return where.metrics.read_bytes(), where.evaluation.read_bytes(), progress.update, leaves


def copy_of(finished, tiny):
    """A finished run, copied to where `tiny` would stand."""
    copied = directory.Directory(Path(tiny.directory) / tiny.name)
    shutil.copytree(finished.path, copied.path)
    return copied


def test_a_run_leaves_what_it_says(finished, capsys):
    assert sorted(path.name for path in finished.path.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "evaluation.json",
        "learning_curve.png",
        "metrics.jsonl",
        "timings.jsonl",
    ]
    assert config.load(finished.config).name == "tiny"
    assert checkpoints.updates(finished.checkpoints) == [7, 6, 4]


def test_metrics_hold_a_line_an_update_and_seed(finished):
    rows = records.read(finished.metrics)
    assert [(row["update"], row["seed"]) for row in rows] == [
        (update, seed) for update in range(1, 8) for seed in (0, 1)
    ]
    assert {"return", "env_steps", "gradient_norm", "finite", "skipped", "value_loss"} <= set(
        rows[0]
    )
    steps = records.curves(finished.metrics)["env_steps"]
    assert np.all(np.diff(steps, axis=1) > 0)


def test_metrics_hold_nothing_that_depends_on_the_machine(finished):
    names = set(records.read(finished.metrics)[0])
    assert not {name for name in names if "second" in name or "time" in name}
    assert "seconds" in records.read(finished.timings)[0]


def test_the_same_config_gives_the_same_run(finished, tiny):
    again = run.start(tiny)
    run.follow(again)
    assert contents(again.directory) == contents(finished)


def test_another_seed_gives_another(finished, tiny):
    again = run.start(dataclasses.replace(tiny, seed=5))
    run.follow(again)
    assert contents(again.directory)[0] != contents(finished)[0]


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (directory, "create", 1),  # only the config is there
        (advance, "call", 2),  # an update was made, its record was not written
        (run, "_save", 1),
        (run, "_save", 3),
        (checkpoints, "_seal", 2),  # the arrays are written, the checkpoint is not in its place
        (run, "_report_skipped", 1),  # all updates are done, the evaluation is not
    ],
    ids=lambda value: (
        value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else str(value)
    ),
)
def test_a_killed_run_ends_bitwise_as_if_never_killed(
    finished, tiny, monkeypatch, module, name, call
):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, module, name, call)
        run.follow(run.start(tiny))
    where = f"{tiny.directory}/tiny"
    resumed = run.resume(where)
    assert not run.is_finished(resumed)
    assert run.follow(resumed) is None
    assert contents(resumed.directory) == contents(finished)


def test_a_kill_before_a_run_has_its_config_leaves_its_name_free(tiny, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, directory, "write", 1)
        directory.create(tiny)
    assert directory.find(directory.create(tiny).path)[1] == tiny


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_written_is_there_whole_or_as_it_was(tmp_path, kind):
    path = tmp_path / "kept.txt"

    def write(text, then=lambda: None):
        with directory.whole(path) as part:
            if kind == "directory":
                part.mkdir()
            (part / "text" if kind == "directory" else part).write_text(text)
            then()

    def fail():
        raise OSError("the disk is full")

    read = lambda: (path / "text" if kind == "directory" else path).read_text()
    write("before")
    with pytest.raises(OSError, match="full"):
        write("after", fail)
    assert read() == "before"
    write("after")
    assert read() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_is_followed_is_not_followed_twice(finished, tiny):
    where = copy_of(finished, tiny)
    before = contents(where)
    resumed = run.resume(where.path)
    code = (
        "import sys, pathlib; from pgjax.lab import directory as d\n"
        "with d.locked(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(where.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for attempt in (lambda: run.resume(where.path), lambda: run.follow(resumed)):
            with pytest.raises(ValueError, match="in use by another process"):
                attempt()
        assert contents(where) == before  # looking is allowed
        other.kill()
    assert run.is_finished(run.resume(where.path))


def test_a_file_system_without_locks_can_hold_runs(finished, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(directory.fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match="cannot be locked, .*: .*no locks here"):
        assert run.is_finished(run.resume(finished.path))


def test_a_file_system_that_locks_only_what_can_be_written_excludes_others(tmp_path, monkeypatch):
    flock = fcntl.flock

    def nfs(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        flock(file, operation)

    monkeypatch.setattr(directory.fcntl, "flock", nfs)
    with directory.locked(tmp_path):
        with pytest.raises(refusals.RefusalError, match="in use by another process"):
            with directory.locked(tmp_path):
                pass
    with directory.locked(tmp_path):
        assert directory.listing(tmp_path) == f"{tmp_path}: "


def test_records_written_after_the_checkpoint_are_written_again(finished, tiny):
    where = copy_of(finished, tiny)
    shutil.rmtree(where.checkpoints / "7")
    where.evaluation.unlink()
    where.metrics.write_bytes(where.metrics.read_bytes()[:-9])
    run.follow(run.resume(where.path))
    assert contents(where) == contents(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_last_call_and_says_how_to_go_on(
    finished, tiny, monkeypatch, capsys, number
):
    # No checkpoint is due before the last update: the one at 2 is the signal's.
    tiny = dataclasses.replace(tiny, checkpoint_every=100)
    original, handler = records.Records.append, signal.getsignal(number)

    def interrupting(self, rows):
        original(self, rows)
        if "timings" in str(self._file.name):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "append", interrupting)
        started = run.start(tiny)
        assert run.follow(started) == number
    assert checkpoints.updates(started.directory.checkpoints) == [2]
    assert f"pgjax train --resume {started.directory.path}" in capsys.readouterr().out
    assert signal.getsignal(number) is handler
    run.follow(run.resume(started.directory.path))
    assert contents(started.directory) == contents(finished)


def test_a_signal_after_the_last_save_loses_nothing(finished, tiny, monkeypatch):
    tiny = dataclasses.replace(tiny, checkpoint_every=100)

    def interrupting(*args):
        signal.raise_signal(signal.SIGINT)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(run, "_is_due", interrupting)
        started = run.start(tiny)
        assert run.follow(started) == signal.SIGINT
    assert checkpoints.updates(started.directory.checkpoints) == [2]
    run.follow(run.resume(started.directory.path))
    assert contents(started.directory) == contents(finished)


@pytest.mark.parametrize(
    ("module", "name"), [(run, "_compile_evaluation"), (run.plots, "learning_curves")]
)
def test_ctrl_c_after_training_says_how_to_go_on(finished, tiny, monkeypatch, capsys, module, name):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        started = run.start(tiny)
        assert run.follow(started) == signal.SIGINT
    assert f"pgjax train --resume {started.directory.path}" in capsys.readouterr().out
    assert not started.directory.evaluation.exists()
    run.follow(run.resume(started.directory.path))
    assert contents(started.directory) == contents(finished)


@pytest.mark.parametrize("file", ["metrics", "timings"])
@pytest.mark.parametrize("line", ["torn}", '{"seed": 0}', '{"update": "x"}', "[]"])
def test_broken_records_are_refused_before_anything_is_trained(finished, tiny, file, line):
    where = copy_of(finished, tiny)
    with getattr(where, file).open("a") as records_file:
        records_file.write(line + "\n")
    with pytest.raises(ValueError, match=f"{file}.jsonl"):
        run.resume(where.path)


def test_the_default_run_learns_cartpole(tmp_path):
    started = run.start(config.Config(directory=str(tmp_path)))
    run.follow(started)
    found = json.loads(started.directory.evaluation.read_text())
    assert min(found["return"]["per_seed"]) >= 475


def test_a_damaged_newest_checkpoint_costs_only_the_way_back(finished, tiny):
    where = copy_of(finished, tiny)
    where.evaluation.unlink()
    (where.checkpoints / "7" / checkpoints.SEAL).write_text("torn")
    with pytest.warns(UserWarning, match="passed over the damaged checkpoint"):
        resumed = run.resume(where.path)
    assert resumed.restored.update == 6
    run.follow(resumed)
    assert contents(where) == contents(finished)


@pytest.mark.parametrize(("reached", "update"), [(6, 6), (5, 4)])
def test_a_checkpoint_that_the_records_do_not_reach_is_passed_over(finished, tiny, reached, update):
    where = copy_of(finished, tiny)
    where.evaluation.unlink()
    lines = where.metrics.read_text().splitlines(keepends=True)
    where.metrics.write_text("".join(lines[: tiny.seeds * reached]))
    with pytest.warns(UserWarning, match="passed over .*, which the records do not reach"):
        resumed = run.resume(where.path)
    assert resumed.restored.update == update
    run.follow(resumed)
    assert contents(where) == contents(finished)


def test_records_that_reach_no_checkpoint_are_refused(finished, tiny):
    where = copy_of(finished, tiny)
    where.metrics.write_text("")
    with pytest.warns(UserWarning, match="passed over"):
        with pytest.raises(ValueError, match="no checkpoint in .* can be used"):
            run.resume(where.path)


def test_records_are_on_disk_before_their_checkpoint(tiny, monkeypatch):
    synced, found, save = [], [], checkpoints.save
    monkeypatch.setattr(records.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))

    def saving(folder, update, *args, **kwargs):
        found.append((synced[-1:], [(folder.parent / "metrics.jsonl").stat().st_size]))
        return save(folder, update, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", saving)
    run.follow(run.start(tiny))
    assert len(found) == 4 and all(before == after for before, after in found)


def test_a_finished_run_is_left_as_it_is(finished):
    assert run.is_finished(run.resume(finished.path))


def test_a_run_can_be_made_longer(finished, tiny):
    where = copy_of(finished, tiny)
    longer = dataclasses.replace(config.load(where.config), num_updates=9)
    where.config.write_text(config.dump(longer))
    run.follow(run.resume(where.path))
    assert records.curves(where.metrics)["return"].shape == (2, 9)
    before = records.curves(finished.metrics)["return"]
    np.testing.assert_array_equal(records.curves(where.metrics)["return"][:, :7], before)


def test_checkpoints_of_another_config_are_refused(finished, tiny):
    where = copy_of(finished, tiny)
    where.config.write_text(
        config.dump(dataclasses.replace(config.load(where.config), learning_rate=0.5))
    )
    with pytest.raises(ValueError, match="does not belong to this run"):
        run.resume(where.path)


def test_a_run_without_its_records_is_refused(finished, tiny):
    where = copy_of(finished, tiny)
    where.metrics.unlink()
    with pytest.raises(ValueError, match="metrics.jsonl"):
        run.resume(where.path)


def test_names_made_from_the_time_are_unique(tiny):
    anonymous = dataclasses.replace(tiny, name=None)
    made = [directory.create(anonymous).path for _ in range(3)]
    assert len(set(made)) == 3
    assert all(path.name.startswith("ShortCorridor-gae-value-") for path in made)


def test_gradients_that_are_not_finite_are_reported_with_update_and_seed(tiny):
    # Steps this long throw the logits out of what float32 holds.
    wild = dataclasses.replace(
        tiny, optimizer="sgd", learning_rate=1e38, value_learning_rate=1e38, max_grad_norm=None
    )
    started = run.start(wild)
    with pytest.warns(UserWarning, match=r"not finite and skipped: update \d+ of seed \d"):
        run.follow(started)
    rows = records.read(started.directory.metrics)
    assert any(not row["finite"] for row in rows)
    assert max(row["skipped"] for row in rows) > 0


@pytest.fixture
def compilations(caplog):
    """Counts how often training is compiled, in whatever thread."""
    jax.config.update("jax_log_compiles", True)
    yield lambda: sum("XLA compilation of jit(train)" in text for text in caplog.messages)
    jax.config.update("jax_log_compiles", False)


def test_a_run_compiles_its_training_once(tiny, compilations):
    # Choices of its own: no other test has compiled them.
    settings = dataclasses.replace(tiny, num_episodes=3, num_updates=8)
    run.follow(run.start(settings, devices=1))
    assert compilations() == 1


def test_a_resumed_run_compiles_its_training_once(finished, tiny, compilations):
    where = copy_of(finished, tiny)
    longer = dataclasses.replace(tiny, num_updates=13)
    where.config.write_text(config.dump(longer))
    resumed = run.resume(where.path, devices=1)
    fresh = parallel.over_runs.__wrapped__(experiment.build(tiny))
    run.follow(resumed._replace(placed=resumed.placed._replace(over_runs=fresh)))
    assert compilations() == 1


def test_a_process_killed_once_ends_as_if_never_killed(finished, tiny):
    # Too long to be done before it is seen to have begun; what remains is done here.
    endless = dataclasses.replace(tiny, name="killed", num_updates=10**6)
    file = Path(tiny.directory).with_name("killed.yaml")
    file.write_text(config.dump(endless))
    where = directory.Directory(Path(tiny.directory) / "killed")
    command = [sys.executable, "-m", "pgjax", "train", "--devices", "1", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=compiling_itself()) as process:
        while process.poll() is None and not checkpoints.updates(where.checkpoints):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = checkpoints.updates(where.checkpoints)[0] + 4
    straight = run.start(dataclasses.replace(tiny, num_updates=done))
    run.follow(straight)
    where.config.write_text(config.dump(dataclasses.replace(endless, num_updates=done)))
    run.follow(run.resume(where.path))
    assert contents(where) == contents(straight.directory)


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment(tmp_path):
    settings = dataclasses.replace(
        _long(tmp_path), name="straight", evaluation_episodes=5, num_updates=600
    )
    straight = run.start(settings, devices=1)
    run.follow(straight)
    killed = dataclasses.replace(settings, name="killed")
    file = tmp_path / "killed.yaml"
    file.write_text(config.dump(killed))
    command = [sys.executable, "-m", "pgjax", "train", "--devices", "1"]
    arguments, kills, rng = ["--config", str(file)], 0, random.Random(0)
    where = directory.Directory(tmp_path / "runs" / "killed")
    while True:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.DEVNULL, env=compiling_itself()
        )
        if kills < 4:
            # Anywhere from a little before the first update to well into training.
            before = _size(where.metrics)
            while process.poll() is None and _size(where.metrics) == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        arguments = ["--resume", str(where.path)]
    assert kills == 4
    assert contents(where) == contents(straight.directory)


def _long(tmp_path):
    return config.Config(
        env="ShortCorridor",
        policy="tabular",
        horizon=12,
        num_episodes=4,
        checkpoint_every=3,
        directory=str(tmp_path / "runs"),
    )


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def test_a_command_that_is_shown_can_be_pasted(tiny, tmp_path):
    settings = dataclasses.replace(tiny, directory=str(tmp_path / "my runs"), name="one")
    (tmp_path / "my runs" / "one").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"--resume '{tmp_path}/my runs/one'$"):
        directory.vacant(settings)


def test_a_place_where_no_directory_can_be_made_is_refused(tiny, tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(directory.Path, "mkdir", refused)
    settings = dataclasses.replace(tiny, directory=str(tmp_path / "there"))
    with pytest.raises(ValueError, match="directory='.*there' cannot be written to: Operation"):
        directory.create(settings)


def test_one_seed_has_no_interval():
    assert evaluation._summary(np.ones((1, 5)))["interval"] is None
    assert evaluation._summary(np.ones((2, 5)))["interval"] == [1, 1]
