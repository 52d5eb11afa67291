"""Many runs at once: vmapped in one compiled program, and shared out over devices."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from pgjax import backends, batching
from pgjax import sharding as core
from pgjax.lab import experiment as experiments
from pgjax.lab import machine
from pgjax.lab.config import Config
from pgjax.lab.experiment import Experiment, Inputs
from pgjax.train import TrainState

LEAST_CHUNK = 16
"""Samples of a gradient's chunk below which no memory is worth saving."""


class Placed(NamedTuple):
    """Runs on devices, which share out either the runs or the episodes of every run."""

    over_runs: Experiment  # what each device runs; with a mesh, what all of them run together
    devices: tuple[Any, ...]
    mesh: Mesh | None = None  # of the devices, where they share out episodes

    @property
    def experiment(self) -> Experiment:
        """Of all the runs, on arrays that lie on the devices as `sharding` says."""
        alone = self.mesh is not None or len(self.devices) == 1
        return self.over_runs if alone else over_devices(self.over_runs, self.devices)

    @property
    def sharding(self) -> jax.sharding.Sharding:
        """How arrays with a leading axis of runs lie on the devices."""
        if self.mesh is not None:
            return NamedSharding(self.mesh, PartitionSpec())
        alone = len(self.devices) == 1
        return SingleDeviceSharding(self.devices[0]) if alone else sharding(self.devices)

    def arguments(self, inputs: Inputs) -> list[tuple[Inputs, TrainState]]:
        """The shapes of what each program of the training is given; one for each device or mesh."""
        places = [self.sharding] if self.mesh else map(SingleDeviceSharding, self.devices)
        num = len(inputs.init) // (1 if self.mesh else len(self.devices))
        blank = (inputs, jax.eval_shape(self.over_runs.init, inputs))

        def on(place: jax.sharding.Sharding) -> Any:
            like = lambda x: jax.ShapeDtypeStruct((num, *x.shape[1:]), x.dtype, sharding=place)
            return jax.tree.map(like, blank)

        return list(map(on, places))

    def compile_training(self, inputs: Inputs, num_steps: int) -> list[jax.stages.Compiled]:
        """The compiled training, on each device; its first call is quick then."""
        train = self.over_runs.train
        return self._compile(
            inputs, lambda own, state: train.lower(own, state, num_steps=num_steps)
        )

    def compile_evaluation(self, inputs: Inputs, num_episodes: int) -> list[jax.stages.Compiled]:
        """The compiled evaluation, likewise."""
        what = {"num_episodes": num_episodes, "draw": 0, "greedy": False}
        lower = partial(self.over_runs.evaluate.lower, **what)
        return self._compile(inputs, lambda own, state: lower(own, state.params))

    def _compile(self, inputs: Inputs, lower: Callable[..., Any]) -> list[jax.stages.Compiled]:
        # XLA compiles without holding Python up.
        with ThreadPoolExecutor(len(self.devices)) as pool:
            return list(pool.map(lambda own: lower(*own).compile(), self.arguments(inputs)))


def put(tree: Any, where: jax.sharding.Sharding) -> Any:
    """Puts arrays that this process has whole where they are to lie.

    On devices of several processes, all of which have the arrays, they lie whole on every device.
    """
    if where.is_fully_addressable:
        return jax.device_put(tree, where)
    own = sorted(where.addressable_devices, key=lambda device: device.id)

    def everywhere(x: Any) -> jax.Array:
        copies = [jax.device_put(x, device) for device in own]
        return jax.make_array_from_single_device_arrays(x.shape, where, copies)

    return jax.tree.map(everywhere, tree)


def place(config: Config, devices: Sequence[Any], block_size: int | None = None) -> Placed:
    """Where the runs of a config go: the one place that chooses between ways of sharing out.

    Runs are shared out if they occupy as many devices as their episodes would: each then gives the
    same bits as on one device. Otherwise all devices work on the episodes of every run, and the
    rounding of sums depends on the number of devices. Either way every device has as much to do as
    any other: what does not divide evenly leaves devices idle.

    Args:
      config: of the runs.
      devices: those to choose from; with several processes, those of all of them.
      block_size: most runs that are trained, and evaluated, at a time; None takes what suits the
        device, and evaluates all at once.

    Raises:
      ValueError: an impossible choice, or episodes that several processes cannot share evenly.
    """
    together = len({device.process_index for device in devices}) > 1
    by_runs = 0 if together else even(config.seeds, devices)
    by_episodes = len(devices) if together else even(config.num_episodes, devices)
    shared = by_episodes > by_runs
    devices = tuple(devices[: by_episodes if shared else by_runs])
    mesh = core.mesh(devices) if shared else None
    built = experiments.build(config, mesh)
    suits = block(config, len(devices) if shared else 1)
    size = min(filter(None, (block_size, suits)), default=None)
    return Placed(over_runs(built, size, mesh, evaluated=block_size), devices, mesh)


