"""A process of a job that `benchmarks.scaling` starts; its settings are its argument."""

import contextlib
import time

from benchmarks import rounds
from pgjax.lab import distributed, machine

SETTINGS = rounds.read_settings()


def main() -> None:
    """Compiles the programs, and runs whichever is asked for, together with the other processes."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from benchmarks import training
    from pgjax import sharding
    from pgjax.lab import parallel

    mesh = sharding.mesh(machine.take(SETTINGS["num_devices"]))
    runs, compile_seconds = {}, {}
    for name, num_rows in SETTINGS["num_rows"].items():
        setting = training.Setting(num_rows=num_rows, horizon=SETTINGS["horizon"])
        step = training.step(setting, mesh)
        args = parallel.put((step.key, step.state), NamedSharding(mesh, PartitionSpec()))
        begun = time.perf_counter()
        program = training.Program(training.compile(step.function, *args), args)
        compile_seconds[name] = time.perf_counter() - begun
        runs[name] = lambda program=program: jax.block_until_ready(program())
    distributed.wait_for_all()
    rounds.answer(runs, compile_seconds, lambda _: {}, ["jax"])


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if SETTINGS["job"] is not None:
            stack.enter_context(distributed.joined(distributed.Job(*SETTINGS["job"])))
        main()
