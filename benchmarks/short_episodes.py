"""Live steps a second of whole episodes beside those of windows, while episodes are short.

Actor and critic (GAE, one update of each) at the start of training on CartPole: an episode lasts
twenty of at most 128 steps, so that five sixths of a batch of episodes are padding, where a window
has none. A call makes several updates, as training does, all from the initial parameters, so that
episodes stay short. Steps are live ones; ratios are taken within a round.

    python -m benchmarks.short_episodes             # all of it
    python -m benchmarks.short_episodes --smoke     # tiny, to see that it runs; writes nothing
"""

import sys

import jax
import jax.numpy as jnp
import optax

from benchmarks import kept, timing, training

SETTINGS = {"num_rows": [1024, 4096, 16384], "horizon": 128, "rows_a_call": 16384}
SMOKE = {"num_rows": [2], "horizon": 4, "rows_a_call": 4}
KINDS = ("segments", "episodes")
ROUNDS = 7
LEAST_SECONDS = 0.5
"""Seconds of a round of one program at least, as many calls as they hold."""


def updates(setting: training.Setting, num_updates: int) -> training.Program:
    """Some updates, each from the initial state; what comes of them is looked at, and dropped."""
    one = training.step(setting, training.mesh(setting.num_rows))

    def run(key, state):
        def update(total, key):
            after, metrics = one.function(key, state)
            return total + optax.global_norm(after.params), metrics["env_steps"]

        return jax.lax.scan(update, jnp.zeros(()), jax.random.split(key, num_updates))

    return training.Step(run, one.key, one.state).compile()


def measure(smoke: bool) -> list[kept.Row]:
    """Steps a second of both kinds, and how often as many windows make."""
    chosen = SMOKE if smoke else SETTINGS
    rows = []
    for num_rows in chosen["num_rows"]:
        base = training.Setting(
            learner="actor-critic", num_rows=num_rows, horizon=chosen["horizon"], endless=False
        )
        num_updates = max(1, chosen["rows_a_call"] // num_rows)
        calls = {kind: updates(base._replace(rows=kind), num_updates) for kind in KINDS}
        live = {kind: int(call()[1].sum()) for kind, call in calls.items()}
        rounds, least = (1, 0.0) if smoke else (ROUNDS, LEAST_SECONDS)
        seconds = timing.interleaved(calls, rounds=rounds, least=least)
        speeds = {kind: [live[kind] / each for each in seconds[kind]] for kind in KINDS}
        rows += [
            kept.row(
                {"num_rows": num_rows, "rows": kind},
                {
                    "steps_per_second": speeds[kind],
                    "ratio": [x / y for x, y in zip(speeds[kind], speeds["segments"], strict=True)],
                },
                {"live_fraction": live[kind] / (num_updates * num_rows * base.horizon)},
            )
            for kind in KINDS
        ]
    return rows


if __name__ == "__main__":
    kept.run("short_episodes", measure, sys.argv[1:], settings=SETTINGS)
