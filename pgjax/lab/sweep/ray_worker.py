"""What a worker of a Ray cluster does: a chunk of a sweep, on the devices it was given.

Nothing imported here uses JAX, which takes settings only before its first use.
"""

import functools
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from pgjax.lab import machine
from pgjax.lab.config import Config
from pgjax.lab.refusals import RefusalError

if TYPE_CHECKING:
    from pgjax.lab.sweep.chunk import Index, Result
    from pgjax.lab.sweep.program import Program

SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
)
"""Settings of JAX that programs depend on."""


class Need(NamedTuple):
    """What a task takes of a node."""

    cpus: int
    gpus: int


class Given(NamedTuple):
    """What a task is told besides its chunk."""

    need: Need
    settings: tuple[tuple[str, Any], ...]  # JAX's, of the process that planned


def given(need: Need) -> Given:
    """What tasks are told by this process."""
    return Given(need, tuple((name, getattr(jax.config, name)) for name in SETTINGS))


def carry_out(
    runs: Sequence[Config], indices: Sequence["Index"], width: int, told: Given
) -> "Result":
    """The task: trains and evaluates the runs of a chunk from start to finish.

    Args:
      runs: configs of one seed each.
      indices: which runs of the sweep they are.
      width: of the program, as planned.
      told: what every task is.

    Raises:
      RefusalError: this worker's JAX does not see the GPU that it was given.
    """
    devices = _devices(told)
    from pgjax.lab.sweep import chunk

    program = _program(runs[0], width, devices)
    with tempfile.TemporaryDirectory(prefix="pgjax-") as folder:
        where = Path(folder) / "chunk"
        result = chunk.carry_out(program, runs, where, indices=indices, save_every=math.inf)
    assert result is not None, "nothing stops a task"
    return result


@functools.cache
def _devices(told: Given) -> tuple[Any, ...]:
    """The devices of this worker, as many as it was given."""
    cpus, gpus = told.need
    for name, value in told.settings:
        jax.config.update(name, value)
    if not gpus:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpus)
        os.environ["PJRT_NPROC"] = str(cpus)  # XLA's threads: Ray pins workers to no CPUs.
        machine.prepare()
    found = jax.local_devices()
    if gpus and found[0].platform == "cpu":
        raise RefusalError(
            "Ray gave a GPU to a worker whose JAX does not see it: install pgjax[cuda] there, or "
            "take ray_gpus=0"
        )
    return tuple(found[: gpus or cpus])


_programs: dict[Any, "Program"] = {}
"""What this worker has made, which the next chunk of the same group finds compiled."""


def _program(config: Config, width: int, devices: tuple[Any, ...]) -> "Program":
    """The program of a group, as wide as planned, rounded up to as many runs on every device."""
    from pgjax.lab.sweep import program

    key = (program.key(config), width)
    if key not in _programs:
        devices = devices[:width]
        whole = -(-width // len(devices)) * len(devices)
        # The plan has seen to the memory that it takes.
        _programs[key] = program.fit(
            config, num_runs=whole, devices=devices, memory_limit=sys.maxsize
        )
    return _programs[key]
