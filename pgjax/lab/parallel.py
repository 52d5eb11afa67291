"""Many runs at once: vmapped in one compiled program, and shared out over devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax import batching
from pgjax.lab.config import Config
from pgjax.lab.experiment import Experiment, Inputs
from pgjax.train import TrainState

ROWS = 512
"""Rows of a block of runs on a CPU."""


def over_runs(experiment: Experiment, block: int | None = None) -> Experiment:
    """The same for many runs in one compiled program; every array leads with an axis of runs.

    The state given to `train` is donated. Each function compiles once a shape and device.

    Args:
      experiment: of one run.
      block: runs that are trained at a time, one block after the other; None takes all at once.
    """

    def train(inputs: Inputs, state: TrainState, *, num_steps: int):
        one = partial(experiment.train, num_steps=num_steps)
        return batching.vmap_in_blocks(one, block)(inputs, state)

    def evaluate(
        inputs: Inputs, params: Any, *, num_episodes: int, draw: int = 0, greedy: bool = False
    ):
        one = partial(experiment.evaluate, num_episodes=num_episodes, draw=draw, greedy=greedy)
        return jax.vmap(one)(inputs, params)

    return Experiment(
        init=_compiled(jax.vmap(experiment.init), effort=0),
        train=_compiled(train, effort=1, static_argnames="num_steps", donate_argnums=1),
        evaluate=_compiled(evaluate, effort=0, static_argnames=("num_episodes", "greedy")),
    )


def block(config: Config) -> int | None:
    """Runs that are best trained at a time: on a CPU so many that their rows stay in its cache.

    A block of runs steps its environments until the last episode of the block has ended: runs that
    learn do not keep waiting those that do not.
    """
    return max(1, ROWS // config.num_episodes) if jax.default_backend() == "cpu" else None


def over_devices(experiment: Experiment, devices: Sequence[Any]) -> Experiment:
    """Many runs, shared out evenly over devices, which carry them out side by side.

    Every device has a program of its own and waits for no other. One program partitioned over all
    of them would be compiled to other machine code than the program of one, and round otherwise:
    this way results are the same bits on any number of devices.

    Args:
      experiment: over runs.
      devices: at least one; arrays lie on them as `sharding(devices)` says.
    """
    whole = sharding(devices)

    def spread(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            shards = zip(*(_shards(leaf, devices) for leaf in leaves), strict=True)
            parts = [function(*jax.tree.unflatten(structure, own), **kwargs) for own in shards]
            return jax.tree.map(lambda *own: _joined(own, whole), *parts)

        return call

    return Experiment(*map(spread, experiment))


def _shards(array: jax.Array, devices: Sequence[Any]) -> list[jax.Array]:
    """What an array has on each device."""
    # On one device a shard is sharded like the whole, which would be compiled for once more.
    on = {x.device: jax.device_put(x.data, x.device) for x in array.addressable_shards}
    return [on[device] for device in devices]


def _joined(shards: Sequence[jax.Array], whole: NamedSharding) -> jax.Array:
    """One array of what is on each device, without moving any of it."""
    num, *rest = shards[0].shape
    shape = (num * len(shards), *rest)
    return jax.make_array_from_single_device_arrays(shape, whole, list(shards))


def sharding(devices: Sequence[Any]) -> NamedSharding:
    """How arrays with a leading axis of runs lie on devices."""
    return NamedSharding(Mesh(np.array(devices), ("runs",)), PartitionSpec("runs"))


def _compiled(function: Callable[..., Any], *, effort: int, **kwargs: Any) -> Callable[..., Any]:
    """`function`, jitted with as much effort on machine code as pays.

    On CPU a level of one runs as fast as XLA's own three and compiles a quarter faster; zero is
    for what runs once. Elsewhere XLA knows better.
    """
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": effort} if cpu else None
    # What depends on none of its arguments must yet lie on their device.
    return jax.jit(function, compiler_options=options, keep_unused=True, **kwargs)
