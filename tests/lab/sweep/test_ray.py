"""Sweeps on Ray: the same results whatever happens to workers and nodes, and nothing done twice."""

import collections
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
import types

import jax
import pytest
import xarray as xr

from pgjax.lab.config import Config
from pgjax.lab.refusals import RefusalError
from pgjax.lab.sweep import dataset, plan, ray_cluster, ray_launcher, ray_worker, run
from pgjax.lab.sweep.design import Sweep

ray = pytest.importorskip("ray")

SWEEP = Sweep(
    Config(
        env="ShortCorridor",
        policy="tabular",
        horizon=12,
        num_episodes=4,
        num_updates=4,
        updates_per_call=2,
        evaluation_episodes=3,
        seeds=3,
    ),
    {"learning_rate": (0.03, 0.1, 0.3)},
)
NUM_CHUNKS = 3  # of three runs


@pytest.fixture(scope="module", autouse=True)
def careful():
    """Has Ray kill no worker and give none a lower priority, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def local():
    """A cluster of this machine, with one CPU for each task."""
    with ray_cluster.opened(cpus=1, gpus=0) as cluster:
        yield cluster
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the sweep gives in this process."""
    started = start(tmp_path_factory.mktemp("here"))
    assert run.follow(started) is None
    return dataset.load(started.store.path)


@contextlib.contextmanager
def marked(folder, act=lambda indices: None):
    """Has tasks note where they begin and that they end, and do something in between."""
    original = ray_worker.carry_out

    def carry_out(runs, indices, width, told):
        mark = f"{indices[0][0]}-{indices[0][1]}"
        at = f"{os.getpid()}.{ray.get_runtime_context().get_node_id()}.{time.time_ns()}"
        (folder / f"begun.{mark}.{at}").touch()
        act(indices)
        result = original(runs, indices, width, told)
        (folder / f"done.{mark}.{at}").touch()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_worker, "carry_out", carry_out)
        yield


def waiting_on(hold):
    """An act that keeps all chunks but the first waiting as long as a file exists."""

    def act(indices):
        while hold.exists() and indices[0] != (0, 0):
            time.sleep(0.02)

    return act


def marks(folder, kind):
    """(chunk, process, node) of each mark of a kind."""
    return [tuple(path.name.split(".")[1:4]) for path in folder.glob(f"{kind}.*")]


def held(folder, node=""):
    """Marks of chunks that wait, all or those on a node."""
    return [x for x in marks(folder, "begun") if x[0] != "0-0" and x[2].startswith(node)]


def start(folder, **limits):
    base = dataclasses.replace(SWEEP.base, name="sweep", directory=str(folder))
    sweep = dataclasses.replace(SWEEP, base=base)
    limits = {"devices": jax.local_devices()[:1]} | limits
    return run.start(plan.make(sweep, **limits))


def count_finished(launcher, then=lambda results: None):
    """A launcher that calls `then` as results count, and the list it puts them in."""
    results = []

    def counting(job):
        def finish(result):
            # A result is on disk before it counts.
            (chunk,) = (chunk for chunk in job.todo if chunk.runs == result.runs)
            assert (job.where(chunk) / "result.json").is_file()
            job.finish(result)
            results.append(result)
            then(results)

        return launcher(job._replace(finish=finish))

    return counting, results


def wait_for(found):
    """What a function finds, once it finds anything."""
    until = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def assert_same(started, expected):
    """Results are equal to the last bit, whatever time they took."""
    found = dataset.load(started.store.path)
    assert found["finished"].all()
    xr.testing.assert_equal(found.drop_vars("seconds"), expected.drop_vars("seconds"))


