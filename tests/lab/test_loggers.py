"""Loggers: what was logged is read back from what they leave, whatever happened in between."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from pgjax.lab import loggers, records

# What another process logs: updates up to `last`, those up to `before` at once, as a run that goes
# on does. Backends keep state in their modules, only a process can be killed, and in one that ends
# soon the network can be watched.
PROGRAM = """
import os, socket, sys, time
from pathlib import Path

from pgjax.lab import loggers

asked = []

def connect(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX:
        asked.append(address)
    return connect(self, address)

def getaddrinfo(host, *_, **__):
    asked.append(host)
    raise OSError("no network")

def rows(updates):
    return [
        {"update": update, "seed": seed, "return": 10.0 * update + seed, "loss": float("nan")}
        for update in updates
        for seed in (0, 1)
    ]

socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
name, where, before, last, end = sys.argv[1:]
with loggers.opened([name], Path(where), Path(where).name, {"discount": 0.9}) as log:
    log(rows(range(1, int(before) + 1)))
    for update in range(int(before) + 1, int(last) + 1):
        log(rows([update]))
    if end == "kill":
        time.sleep(2)
        os.kill(os.getpid(), 9)
assert asked == [], asked
"""


def elsewhere(name, where, before, last, end="close", **variables):
    """Logs in another process that has no key, no settings and no network; returns its stderr."""
    where.mkdir(exist_ok=True)
    kept = {x: v for x, v in os.environ.items() if not x.startswith(("WANDB", "TRACKIO", "HF_"))}
    home = {"HOME": str(where.parent), "NETRC": str(where.parent / "none")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, where, str(before), str(last), end],
        env=kept | home | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (-9 if end == "kill" else 0), done.stderr
    assert done.stdout == ""
    return done.stderr


def rows(updates, seeds=(0, 1)):
    return [
        {"update": update, "seed": seed, "return": 10.0 * update + seed, "env_steps": 7 * update}
        for update in updates
        for seed in seeds
    ]


def returns(seed, updates):
    """What curves of returns should be, of `rows` and of `PROGRAM`."""
    return [(update, 10.0 * update + seed) for update in updates]


class Memory:
    """A logger that remembers."""

    def __init__(self, *_):
        self.points, self.closed = [], 0

    def log(self, series, step, values):
        self.points.append((loggers.label(series), step, values))

    def close(self):
        self.closed += 1


class Broken(Memory):
    """A logger whose network goes away."""

    def log(self, series, step, values):
        super().log(series, step, values)
        if step >= 2:
            raise ConnectionError("the line is dead")

    def close(self):
        super().close()
        raise ConnectionError("still dead")


@pytest.fixture
def memory(monkeypatch):
    made = {"memory": Memory(), "broken": Broken()}
    for name, logger in made.items():
        backend = loggers.Backend("json", lambda *_, logger=logger: logger)
        monkeypatch.setitem(loggers.LOGGERS, name, backend)
    return made


# Any logger.


def test_a_series_read_back_from_records_is_the_same(monkeypatch, tmp_path):
    seen = []
    memory = loggers.Backend("json", lambda *_: Memory())
    monkeypatch.setitem(loggers.LOGGERS, "memory", memory)
    monkeypatch.setattr(Memory, "log", lambda self, series, step, values: seen.append(series))
    row = {"learning_rate": np.float32(0.01), "seed": np.int64(3), "update": 1}
    with records.Records(tmp_path / "metrics.jsonl") as file:
        file.append([row])
    with loggers.opened(["memory"], tmp_path, "run", {}, by=("learning_rate", "seed")) as log:
        log([row])
        log(records.read(tmp_path / "metrics.jsonl"))
    assert len(seen) == 2 and len(set(seen)) == 1


def test_lists_of_numbers_are_curves_of_their_own_and_words_are_none(memory, tmp_path):
    with loggers.opened(["memory"], tmp_path, "run", {}) as log:
        log([{"seed": 0, "update": 1, "x": np.array([1.0, 2.0])}])
        log([{"seed": 0, "update": 2, "x": [3, None], "y": None, "z": "word"}])
    (_, _, first), (_, _, second) = memory["memory"].points
    assert first == {"x/0": 1.0, "x/1": 2.0}
    np.testing.assert_equal(second, {"x/0": 3.0, "x/1": np.nan, "y": np.nan})


def test_every_series_is_a_curve_of_numbers(memory, tmp_path):
    row = {"learning_rate": 0.1, "seed": 3, "update": np.int64(1), "x": np.float32(2), "y": True}
    with loggers.opened(["memory"], tmp_path, "run", {}, by=("learning_rate", "seed")) as log:
        log([row])
    assert memory["memory"].points == [("learning_rate=0.1,seed=3", 1, {"x": 2.0, "y": 1.0})]
    assert memory["memory"].closed == 1


def test_a_logger_that_fails_is_left_out_with_one_warning(memory, tmp_path):
    names = ["broken", "memory"]
    with pytest.warns(UserWarning, match="broken.*the line is dead") as warned:
        with loggers.opened(names, tmp_path, "run", {}) as log:
            for update in range(1, 6):
                log(rows([update]))
    assert len(warned) == 1
    assert len(memory["memory"].points) == 10
    assert len(memory["broken"].points) == 3
    assert memory["broken"].closed == memory["memory"].closed == 1


def test_a_logger_that_cannot_be_opened_is_left_out(memory, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError("read-only")

    monkeypatch.setitem(loggers.LOGGERS, "shut", loggers.Backend("json", refuse))
    with pytest.warns(UserWarning, match="shut.*read-only"):
        with loggers.opened(["shut", "memory"], tmp_path, "run", {}) as log:
            log(rows([1]))
    assert len(memory["memory"].points) == 2


def test_what_ends_a_training_ends_as_it_was_and_loggers_are_closed(memory, tmp_path):
    with pytest.raises(KeyError, match="mistake"):
        with loggers.opened(["memory"], tmp_path, "run", {}) as log:
            log(rows([1]))
            raise KeyError("mistake")
    assert len(memory["memory"].points) == 2
    assert memory["memory"].closed == 1


def test_a_slow_logger_is_one_call_behind_and_no_more(memory, monkeypatch, tmp_path):
    went_on, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(memory["memory"], "log", lambda *_: go_on.wait(30))
    ahead = []

    def train():
        with loggers.opened(["memory"], tmp_path, "run", {}) as log:
            for update in range(1, 4):
                log(rows([update]))
                ahead.append(update)
                went_on.set()

    training = threading.Thread(target=train)
    training.start()
    assert went_on.wait(30)
    training.join(0.1)  # to get further ahead, if it could
    behind = list(ahead)
    go_on.set()
    training.join()
    assert behind == [1] and ahead == [1, 2, 3]


def test_no_logger_at_all_is_fine(tmp_path):
    with loggers.opened([], tmp_path, "run", {}) as log:
        log(rows([1]))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="loggers='tensorbord'.*did you mean 'tensorboard'"):
        with loggers.opened(["tensorbord"], tmp_path, "run", {}):
            pass


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb",) * 2, ("trackio",) * 2]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package}: pip install "pgjax\[{name}\]"$'):
        loggers.check([name])


def test_packages_are_imported_when_asked_for():
    program = "import pgjax.lab.loggers, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    modules = done.stdout.decode().split()
    assert "pgjax.lab.loggers.wandb" in modules
    assert not {"tensorboardX", "wandb", "trackio"} & set(modules)


# TensorBoard.


def event_files(folder):
    """The events of a folder as TensorBoard reads them: file by file, purging at a restart."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    checksum = pytest.importorskip("tensorboardX.record_writer").masked_crc32c
    points = []
    for path in sorted(folder.iterdir()):
        assert "tfevents" in path.name
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body, end = data[12 : 12 + length], 16 + length
            checksums = struct.unpack("<I", data[8:12]) + struct.unpack("<I", data[end - 4 : end])
            assert checksums == (checksum(data[:8]), checksum(body))
            event, data = event_pb2.Event.FromString(body), data[end:]
            if event.session_log.status == event_pb2.SessionLog.START:
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
    return points


def curve(points, tag="return"):
    return [(step, value) for step, name, value in points if name == tag]


def test_tensorboard_has_a_curve_a_seed(tmp_path):
    pytest.importorskip("tensorboardX")
    with loggers.opened(["tensorboard"], tmp_path, "run", {}) as log:
        log(rows([1]))
        log(rows([2, 3]))
    folders = sorted((tmp_path / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == ["seed=0", "seed=1"]
    for seed, folder in enumerate(folders):
        points = event_files(folder)
        assert curve(points) == returns(seed, [1, 2, 3])
        assert curve(points, "env_steps") == [(1, 7), (2, 14), (3, 21)]


@pytest.mark.parametrize("first", [1, 3])
def test_tensorboard_holds_a_step_once_after_a_resume(tmp_path, first):
    pytest.importorskip("tensorboardX")
    for updates in ([1, 2, 3, 4], range(first, 7)):
        with loggers.opened(["tensorboard"], tmp_path, "run", {}) as log:
            log(rows(updates, seeds=[0]))
    folder = tmp_path / "tensorboard" / "seed=0"
    assert len(list(folder.iterdir())) == 2
    assert curve(event_files(folder)) == returns(0, range(1, 7))


def test_tensorboard_is_on_disk_before_it_is_closed(tmp_path):
    pytest.importorskip("tensorboardX")
    logger = loggers.LOGGERS["tensorboard"].open(tmp_path, "run", {})
    logger.log((("seed", 0),), 1, {"return": 2.0})
    assert event_files(tmp_path / "tensorboard" / "seed=0") == [(1, "return", 2.0)]


def test_tensorboard_takes_what_is_not_finite_and_names_that_are_no_names(tmp_path):
    pytest.importorskip("tensorboardX")
    logger = loggers.LOGGERS["tensorboard"].open(tmp_path, "run", {})
    logger.log((("env", "a/b c"),), 1, {"x": float("nan"), "y": float("-inf"), "z": 1e300})
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == "env=a_b_c"
    values = [value for _, _, value in event_files(folder)]
    np.testing.assert_array_equal(values, [np.nan, -np.inf, np.inf])


# Weights & Biases.


def wandb_runs(where):
    """The offline runs below a directory: name -> (run record, points), from `.wandb` files."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    runs = {}
    for path in sorted((where / "wandb").glob("offline-run-*/*.wandb")):
        records = [pb.Record.FromString(data) for data in leveldb_log(path.read_bytes())]
        (run,) = (x.run for x in records if x.WhichOneof("record_type") == "run")
        history = [x.history for x in records if x.WhichOneof("record_type") == "history"]
        assert run.display_name not in runs
        runs[run.display_name] = run, [(x.step.num, items(x)) for x in history]
    return runs


def leveldb_log(data):
    """The records of a log as LevelDB frames it, after wandb's seven bytes of header."""
    position, record = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield record
            record = b""


def items(history):
    return {(x.key or x.nested_key[0]): json.loads(x.value_json) for x in history.item}


def test_wandb_has_a_run_a_seed_and_holds_a_step_once_after_a_kill(tmp_path):
    pytest.importorskip("wandb")
    where = tmp_path / "tiny"
    elsewhere("wandb", where, 0, 3, "kill", WANDB_MODE="offline")
    elsewhere("wandb", where, 2, 5, WANDB_MODE="offline")
    runs = wandb_runs(where)
    assert sorted(runs) == ["tiny seed=0", "tiny seed=1"]
    for seed in (0, 1):
        run, points = runs[f"tiny seed={seed}"]
        assert (run.project, run.run_group) == ("pgjax", "tiny")
        config = {x.key: json.loads(x.value_json) for x in run.config.update}
        assert (config["discount"], config["seed"]) == (0.9, seed)
        assert [(step, x["return"]) for step, x in points] == returns(seed, range(1, 6))
        assert all(np.isnan(float(x["loss"])) for _, x in points)


def test_wandb_without_a_key_stays_offline_and_says_so(tmp_path):
    pytest.importorskip("wandb")
    said = elsewhere("wandb", tmp_path / "tiny", 0, 1, WANDB_MODE="online")
    assert said.count("wandb stays offline, for `wandb sync` later on: it has no API key") == 1
    assert len(wandb_runs(tmp_path / "tiny")) == 2


# trackio.


def trackio_runs(home):
    """Name of a run -> its points, from the database."""
    (path,) = home.glob("*.db")
    runs = {}
    with sqlite3.connect(path) as database:
        for name, step, metrics in database.execute(
            "select run_name, step, metrics from metrics order by run_id, id"
        ):
            runs.setdefault(name, []).append((step, json.loads(metrics)))
    return runs


@pytest.mark.parametrize("end", ["close", "kill"])
def test_trackio_has_a_run_a_seed_and_holds_a_step_once_after_a_resume(tmp_path, end):
    pytest.importorskip("trackio")
    where = tmp_path / "tiny"
    # Someone who is logged in must not be asked who that is.
    elsewhere("trackio", where, 0, 3, end, HF_TOKEN="hf_secret")
    elsewhere("trackio", where, 2, 5, HF_TOKEN="hf_secret")
    runs = trackio_runs(where / "trackio")
    assert sorted(runs) == ["tiny seed=0", "tiny seed=1"]
    for seed in (0, 1):
        points = runs[f"tiny seed={seed}"]
        assert [(step, x["return"]) for step, x in points] == returns(seed, range(1, 6))
        assert {x["loss"] for _, x in points} == {"NaN"}


def test_trackio_keeps_runs_of_one_name_apart_in_a_shared_folder(tmp_path):
    pytest.importorskip("trackio")
    shared = tmp_path / "shared"
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        elsewhere("trackio", tmp_path / parent / "tiny", 0, 2, TRACKIO_DIR=str(shared))
    assert [step for step, _ in trackio_runs(shared)["tiny seed=0"]] == [1, 2, 1, 2]
