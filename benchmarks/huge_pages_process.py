"""A process that `benchmarks.huge_pages` starts; its settings are its argument."""

import time

import jax

from benchmarks import rounds, training

UPDATES = 8
"""Updates in a round, each a call of its own."""


def main() -> None:
    """Compiles an update, and makes `UPDATES` of them whenever it is asked to."""
    setting = training.Setting(*rounds.read_settings()["setting"])
    begun = time.perf_counter()
    program = training.step(setting, training.mesh(setting.num_rows)).compile()
    compile_seconds = {"updates": time.perf_counter() - begun}

    def run():
        for _ in range(UPDATES - 1):
            jax.block_until_ready(program())
        return jax.block_until_ready(program())

    def evaluate(outputs):
        _, metrics = outputs
        return {"env_steps": UPDATES * int(metrics["env_steps"])}

    rounds.answer({"updates": run}, compile_seconds, evaluate, ["jax"])


if __name__ == "__main__":
    main()
