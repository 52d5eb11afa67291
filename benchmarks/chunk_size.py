"""Time and memory of a policy gradient against the size of a chunk: CartPole, 2 x 64 tanh.

The whole batch in one chunk is the flat backward pass that a straightforward program makes. Chunk
sizes are timed in turn, round after round, so that a machine that drifts drifts for all of them.

    python -m benchmarks.chunk_size             # all of it
    python -m benchmarks.chunk_size --smoke     # tiny, to see that it runs; writes nothing
"""

import sys

import jax
import jax.numpy as jnp

from benchmarks import kept, timing, training
from pgjax import environments, estimators, gradients, policies, rollout


def measure(smoke: bool) -> list[kept.Row]:
    """Throughput and temporary bytes of each chunk size."""
    num_episodes, horizon = (8, 32) if smoke else (512, 500)
    total = num_episodes * horizon
    sizes = [64, total] if smoke else [256, 512, 1024, 2048, 4096, 8192, total]
    env, env_params = environments.make("CartPole-v1", **training.ENDLESS)
    policy, estimator = policies.make("mlp", env, env_params), estimators.estimator()
    key = jax.random.key(0)
    params = policy.init(key, jnp.zeros(4))

    def program(chunk_size):
        def gradient(params, trajectory):
            return gradients.trajectory_gradient(
                params,
                trajectory,
                policy=policy,
                estimator=estimator,
                hyper=estimators.Hyper(discount=1.0),
                chunk_size=chunk_size,
            )

        return training.compile(gradient, params, trajectory)

    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    trajectory = jax.jit(run)(key)
    programs = {size: program(size) for size in sizes}
    calls = {size: lambda run=run: run(params, trajectory) for size, run in programs.items()}
    seconds = timing.interleaved(calls, rounds=1 if smoke else 15)
    return [
        kept.row(
            {"chunk_size": size, "flat": size == total},
            {
                "steps_per_second": [total / each for each in seconds[size]],
                "temporary_bytes": [training.temporary_bytes(programs[size])],
            },
        )
        for size in sizes
    ]


if __name__ == "__main__":
    kept.run("chunk_size", measure, sys.argv[1:])
