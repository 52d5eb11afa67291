"""Environment steps per second of a sweep, beside one run of as many environments, CartPole.

64 configurations (2048 on an accelerator) of 64 environments each are trained as `pgjax sweep`
trains them, but for records and evaluation: vmapped, and shared out over the devices. They are
compared with one run that has all of their environments, trained as by `pgjax train`, which shares
the environments out over all devices; and with the same run on one device. Configurations come in
three kinds: seeds of one configuration; different numbers with which runs learn alike; and learning
rates over four decades, with most of which runs hardly learn, so that short episodes and long ones
are stepped side by side.

Each program trains from the start, in turn with the others; a round is a whole training, and its
throughput is all live steps over all seconds. A call makes one update, as is the default, or
several (`updates_per_call`). Devices that share out runs may drift a call apart; those that share
out environments wait for each other at each update. Memory is by XLA's analysis.

    python -m benchmarks.sweep             # all of it
    python -m benchmarks.sweep --smoke     # tiny, to see that it runs; writes nothing
"""

import dataclasses
import sys
import time
from typing import Any, NamedTuple

import jax

from benchmarks import kept
from benchmarks.devices import ACCELERATED, DEVICES
from pgjax.lab import advance, experiment, machine, parallel
from pgjax.lab.config import Config
from pgjax.lab.sweep import plan
from pgjax.lab.sweep import program as of_sweep

KINDS = (
    "one run",
    "one run on one device",
    "sweep of seeds",
    "sweep, alike",
    "sweep, four decades",
)
SETTINGS = {
    "runs": 2048 if ACCELERATED else 64,
    "environments_a_run": 64,
    "updates": 12,
    "updates_a_call": [1, 4],
}
SMOKE = {"runs": 4, "environments_a_run": 2, "updates": 2, "updates_a_call": [1]}


class Program(NamedTuple):
    """What is trained."""

    experiment: Any
    inputs: Any
    memory: int  # bytes


def configurations(kind: str, num: int, num_episodes: int, num_updates: int) -> list[Any]:
    """The configs of `num` runs, or of one that has all of their environments."""
    base = Config(discount=0.99, num_episodes=num_episodes, num_updates=num_updates)
    if kind.startswith("one run"):
        return [dataclasses.replace(base, num_episodes=num * num_episodes)]
    if kind == "sweep of seeds":
        return [dataclasses.replace(base, seed=seed) for seed in range(num)]
    low, high = (8e-3, 2e-2) if kind == "sweep, alike" else (1e-5, 1e-1)
    rates = [low * (high / low) ** (index / (num - 1)) for index in range(num)]
    return [
        dataclasses.replace(base, learning_rate=rate, discount=0.98 + 0.02 * index / num)
        for index, rate in enumerate(rates)
    ]


def one_run(config: Any, devices: Any) -> Program:
    """A run as `pgjax train` trains it."""
    placed = parallel.fit(config, devices, None)
    inputs = parallel.put(experiment.inputs([config]), placed.sharding)
    return Program(placed.experiment, inputs, parallel.memory(placed, inputs, config))


def sweeps(kinds: dict[str, list[Any]], devices: Any) -> dict[str, Program]:
    """Sweeps of configs that share a program, as `pgjax sweep` trains them."""
    config, *others = next(iter(kinds.values()))
    fitted = of_sweep.fit(
        config, num_runs=1 + len(others), devices=devices, memory_limit=machine.memory()
    )
    block = parallel.block(config) or 1

    def of(configs):
        dealt = plan.dealt(configs, block, len(fitted.placed.devices))
        inputs = jax.device_put(experiment.inputs(dealt), fitted.placed.sharding)
        return Program(fitted.placed.experiment, inputs, fitted.memory)

    return {kind: of(configs) for kind, configs in kinds.items()}


def round_of(programs: dict[str, Program], num_updates: int, at_once: int = 1) -> dict[str, float]:
    """Live steps per second of each program, over a training of `at_once` updates a call."""
    speeds = {}
    for kind, (trainer, inputs, _) in programs.items():
        waits = kind.startswith("one run")  # as `pgjax train` does for the end of each call
        start = jax.block_until_ready(advance.begin(trainer, inputs))
        sizes = [at_once] * (num_updates // at_once)
        begun = time.perf_counter()
        *_, (end, _) = advance.calls(trainer, inputs, start, sizes, hold=lambda waits=waits: waits)
        speeds[kind] = int(end.env_steps.sum()) / (time.perf_counter() - begun)
    return speeds


def measure(smoke: bool) -> list[kept.Row]:
    """Throughput of all kinds, and its ratio to that of one run."""
    num, num_episodes, num_updates, sizes = (SMOKE if smoke else SETTINGS).values()
    configs = {kind: configurations(kind, num, num_episodes, num_updates) for kind in KINDS}
    (config,), (same,) = configs.pop(KINDS[0]), configs.pop(KINDS[1])
    programs = {
        KINDS[0]: one_run(config, DEVICES),
        KINDS[1]: one_run(same, DEVICES[:1]),
        **sweeps(configs, DEVICES),
    }
    rows = []
    for at_once in sizes:
        round_of(programs, at_once, at_once)
        found = [round_of(programs, num_updates, at_once) for _ in range(1 if smoke else 5)]
        rows += [
            kept.row(
                {"program": kind, "updates_a_call": at_once},
                {
                    "steps_per_second": [each[kind] for each in found],
                    "ratio": [each[kind] / each[KINDS[0]] for each in found],
                    "bytes": [programs[kind].memory],
                },
            )
            for kind in KINDS
        ]
    return rows


if __name__ == "__main__":
    kept.run("sweep", measure, sys.argv[1:], settings=SETTINGS)