# Comes first: a process is in one cluster at a time, and `local` stays open.
@pytest.mark.slow
def test_a_lost_node_loses_nothing_and_repeats_nothing(undisturbed, tmp_path):
    from ray.cluster_utils import Cluster

    hold = tmp_path / "hold"
    hold.touch()
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        second = nodes.add_node(num_cpus=2)
        lost = []

        def remove(results):
            if len(results) == 1:
                lost.append(wait_for(lambda: held(tmp_path, second.node_id))[0][0])
                nodes.remove_node(second, allow_graceful=False)
                hold.unlink()

        handler = signal.getsignal(signal.SIGTERM)
        with ray_cluster.opened(nodes.address) as cluster:
            assert cluster.need == (2, 0) and cluster.slots == 2
            started = start(tmp_path, at_once=3)
            with marked(tmp_path, waiting_on(hold)):
                launcher, results = count_finished(ray_launcher.launcher(cluster), then=remove)
                assert run.follow(started, launcher) is None
        with ray_cluster.opened(nodes.address) as left:  # it was not shut down
            assert left.need == (2, 0)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        nodes.shutdown()
    assert_same(started, undisturbed)
    begun = collections.Counter(chunk for chunk, _, _ in marks(tmp_path, "begun"))
    assert [chunk for chunk, times in begun.items() if times > 1] == lost
    assert len(marks(tmp_path, "done")) == len(results) == NUM_CHUNKS
    assert {result.device for result in results} == {"2 x cpu (cpu)"}


