"""Live steps per second with whole episodes, beside those with windows, while episodes are short.

Actor and critic (GAE, one update of each) at the start of training on CartPole, and on Breakout,
whose observations have a hundred times as many entries. An episode then lasts ten or twenty of at
most 128 steps, so that most of a batch of episodes is padding; windows have none. A call makes
several updates, as training does, all from the initial parameters, so that episodes stay short.
Steps are live ones; ratios are taken within a round.

    python -m benchmarks.short_episodes             # all of it
    python -m benchmarks.short_episodes --smoke     # tiny, to see that it runs; writes nothing
"""

import sys

import jax
import jax.numpy as jnp
import optax

from benchmarks import kept, timing, training

SETTINGS = {
    "num_rows": {"CartPole-v1": [1024, 4096, 16384], "Breakout-MinAtar": [1024, 4096]},
    "horizon": 128,
    "rows_a_call": 16384,
}
SMOKE = {"num_rows": {"CartPole-v1": [2]}, "horizon": 4, "rows_a_call": 4}
KINDS = ("segments", "episodes")
ROUNDS = 25
LEAST_SECONDS = 0.25
"""The least seconds of a round of one program, which are filled with several calls."""


def updates(setting: training.Setting, num_updates: int) -> training.Program:
    """Several updates, each from the initial state; of the results only a norm is kept."""
    one = training.step(setting, training.mesh(setting.num_rows))

    def run(key, state):
        def update(total, key):
            after, metrics = one.function(key, state)
            return total + optax.tree.norm(after.params), metrics["env_steps"]

        return jax.lax.scan(update, jnp.zeros(()), jax.random.split(key, num_updates))

    return training.Step(run, one.key, one.state).compile()


def measure(smoke: bool) -> list[kept.Row]:
    """Steps per second of both kinds, and as a multiple of those of windows."""
    chosen, rounds, least = (SMOKE, 1, 0.0) if smoke else (SETTINGS, ROUNDS, LEAST_SECONDS)
    rows = []
    for env, numbers in chosen["num_rows"].items():
        for num_rows in numbers:
            base = training.Setting(
                env, "episodes", "actor-critic", num_rows, chosen["horizon"], endless=False
            )
            num_updates = max(1, chosen["rows_a_call"] // num_rows)
            rows += beside(base, num_updates, rounds, least)
    return rows


def beside(base: training.Setting, num_updates: int, rounds: int, least: float) -> list[kept.Row]:
    """Both kinds at one setting."""
    calls = {kind: updates(base._replace(rows=kind), num_updates) for kind in KINDS}
    live = {kind: int(call()[1].sum()) for kind, call in calls.items()}
    seconds = timing.interleaved(calls, rounds=rounds, least=least)
    speeds = {kind: [live[kind] / each for each in seconds[kind]] for kind in KINDS}
    return [
        kept.row(
            {"env": base.env, "num_rows": base.num_rows, "rows": kind},
            {
                "steps_per_second": speeds[kind],
                "ratio": [x / y for x, y in zip(speeds[kind], speeds["segments"], strict=True)],
            },
            {"live_fraction": live[kind] / (num_updates * base.num_rows * base.horizon)},
        )
        for kind in KINDS
    ]


if __name__ == "__main__":
    kept.run("short_episodes", measure, sys.argv[1:], settings=SETTINGS)
