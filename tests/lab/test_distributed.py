"""One training by several processes: the same as by one, ended together whatever happens."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pgjax.lab import checkpoints, config, directory, distributed, records, run

LOST = "pgjax: error: another process of the job was lost; continue with --resume in all of them"
TIMEOUT = 120


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def by_flags(num):
    """How processes of a job are told of each other: the flags and environment of each."""
    address = f"127.0.0.1:{free_port()}"
    for index in range(num):
        flags = ["--coordinator", address, "--num-processes", str(num), "--process-id", str(index)]
        yield flags, {}


def by_slurm(num):
    """What srun tells its tasks, from which JAX makes the rest; its port follows from the job."""
    for index in range(num):
        yield (
            [],
            {
                "SLURM_JOB_ID": str(os.getpid()),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_STEP_NUM_NODES": "1",
                "SLURM_NTASKS": str(num),
                "SLURM_PROCID": str(index),
                "SLURM_LOCALID": str(index),
            },
        )


def by_open_mpi(num):
    """What mpirun tells its processes."""
    for index in range(num):
        yield (
            [],
            {
                "OMPI_MCA_orte_hnp_uri": f"{os.getpid() * 2**12}.0;tcp://127.0.0.1:34911",
                "OMPI_COMM_WORLD_SIZE": str(num),
                "OMPI_COMM_WORLD_RANK": str(index),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
            },
        )


@contextlib.contextmanager
def started(*arguments_of_each, timeout=30, told=by_flags):
    """Processes of one job, one device each, that are gone when this is left."""
    # Compiled as users compile, not as tests do.
    settings = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment = os.environ | settings
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pgjax", "train", "--distributed", *flags]
            + ["--timeout", str(timeout), *map(str, arguments)],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, (flags, variables) in zip(
            arguments_of_each, told(len(arguments_of_each)), strict=True
        )
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(processes):
    """Exit status, output and errors of each process."""
    said = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(process.returncode, *x) for process, x in zip(processes, said, strict=True)]


def train(num, *arguments, told=by_flags):
    """A training by so many processes, from start to finish."""
    with started(*[arguments] * num, told=told) as processes:
        return ended(processes)


def params(where):
    _, progress = run.load(where)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(progress.state.params)]


@pytest.fixture
def file(tiny, tmp_path):
    """The file of a config whose episodes four processes can share, and that config."""
    settings = dataclasses.replace(tiny, num_episodes=8, seeds=1)
    path = tmp_path / "tiny.yaml"
    path.write_text(config.dump(settings))
    return path, settings


@pytest.mark.parametrize(
    ("num", "told"),
    [
        (2, by_slurm),
        pytest.param(2, by_open_mpi, marks=pytest.mark.slow),
        pytest.param(4, by_flags, marks=pytest.mark.slow),
    ],
)
def test_many_processes_train_to_the_parameters_of_one(file, num, told):
    path, settings = file
    leader, *others = train(num, "--config", path, told=told)
    assert leader[0] == 0, leader
    assert "M steps/s" in leader[2] and "metrics.jsonl" in leader[1]
    assert others == [(0, "", "")] * (num - 1)
    alone = run.start(dataclasses.replace(settings, name="alone"), devices=1)
    run.follow(alone)
    where = Path(settings.directory) / settings.name
    names = lambda path: sorted(x.name for x in path.iterdir())
    assert names(where) == names(alone.directory.path)
    assert checkpoints.updates(where / "checkpoints") == [7, 6, 4]
    for one, many in zip(params(alone.directory.path), params(where), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    # A job of processes that is done can be picked up by one, and is left as it is.
    assert run.is_finished(run.resume(where))


LONG = ("--num-updates", 600, "--checkpoint-every", 100, "--updates-per-call", 1)


def wait_for_checkpoint(where, processes):
    while all(process.poll() is None for process in processes):
        if checkpoints.updates(where.checkpoints):
            return
        time.sleep(0.01)
    raise AssertionError(ended(processes))


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_if_one_is_killed_the_other_ends_and_both_resume(file, victim):
    path, settings = file
    undisturbed = Path(settings.directory) / "undisturbed"
    assert [x[0] for x in train(2, "--config", path, *LONG, "--name", "undisturbed")] == [0, 0]
    where = directory.Directory(Path(settings.directory) / "killed")
    arguments = ("--config", path, *LONG, "--name", "killed")
    with started(arguments, arguments) as processes:
        wait_for_checkpoint(where, processes)
        processes[victim].send_signal(signal.SIGKILL)
        found = ended(processes)
    assert found[victim][0] == -signal.SIGKILL
    status, _, errors = found[1 - victim]
    assert status == 1
    *shown, last = errors.replace("\r", "\n").splitlines()
    assert last.startswith(LOST)
    assert all("update" in line for line in shown if line.strip())
    done = checkpoints.updates(where.checkpoints)[0]
    assert 0 < done < 600
    assert [x[0] for x in train(2, "--resume", where.path)] == [0, 0]
    for one, other in zip(params(undisturbed), params(where.path), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["update"] for row in records.read(where.metrics)] == list(range(1, 601))


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_update(file):
    path, settings = file
    where = directory.Directory(Path(settings.directory) / "stopped")
    arguments = ("--config", path, *LONG, "--num-updates", 10**6, "--name", "stopped")
    with started(arguments, arguments) as processes:
        wait_for_checkpoint(where, processes)
        processes[1].send_signal(signal.SIGTERM)
        leader, other = ended(processes)
    assert (leader[0], other) == (128 + signal.SIGTERM, (128 + signal.SIGTERM, "", ""))
    assert f"pgjax train --resume {where.path} --distributed, in all processes" in leader[1]
    last = records.read(where.metrics)[-1]["update"]
    assert checkpoints.updates(where.checkpoints)[0] == last


def refused(found, message):
    for status, out, errors in found:
        assert (status, out) == (2, "")
        assert errors.startswith("pgjax: error: ") and errors.count("\n") == 1, errors
        assert message in errors


def test_episodes_that_processes_cannot_share_are_refused_by_all(file):
    path, settings = file
    refused(train(2, "--config", path, "--num-episodes", 7), "must be a multiple of the 2 devices")
    assert not Path(settings.directory).exists()


@pytest.mark.slow
def test_a_directory_that_exists_is_refused_by_all(file):
    path, settings = file
    (Path(settings.directory) / settings.name).mkdir(parents=True)
    refused(train(2, "--config", path), "tiny exists")


@pytest.mark.slow
def test_processes_with_different_settings_are_refused(file):
    path, settings = file
    first = ("--config", path)
    with started(first, (*first, "--learning-rate", 0.5)) as processes:
        refused(ended(processes), "must be started with the same settings")
    assert not Path(settings.directory).exists()


def test_a_process_that_finds_no_job_is_refused(tmp_path):
    command = [sys.executable, "-m", "pgjax", "train", "--distributed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    refused([(done.returncode, done.stdout, done.stderr)], "--coordinator HOST:PORT")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_others_do_not_come_says_so_in_time(tmp_path, index):
    command = [sys.executable, "-m", "pgjax", "train", "--distributed", "--num-processes", "2"]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--process-id", str(index)]
    command += ["--timeout", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.startswith(f"pgjax: error: distributed: process {index} of 2 could not join")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_hosts_whose_names_lead_nowhere_are_told_what_to_do():
    refused = "UNKNOWN: Gloo context initialization failed: Connection refused, remote=[{}]:3979"
    for address, hinted in (("127.0.0.1", True), ("10.0.0.2", False)):
        said = distributed._why_lost(jax.errors.JaxRuntimeError(refused.format(address)))
        assert address in said and (distributed.LOOPBACK_HINT in said) == hinted