def test_a_killed_worker_loses_nothing_and_repeats_nothing(local, undisturbed, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    killed = []

    def kill(results):
        if len(results) == 1:
            chunk, process, _ = wait_for(lambda: held(tmp_path))[0]
            killed.append(chunk)
            os.kill(int(process), signal.SIGKILL)
            hold.unlink()

    started = start(tmp_path, at_once=3)
    with marked(tmp_path, waiting_on(hold)):
        launcher, results = count_finished(ray_launcher.launcher(local), then=kill)
        assert run.follow(started, launcher) is None
    assert_same(started, undisturbed)
    begun = collections.Counter(chunk for chunk, _, _ in marks(tmp_path, "begun"))
    assert len(begun) == NUM_CHUNKS
    assert [chunk for chunk, times in begun.items() if times > 1] == killed
    assert len(marks(tmp_path, "done")) == len(results) == NUM_CHUNKS
    assert {result.device for result in results} == {"1 x cpu (cpu)"}


def test_a_stopped_sweep_keeps_what_is_finished_and_goes_on(local, undisturbed, tmp_path, capsys):
    hold = tmp_path / "hold"
    hold.touch()
    started = start(tmp_path, at_once=3)
    with marked(tmp_path, waiting_on(hold)):
        launcher, first = count_finished(
            ray_launcher.launcher(local), then=lambda _: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert run.follow(started, launcher) == signal.SIGTERM
    assert len(first) == 1 and "3 of 9 runs finished" in capsys.readouterr().out
    again = run.Started(started.store, started.plan)
    launcher, then = count_finished(ray_launcher.launcher(local))
    assert run.follow(again, launcher) is None
    assert len(then) == NUM_CHUNKS - 1
    assert_same(started, undisturbed)


def test_a_mistake_in_a_task_is_told_and_not_repeated(local, tmp_path):
    def fail(indices):
        if indices[0] == (1, 0):
            raise ValueError("the corridor is closed")

    with marked(tmp_path, fail):
        launcher, _ = count_finished(ray_launcher.launcher(local))
        with pytest.raises(RuntimeError, match="failed with ValueError: the corridor is closed"):
            run.follow(start(tmp_path, at_once=3), launcher)
    assert [chunk for chunk, _, _ in marks(tmp_path, "begun")].count("1-0") == 1


def test_what_a_worker_refuses_is_refused(local, tmp_path):
    def refuse(indices):
        raise RefusalError("no GPU is seen here")

    with marked(tmp_path, refuse):
        with pytest.raises(RefusalError, match="^no GPU is seen here$"):
            run.follow(start(tmp_path, at_once=3), ray_launcher.launcher(local))


def test_a_worker_that_does_not_see_its_gpu_refuses(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(platform="cpu")])
    with pytest.raises(RefusalError, match=r"install pgjax\[cuda\] there"):
        ray_worker._devices(ray_worker.Given(ray_worker.Need(1, 1), ()))


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


def test_tasks_take_what_the_smallest_node_has():
    nodes = [node(CPU=4.0, memory=8e9), node(CPU=17.0, memory=16e9), node(memory=1e9), node(False)]
    found = ray_cluster.measure(nodes)
    assert found == ((4, 0), 1 + 4, 4 * 10**9)
    assert ray_cluster.measure(nodes, cpus=8) == ((8, 0), 2, 8 * 10**9)


def test_tasks_take_a_gpu_where_there_are_some(monkeypatch):
    nodes = [node(CPU=2.0, GPU=4.0, memory=8e9), node(CPU=64.0, memory=8e9)]
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cuda,cpu")
        assert ray_cluster.measure(nodes)[:2] == ((1, 1), 2)
        assert ray_cluster.measure(nodes, gpus=0)[:2] == ((2, 0), 33)
        jax.config.update("jax_platforms", "cpu")
        assert ray_cluster.measure(nodes)[:2] == ((2, 0), 33)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(("cpus", "gpus"), [(8, None), (1, 1)])
def test_a_task_without_room_is_refused(cpus, gpus):
    with pytest.raises(ValueError, match="no node has room for such a task; there are 4 CPUs"):
        ray_cluster.measure([node(CPU=4.0, memory=1e9)], cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(("slots", "chunks"), [(2, 2), (4, 3), (10, 9)])
def test_every_slot_has_something_to_do(tmp_path, slots, chunks):
    cluster = ray_cluster.Cluster(ray_worker.Need(1, 0), slots, 10**9)
    limits = ray_cluster.limits(cluster, 9)
    laid_out = start(tmp_path, **limits).plan
    assert laid_out.memory_limit == 10**9
    assert len(laid_out.chunks()) == chunks
    # As soon as with narrower chunks.
    assert max(len(chunk.runs) for chunk in laid_out.chunks()) == -(-9 // slots)


def test_what_the_user_limits_stays_limited():
    cluster = ray_cluster.Cluster(ray_worker.Need(1, 0), 2, None)
    limits = ray_cluster.limits(cluster, 100, memory_limit=5, at_once=3)
    assert (limits["memory_limit"], limits["at_once"]) == (5, 3)
    assert ray_cluster.limits(cluster, 100, at_once=80)["at_once"] == 50


@pytest.mark.parametrize(
    "address", ["somewhere", "local", "host:", ":6379", "host:70000", "ray://"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="must be auto, host:port or ray://host:port"):
        ray_cluster.check(address)


@pytest.mark.parametrize("named", ["in full", "by the environment"])
def test_nothing_at_an_address(named, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    if named == "by the environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"ray_address='{address}' cannot be reached"):
        ray_cluster.check(address if named == "in full" else "auto")


def test_something_else_at_an_address(monkeypatch):
    monkeypatch.setattr(ray_cluster, "JOINED", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ValueError, match="answers, but let nobody in within 2 s"):
            ray_cluster.check(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("package", "address", "extra"), [("ray", None, "pgjax"), ("grpc", "ray://host:1", "ray")]
)
def test_missing_packages_are_named(monkeypatch, package, address, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'the package {package}, .*: pip install "{extra}\['):
        with ray_cluster.opened(address):
            pass


@pytest.mark.parametrize(
    "needs", [{"cpus": 0}, {"gpus": -1}], ids=lambda needs: f"ray_{next(iter(needs))}"
)
def test_numbers_of_a_task_are_checked(needs):
    (name,) = needs
    with pytest.raises(ValueError, match=f"ray_{name}="):
        with ray_cluster.opened(**needs):
            pass
