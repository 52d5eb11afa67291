"""Seconds until the training program of the default run is ready, each time in a fresh process.

Tracing is what Python does; compiling is lowering and XLA. A cold start has no cache; at a warm one
JAX's persistent compilation cache holds the program. Cold and warm starts take turns.

    python -m benchmarks.compile_time               # all of it
    python -m benchmarks.compile_time --smoke       # once, of a tiny run; writes nothing
"""

import sys
import tempfile
import time

from benchmarks import kept, processes

ROUNDS = 7
TOY = {"hidden": [4], "num_episodes": 4, "horizon": 8}


def measure(smoke: bool) -> list[kept.Row]:
    """Seconds of cold and of warm starts."""
    config = TOY if smoke else {}
    with tempfile.TemporaryDirectory() as directory:
        caches = {"cold": None, "warm": directory}
        processes.call(prepare, config, directory)  # fills the cache
        found = {name: [] for name in caches}
        for _ in range(1 if smoke else ROUNDS):
            for name, cache in caches.items():
                found[name].append(processes.call(prepare, config, cache))
    return [
        kept.row(
            {"cache": name}, {figure: [each[figure] for each in rounds] for figure in rounds[0]}
        )
        for name, rounds in found.items()
    ]


def prepare(config: dict, cache: str | None) -> dict[str, float]:
    """Seconds of every part, from the import on; the process must be fresh.

    Args:
      config: what differs from the default run.
      cache: directory of the persistent compilation cache, or None for none.
    """
    begun = time.perf_counter()
    import jax

    from pgjax.lab import machine

    devices = machine.devices()  # before anything uses JAX
    from pgjax.lab import config as configs
    from pgjax.lab import experiment, parallel

    imported = time.perf_counter()
    jax.config.update("jax_enable_compilation_cache", cache is not None)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Put together as `pgjax train` does.
    parsed = configs.parse(config)
    placed = parallel.fit(parsed, devices, None)
    inputs = jax.device_put(experiment.inputs(experiment.each_seed(parsed)), placed.sharding)
    started = time.perf_counter()
    own, state = placed.arguments(inputs)[0]
    traced = placed.over_runs.train.trace(own, state, num_steps=parsed.updates_per_call)
    compiling = time.perf_counter()
    traced.lower().compile()
    ended = time.perf_counter()
    return {
        "import_seconds": imported - begun,
        "tracing_seconds": compiling - started,
        "compiling_seconds": ended - compiling,
        "tracing_and_compiling_seconds": ended - started,
    }


if __name__ == "__main__":
    kept.run("compile_time", measure, sys.argv[1:])
