"""A Ray cluster for the chunks of a sweep: joined or started, and measured."""

import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pgjax.lab import config as configs
from pgjax.lab import machine
from pgjax.lab.sweep.ray_worker import Need

REACHED = 3.0
"""Seconds within which an address must answer."""

JOINED = 20.0
"""Seconds within which a cluster that answers must let a process in."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers have the interpreter and the packages; nothing is to be installed for them.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables that keep Ray to what it is asked for, where they are not set."""


class Cluster(NamedTuple):
    """What a cluster has for tasks."""

    need: Need
    slots: int  # tasks at once
    memory: int | None  # bytes of a node that each of its tasks may take, where they are known


@contextlib.contextmanager
def opened(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None
) -> Iterator[Cluster]:
    """Joins a cluster, or starts one on this machine and shuts it down at the end.

    Args:
      address: auto, host:port or ray://host:port of a cluster; None starts one.
      cpus: of a task. None takes 1 beside GPUs, else all that the smallest node has: one program
        shares a chunk out over them, and is compiled once.
      gpus: of a task. None takes 1 where the cluster has GPUs.

    Yields:
      What `limits` and `ray_launcher.launcher` go by.

    Raises:
      ValueError: Ray is missing, the cluster cannot be joined, or no node has room for a task.
    """
    if cpus is not None:
        configs.count("ray_cpus", cpus)
    if gpus is not None:
        configs.count("ray_gpus", gpus, least=0)
    check(address)
    with _connected(address) as ray:
        cluster = measure(ray.nodes(), cpus=cpus, gpus=gpus)
        if cluster.need.gpus:
            # GPUs are the workers': a process that only plans must not take their memory.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        yield cluster


def check(address: str | None) -> None:
    """Refuses a cluster that cannot be joined, within seconds.

    Raises:
      ValueError: Ray is missing, or the address is wrong; with the reason.
    """
    _require("ray", "pgjax[ray]")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address is None:
        return
    if address != "auto":
        _reach(address)
    try:
        # Ray waits for minutes, then ends the process it is in: so another one tries it first.
        tried = subprocess.run(
            [sys.executable, "-c", _TRIAL, address],
            env=QUIET | os.environ,
            capture_output=True,
            text=True,
            timeout=JOINED,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"ray_address={address!r} answers, but let nobody in within {JOINED:g} s; {_HINT}"
        ) from error
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise ValueError(f"ray_address={address!r} cannot be joined: {reason}; {_HINT}")


def measure(
    nodes: Sequence[Mapping[str, Any]], *, cpus: int | None = None, gpus: int | None = None
) -> Cluster:
    """What tasks need, and how many of them the nodes have room for.

    Args:
      nodes: as `ray.nodes()` has them.
      cpus: of a task; None as for `opened`.
      gpus: of a task; None as for `opened`.

    Raises:
      ValueError: no node has room for a task.
    """
    found = [node["Resources"] for node in nodes if node["Alive"]]
    if gpus is None:
        kept_off = jax.config.jax_platforms == "cpu"  # pyright: ignore[reportAttributeAccessIssue]
        gpus = int(not kept_off and any(each.get("GPU", 0) >= 1 for each in found))
    if cpus is None:
        cores = [int(each.get("CPU", 0)) for each in found]
        cpus = 1 if gpus else min(filter(None, cores), default=1)
    need = Need(cpus, gpus)
    slots = [_slots(each, need) for each in found]
    if not any(slots):
        raise ValueError(
            f"ray_cpus={cpus} and ray_gpus={gpus}: no node has room for such a task; there are "
            + ", ".join(f"{int(x.get('CPU', 0))} CPUs, {int(x.get('GPU', 0))} GPUs" for x in found)
        )
    shares = [
        int(each["memory"] / num)
        for each, num in zip(found, slots, strict=True)
        if num and "memory" in each
    ]
    return Cluster(need, sum(slots), min(shares, default=None))


def limits(
    cluster: Cluster,
    num_runs: int,
    *,
    memory_limit: int | None = None,
    at_once: int | None = None,
) -> dict[str, Any]:
    """Arguments of `plan.make` that give every slot of a cluster something to do.

    Runs are divided among the slots and no further: narrower chunks would only be slower.

    Args:
      cluster: where the chunks go.
      num_runs: of the whole sweep.
      memory_limit: bytes that a task may take; None takes its share of a node, or its GPUs.
      at_once: runs side by side at most; None leaves it to the cluster and to memory.
    """
    everything = machine.devices()
    devices = everything[: cluster.need.gpus or cluster.need.cpus]
    if memory_limit is None and cluster.need.gpus:
        memory_limit = machine.memory() * len(devices) // len(everything)
    elif memory_limit is None:
        memory_limit = cluster.memory
    share = -(-num_runs // cluster.slots)
    share = -(-share // len(devices)) * len(devices)
    at_once = share if at_once is None else min(share, at_once)
    return {"devices": devices, "memory_limit": memory_limit, "at_once": at_once}


def _reach(address: str) -> None:
    """Refuses an address that is none, or that nothing answers at."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise ValueError(f"ray_address={address!r} must be auto, host:port or ray://host:port")
    if address.startswith("ray://"):
        _require("grpc", "ray[client]")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"ray_address={address!r} cannot be reached: {error}") from error


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"launcher='ray' needs the package {package}, which is not installed: "
            f'pip install "{extra}"'
        )


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": machine.cores(), "include_dashboard": False}
    with _own_signals():
        try:
            with warnings.catch_warnings():
                # JAX warns of what its threads hold when a process forks; Ray's only start others.
                warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
                ray.init(address or "local", **options)
            yield ray
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Takes SIGTERM back at the end: Ray has a handler of its own."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _slots(resources: Mapping[str, float], need: Need) -> int:
    """Tasks that a node has room for at once."""
    slots = resources.get("CPU", 0) // need.cpus
    return int(min(slots, resources.get("GPU", 0) // need.gpus) if need.gpus else slots)


_HINT = (
    "it must be a Ray cluster's (that of its client server goes with ray://); where the cluster "
    "asks for a token, set RAY_AUTH_MODE=token"
)

_TRIAL = """
import sys
import ray
try:
    ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
"""A program that joins a cluster, or says in one line why it could not."""