def fit(config: Config, devices: Sequence[Any], memory_limit: int | None) -> Placed:
    """`place`, with as few runs at a time and then as small chunks as it takes to fit memory.

    Args:
      config: of the runs.
      devices: those to choose from.
      memory_limit: bytes over all devices of this process; None asks for no more than `place`.

    Raises:
      ValueError: what `place` refuses, or nothing fits.
    """
    if memory_limit is None:
        return place(config, devices)
    candidates = list(_narrower(config))

    def takes(index: int) -> tuple[int, Placed]:
        size, chunk_size = candidates[index]
        placed = place(replace(config, chunk_size=chunk_size), devices, size)
        inputs = experiments.inputs(experiments.each_seed(config))
        return memory(placed, inputs, config), placed

    wide, narrow = 0, len(candidates) - 1
    needed, fitting = takes(wide)
    if needed <= memory_limit:
        return fitting
    needed, fitting = takes(narrow)
    if needed > memory_limit:
        raise ValueError(
            f"memory_limit={machine.format_bytes(memory_limit)} is too little: {config.seeds} "
            f"run{'s' if config.seeds > 1 else ''} of {config.num_episodes} episodes, evaluated on "
            f"{config.evaluation_episodes}, take{'s' if config.seeds == 1 else ''} "
            f"{machine.format_bytes(needed)} at least"
        )
    while narrow - wide > 1:
        middle = (wide + narrow) // 2
        needed, found = takes(middle)
        wide, narrow = (wide, middle) if needed <= memory_limit else (middle, narrow)
        fitting = found if needed <= memory_limit else fitting
    return fitting


def memory(placed: Placed, inputs: Inputs, config: Config) -> int:
    """Bytes over all devices of this process that a training or an evaluation takes, as XLA says.

    Args:
      placed: where the runs are.
      inputs: of the runs, or shapes of them.
      config: of any of the runs.
    """
    own = [x for x in placed.devices if x.process_index == jax.process_index()]
    training = placed.compile_training(inputs, min(config.updates_per_call, config.num_updates))
    evaluation = placed.compile_evaluation(inputs, config.evaluation_episodes)
    return len(own) * max(map(_bytes, (*training, *evaluation)))


def over_runs(
    experiment: Experiment,
    block: int | None = None,
    mesh: Mesh | None = None,
    *,
    evaluated: int | None = None,
) -> Experiment:
    """An experiment over many runs in one compiled program; arrays lead with an axis of runs.

    The state given to `train` is donated. Each function compiles once a shape and device.

    Args:
      experiment: of one run.
      block: runs that are trained at a time, one block after the other; None takes all at once.
      mesh: the one that the experiment was built with. Arguments and results of the functions then
        lie on all of its devices.
      evaluated: runs that are evaluated at a time; None takes all at once.
    """

    def train(inputs: Inputs, state: TrainState, *, num_steps: int):
        one = partial(experiment.train, num_steps=num_steps)
        return batching.vmap_in_blocks(one, block)(inputs, state)

    def evaluate(
        inputs: Inputs, params: Any, *, num_episodes: int, draw: int = 0, greedy: bool = False
    ):
        one = partial(experiment.evaluate, num_episodes=num_episodes, draw=draw, greedy=greedy)
        return batching.vmap_in_blocks(one, evaluated)(inputs, params)

    backend = backends.current()
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    compiled = partial(_compiled, out_shardings=everywhere)
    brief = partial(compiled, options={**backend.compiler_options, **backend.brief_options})
    return Experiment(
        init=brief(jax.vmap(experiment.init)),
        train=compiled(
            train, options=backend.compiler_options, static_argnames="num_steps", donate_argnums=1
        ),
        evaluate=brief(evaluate, static_argnames=("num_episodes", "greedy")),
    )


def block(config: Config, num_devices: int = 1) -> int | None:
    """Runs that are best trained at a time: on a CPU, as many as have the rows it steps at a time.

    A block of runs steps its environments until the last episode of the block has ended, so that
    runs with long episodes do not keep those of other blocks waiting.

    Args:
      config: of the runs.
      num_devices: devices that the episodes of each are shared out over.
    """
    rows = backends.current().live_rows
    return None if rows is None else max(1, rows // (config.num_episodes // num_devices))


def over_devices(experiment: Experiment, devices: Sequence[Any]) -> Experiment:
    """Many runs, shared out evenly over devices, which carry them out side by side.

    Every device has a program of its own and waits for no other. One program partitioned over all
    of them would be compiled to other machine code than the program of one, and round differently;
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


def even(num: int, devices: Sequence[Any]) -> int:
    """The most devices that can share out `num` things evenly."""
    return max(count for count in range(1, len(devices) + 1) if num % count == 0)


def _shards(array: jax.Array, devices: Sequence[Any]) -> list[jax.Array]:
    """What an array has on each device."""
    # A single device's shard has the sharding of the whole, for which it would compile once more.
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


def _narrower(config: Config) -> Iterator[tuple[int | None, int | None]]:
    """Runs at a time and samples of a chunk, from what suits the device downwards."""
    yield None, config.chunk_size
    size = config.seeds
    while size > 1:
        size //= 2
        yield size, config.chunk_size
    chunk_size = config.chunk_size or backends.current().chunk_size
    while chunk_size > LEAST_CHUNK:
        chunk_size = max(LEAST_CHUNK, chunk_size // 4)
        yield size, chunk_size


def _bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program takes on a device, its arguments included."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    parts = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return parts - found.alias_size_in_bytes


def _compiled(function: Callable[..., Any], *, options: Any, **kwargs: Any) -> Any:
    # Results that depend on none of the arguments must still lie on their device.
    return jax.jit(function, compiler_options=dict(options), keep_unused=True, **kwargs)
