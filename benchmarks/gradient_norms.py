"""Norms of the gradients of single trajectories: from the gradients, and without them.

CartPole, two hidden layers, rows side by side. Both ways are timed in turn, round after round.

    python -m benchmarks.gradient_norms             # writes benchmarks/results/gradient_norms.json
    python -m benchmarks.gradient_norms --smoke     # tiny, to see that it runs; writes nothing
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

from pgjax import environments, estimators, gradients, heads, policies, rollout

RESULTS = Path(__file__).parent / "results" / "gradient_norms.json"


def measure(num_rows: int, horizon: int, width: int, rounds: int) -> dict:
    """Median seconds and temporary bytes of both ways, for one shape."""
    # Nothing ends an episode, so that every step is live.
    env, env_params = environments.make(
        "CartPole-v1", theta_threshold_radians=1e9, x_threshold=1e9, max_steps_in_episode=10**9
    )
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
        return jax.lax.map(norm, rows, batch_size=max(1, gradients.CHUNK_SIZE // horizon))

    def without(params, trajectory):
        return gradients.squared_norms(params, trajectory, **use)

    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_rows, horizon=horizon
    )
    trajectory = jax.jit(run)(key)
    ways = {"from gradients": from_gradients, "without": without}
    programs = {
        name: jax.jit(way).lower(params, trajectory).compile() for name, way in ways.items()
    }
    seconds = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(params, trajectory))
            seconds[name].append(time.perf_counter() - begun)
    return {
        "rows": num_rows,
        "horizon": horizon,
        "width": width,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "ways": {
            name: {
                "seconds": statistics.median(seconds[name][1:]),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            }
            for name, program in programs.items()
        },
    }


def main(arguments: list[str]) -> None:
    """Measures, prints a table and keeps the numbers."""
    smoke = arguments == ["--smoke"]
    shapes = (
        [(4, 8, 16)] if smoke else [(512, 16, 64), (512, 16, 512), (64, 128, 512), (64, 500, 64)]
    )
    rows = [measure(*shape, rounds=1 if smoke else 9) for shape in shapes]
    print("rows  steps  width    from gradients: ms      MB    without: ms      MB")
    for row in rows:
        numbers = [
            number
            for way in row["ways"].values()
            for number in (way["seconds"] * 1e3, way["temporary_bytes"] / 1e6)
        ]
        print("{rows:4} {horizon:6} {width:6}".format(**row), end="")
        print("{:22.1f} {:7.1f} {:14.1f} {:7.1f}".format(*numbers))
    if not smoke:
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
        kept = {"command": "python -m benchmarks.gradient_norms", "machine": machine, "rows": rows}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
