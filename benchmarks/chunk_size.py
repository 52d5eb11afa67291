"""Time and memory of a policy gradient against the samples of a chunk, CartPole, 2 x 64 tanh.

The whole batch in one chunk is the flat backward pass that a straightforward program makes. Chunk
sizes are timed in turn, round after round, so that a machine that drifts drifts for all of them.

    python -m benchmarks.chunk_size             # writes benchmarks/results/chunk_size.json
    python -m benchmarks.chunk_size --smoke     # tiny, to see that it runs; writes nothing
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from pgjax import environments, estimators, gradients, policies, rollout

RESULTS = Path(__file__).parent / "results" / "chunk_size.json"


def measure(num_episodes: int, horizon: int, chunk_sizes: list[int], rounds: int) -> list[dict]:
    """Median seconds, throughput and temporary bytes of each chunk size."""
    # Nothing ends an episode, so that every step is live.
    env, env_params = environments.make(
        "CartPole-v1", theta_threshold_radians=1e9, x_threshold=1e9, max_steps_in_episode=10**9
    )
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

        return jax.jit(gradient).lower(params, trajectory).compile()

    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    trajectory = jax.jit(run)(key)
    programs = {size: program(size) for size in chunk_sizes}
    seconds = {size: [] for size in chunk_sizes}
    for _ in range(rounds + 1):
        for size, compiled in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(compiled(params, trajectory))
            seconds[size].append(time.perf_counter() - begun)
    return [
        {
            "chunk_size": size,
            "seconds": statistics.median(seconds[size][1:]),
            "steps_per_second": num_episodes * horizon / statistics.median(seconds[size][1:]),
            "temporary_bytes": programs[size].memory_analysis().temp_size_in_bytes,
        }
        for size in chunk_sizes
    ]


def main(arguments: list[str]) -> None:
    """Measures, prints a table and keeps the numbers."""
    smoke = arguments == ["--smoke"]
    num_episodes, horizon = (8, 32) if smoke else (512, 500)
    total = num_episodes * horizon
    sizes = [64, total] if smoke else [256, 1024, 2048, 4096, 8192, total]
    rows = measure(num_episodes, horizon, sizes, rounds=1 if smoke else 15)
    print("chunk size    M steps/s    temporary MB")
    for row in rows:
        name = "flat" if row["chunk_size"] == total else str(row["chunk_size"])
        throughput, memory = row["steps_per_second"] / 1e6, row["temporary_bytes"] / 1e6
        print(f"{name:>10} {throughput:12.2f} {memory:15.1f}")
    if not smoke:
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
        kept = {"command": "python -m benchmarks.chunk_size", "machine": machine, "rows": rows}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
