"""Environment steps a second of a sweep, beside one run of as many environments, CartPole.

64 configurations of 64 environments are trained as `pgjax sweep` trains them, but for records and
evaluation: vmapped, and shared out over the devices. Against them stands one run of 4096
environments as `pgjax train` trains it. Configurations come in three kinds: seeds of one
configuration; numbers that differ and learn alike; and learning rates over four decades, most of
which hardly learn, so that short episodes and long ones are stepped side by side.

Each program trains from the start, update by update in turn with the others; a round is a whole
training, and its throughput is all live steps over all seconds. Memory is XLA's analysis.

    python -m benchmarks.sweep             # writes benchmarks/results/sweep.json
    python -m benchmarks.sweep --smoke     # tiny, to see that it runs; writes nothing
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pgjax.lab import machine

RESULTS = Path(__file__).parent / "results" / "sweep.json"
KINDS = ("one run", "sweep of seeds", "sweep, alike", "sweep, four decades")


def configurations(kind: str, num: int, num_episodes: int, num_updates: int) -> list[Any]:
    """The configs of `num` runs, or of one that has all of their environments."""
    import dataclasses

    from pgjax.lab.config import Config

    base = Config(discount=0.99, num_episodes=num_episodes, num_updates=num_updates)
    if kind == "one run":
        return [dataclasses.replace(base, num_episodes=num * num_episodes)]
    if kind == "sweep of seeds":
        return [dataclasses.replace(base, seed=seed) for seed in range(num)]
    low, high = (8e-3, 2e-2) if kind == "sweep, alike" else (1e-5, 1e-1)
    rates = [low * (high / low) ** (index / (num - 1)) for index in range(num)]
    return [
        dataclasses.replace(base, learning_rate=rate, discount=0.98 + 0.02 * index / num)
        for index, rate in enumerate(rates)
    ]


def program(configs: list[Any]) -> tuple[Any, Any, int]:
    """Init and train of all runs, their inputs, and the bytes that they take."""
    import jax

    from pgjax.lab import experiment, parallel
    from pgjax.lab.sweep import plan
    from pgjax.lab.sweep import program as programs

    fitted = programs.fit(
        configs[0],
        num_runs=len(configs),
        devices=machine.devices(),
        memory_limit=machine.memory(),
    )
    block = parallel.block(configs[0]) or 1
    dealt = plan.dealt(configs, block, len(fitted.devices))
    inputs = jax.device_put(experiment.inputs(dealt), fitted.sharding)
    return fitted.experiment, inputs, fitted.memory


def round_of(programs: dict[str, tuple[Any, Any, int]], num_updates: int) -> dict[str, float]:
    """Live steps a second of each program over a whole training, update by update in turn."""
    import jax
    import numpy as np

    states = {kind: trainer.init(inputs) for kind, (trainer, inputs, _) in programs.items()}
    steps, seconds = dict.fromkeys(programs, 0), dict.fromkeys(programs, 0.0)
    for _ in range(num_updates):
        for kind, (trainer, inputs, _) in programs.items():
            begun = time.perf_counter()
            states[kind], metrics = trainer.train(inputs, states[kind], num_steps=1)
            taken = np.sum(jax.device_get(metrics["env_steps"]), dtype=np.int64)
            seconds[kind] += time.perf_counter() - begun
            steps[kind] += int(taken)
    return {kind: steps[kind] / seconds[kind] for kind in programs}


def main(arguments: list[str]) -> None:
    """Measures, prints a table and keeps the numbers."""
    smoke = arguments == ["--smoke"]
    num, num_episodes, num_updates, rounds = (4, 2, 2, 1) if smoke else (64, 64, 12, 5)
    machine.devices()  # before anything uses JAX
    import jax

    programs = {
        kind: program(configurations(kind, num, num_episodes, num_updates)) for kind in KINDS
    }
    round_of(programs, 1)
    found = [round_of(programs, num_updates) for _ in range(rounds)]
    rows = []
    for kind in KINDS:
        throughput = [each[kind] for each in found]
        ratios = [each[kind] / each[KINDS[0]] for each in found]
        rows.append(
            {
                "program": kind,
                "steps_per_second": statistics.median(throughput),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "bytes": programs[kind][2],
            }
        )
    print(f"{'program':<22} M steps/s    ratio    MB")
    for row in rows:
        print(
            f"{row['program']:<22} {row['steps_per_second'] / 1e6:9.2f} {row['ratio']:8.2f} "
            f"{row['bytes'] / 1e6:5.0f}"
        )
    if not smoke:
        kept = {
            "command": "python -m benchmarks.sweep",
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}",
            "devices": machine.describe(),
            "runs": num,
            "environments_a_run": num_episodes,
            "updates": num_updates,
            "rounds": rounds,
            "rows": rows,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
