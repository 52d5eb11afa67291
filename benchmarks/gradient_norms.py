"""Norms of the gradients of single trajectories, computed from the gradients and without them.

CartPole, two hidden layers, rows side by side. Both ways are timed in turn, round after round.

    python -m benchmarks.gradient_norms             # all of it
    python -m benchmarks.gradient_norms --smoke     # tiny, to see that it runs; writes nothing
"""

import sys

import jax
import jax.numpy as jnp

from benchmarks import kept, timing, training
from pgjax import environments, estimators, gradients, heads, policies, rollout

SHAPES = [(512, 16, 64), (512, 16, 512), (64, 128, 512), (64, 500, 64)]
"""Rows, steps and width."""
CHUNK_SIZE = 4096


def measure(smoke: bool) -> list[kept.Row]:
    """Both ways, for every shape."""
    shapes = [(4, 8, 16)] if smoke else SHAPES
    return [row for shape in shapes for row in measure_shape(*shape, rounds=1 if smoke else 9)]


def measure_shape(num_rows: int, horizon: int, width: int, rounds: int) -> list[kept.Row]:
    """Milliseconds and temporary bytes of both ways, for one shape."""
    env, env_params = environments.make("CartPole-v1", **training.ENDLESS)
    policy = policies.mlp(heads.categorical(2), hidden=(width, width))
    key = jax.random.key(0)
    params = policy.init(key, jnp.zeros(4))
    use = {
        "policy": policy,
        "estimator": estimators.estimator("reward_to_go", "none"),
        "hyper": estimators.Hyper(discount=1.0),
    }

    def from_gradients(params, trajectory):
        def norm(row):
            gradient = gradients.trajectory_gradient(params, row, **use)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient))

        rows = jax.tree.map(lambda x: x[:, None], trajectory)
        return jax.lax.map(norm, rows, batch_size=max(1, CHUNK_SIZE // horizon))

    def without(params, trajectory):
        return gradients.squared_norms(params, trajectory, **use, chunk_size=CHUNK_SIZE)

    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_rows, horizon=horizon
    )
    trajectory = jax.jit(run)(key)
    ways = {"from gradients": from_gradients, "without": without}
    programs = {name: training.compile(way, params, trajectory) for name, way in ways.items()}
    calls = {name: lambda run=run: run(params, trajectory) for name, run in programs.items()}
    seconds = timing.interleaved(calls, rounds=rounds)
    return [
        kept.row(
            {"norms": name, "rows": num_rows, "horizon": horizon, "width": width},
            {
                "milliseconds": [1e3 * each for each in seconds[name]],
                "temporary_bytes": [training.temporary_bytes(program)],
            },
            {"parameters": sum(x.size for x in jax.tree.leaves(params))},
        )
        for name, program in programs.items()
    ]


if __name__ == "__main__":
    kept.run("gradient_norms", measure, sys.argv[1:])
