"""The compiled program of a group of runs, as wide as memory allows."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax

from pgjax.lab import experiment, machine, parallel
from pgjax.lab.config import ENV_PARAMS, Config
from pgjax.lab.parallel import Placed


class Program(NamedTuple):
    """Runs side by side: `width` of them, shared out over devices that all have one program."""

    placed: Placed
    width: int
    memory: int  # bytes, over all devices, while it runs


def key(config: Config) -> Hashable:
    """Equal for runs that share a program, which differ in seeds and numbers only."""
    numbers = experiment.numbers(config)
    content: dict[str, Any] = asdict(config) | {"seed": 0, "seeds": 1}
    for name in numbers:
        if name.startswith(ENV_PARAMS):
            content["env_params"][name.removeprefix(ENV_PARAMS)] = "a number"
        else:
            content[name] = "a number"
    return json.dumps(content, sort_keys=True)


def fit(
    config: Config,
    *,
    num_runs: int,
    devices: Sequence[Any],
    memory_limit: int,
    at_once: int | None = None,
) -> Program:
    """Compiles the program of a config, narrow enough for memory.

    What it takes is what XLA says that the compiled training and evaluation take.

    Args:
      config: of any of the runs.
      num_runs: how many there are.
      devices: what they are shared out over.
      memory_limit: bytes over all devices.
      at_once: runs side by side at most; None leaves it to memory.

    Raises:
      ValueError: not even one run a device fits.
    """
    devices = tuple(devices[: min(num_runs, at_once or num_runs)])
    over = parallel.over_runs(experiment.build(config), parallel.block(config))
    placed = Placed(over, devices)
    # Unless fewer are asked for, there may be more places than runs, as many on every device.
    most = at_once if at_once and at_once < num_runs else _rounded_up(num_runs, len(devices))
    width = _even(num_runs, most, len(devices))
    one = experiment.inputs([config])
    while True:
        blank = jax.tree.map(partial(_like, width), one)
        memory = parallel.memory(placed, blank, config)
        if memory <= memory_limit:
            return Program(placed, width, memory)
        if width == len(devices):
            raise ValueError(
                f"memory_limit={machine.format_bytes(memory_limit)} is too little: {width} "
                f"run{'s' if width > 1 else ''} at once of {config.num_episodes} episodes "
                f"take{'s' if width == 1 else ''} {machine.format_bytes(memory)}"
            )
        narrower = min(width - 1, int(width * memory_limit / memory))
        width = _even(num_runs, max(narrower, len(devices)), len(devices))


def _even(num_runs: int, at_most: int, num_devices: int) -> int:
    """The width, from one run per device up to `at_most`, that leaves the chunks alike."""
    at_most = max(at_most // num_devices, 1) * num_devices
    num_chunks = -(-num_runs // at_most)
    width = -(-num_runs // num_chunks)
    return _rounded_up(width, num_devices)


def _rounded_up(num: int, num_devices: int) -> int:
    return -(-num // num_devices) * num_devices


def _like(width: int, x: Any) -> jax.ShapeDtypeStruct:
    """The shape of what one run is given, for many."""
    return jax.ShapeDtypeStruct((width, *x.shape[1:]), x.dtype)
