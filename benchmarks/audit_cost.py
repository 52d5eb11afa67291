"""Costs of an audit, beside training on the same trajectories, and of single episodes' gradients.

An audit of K replicates of a gradient is compared with K updates of training with that gradient.
Training has a learning rate of zero, so that its keys and parameters, and with them all of its
trajectories, are those of the audit; the optimiser does its usual work. Both are compiled before
they are timed, and timed in turn. `short` episodes are those of the initial policy; `full` ones do
not end before the horizon. Both programs run on one device, or share out the episodes of a
replicate over all devices.

Gradients of single episodes are computed as replicates of one episode (with all that an audit keeps
of them) and as norms without the gradients. For scale, their mean alone and the episodes alone are
timed as well; all are timed in turn.

    python -m benchmarks.audit_cost             # keeps the result
    python -m benchmarks.audit_cost --smoke     # tiny, to see that it runs; writes nothing
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks import kept, timing, training
from pgjax import audit, environments, estimators, gradients, policies, rollout, train
from pgjax.score import GradientFn


class Size(NamedTuple):
    """The size of an audit."""

    num_episodes: int  # of a replicate
    num_replicates: int
    chunk_size: int  # replicates side by side


SIZES = (Size(1, 4096, 256), Size(32, 256, 16), Size(32, 1024, 16), Size(1024, 32, 1))
HORIZON = 128
ROUNDS = 9
LEAST_SECONDS = 0.25
"""The least seconds of a round of one program, which are filled with several calls."""
KINDS = {"short": {}, "full": training.ENDLESS}


class Problem(NamedTuple):
    """CartPole with a policy of 2 x 64 tanh."""

    env: Any
    env_params: Any
    policy: policies.Policy
    estimator: estimators.Estimator
    hyper: estimators.Hyper
    params: Any


def problem(kind: str) -> Problem:
    """The problem, with short episodes or full ones."""
    env, env_params = environments.make("CartPole-v1", **KINDS[kind])
    policy = policies.make("mlp", env, env_params)
    # A single episode has no others to be compared with.
    estimator = estimators.estimator("reward_to_go", "none")
    params = jax.jit(policy.init)(jax.random.key(1), jnp.zeros(4))
    return Problem(env, env_params, policy, estimator, estimators.Hyper(), params)


def gradient(given: Problem, num_episodes: int, horizon: int, mesh: Mesh | None) -> GradientFn:
    """The gradient that is audited and trained with."""
    return gradients.policy_gradient(
        given.env,
        given.env_params,
        given.policy,
        given.estimator,
        given.hyper,
        num_episodes=num_episodes,
        horizon=horizon,
        mesh=mesh,
    )


def audited(
    given: Problem, size: Size, horizon: int, mesh: Mesh | None = None
) -> Callable[[], audit.Audit]:
    """An audit that is compiled once."""
    measure = audit.auditor(
        gradient(given, size.num_episodes, horizon, mesh),
        num_replicates=size.num_replicates,
        chunk_size=size.chunk_size,
    )
    return lambda: measure(jax.random.key(0), given.params)


def trained(
    given: Problem, size: Size, horizon: int, mesh: Mesh | None = None
) -> Callable[[], Any]:
    """As many updates as there are replicates, which change no parameter."""
    gradient_fn = gradient(given, size.num_episodes, horizon, mesh)
    optimizer = optax.adam(0.0)

    def run(key, params):
        state = train.init(key, params, optimizer)
        return train.train(key, state, gradient_fn, optimizer, num_steps=size.num_replicates)

    compiled = training.compile(run, jax.random.key(0), given.params)
    return lambda: compiled(jax.random.key(0), given.params)


def beside_training(
    kind: str, size: Size, horizon: int, rounds: int, mesh: Mesh | None = None
) -> kept.Row:
    """Seconds of an audit, of training, and their ratio by round."""
    given = problem(kind)
    calls = {
        "audit": audited(given, size, horizon, mesh),
        "training": trained(given, size, horizon, mesh),
    }
    steps = env_steps(calls["training"]()[1])
    found = calls["audit"]().env_steps
    if found is None or round(found.value * size.num_replicates) != steps:
        raise RuntimeError(f"the audit saw {found} steps a replicate, training {steps} in all")
    seconds = timing.interleaved(calls, rounds=rounds, least=LEAST_SECONDS if rounds > 1 else 0.0)
    pairs = zip(seconds["audit"], seconds["training"], strict=True)
    return kept.row(
        {"kind": kind, "horizon": horizon, "devices": mesh.size if mesh else 1} | size._asdict(),
        {
            "audit_seconds": seconds["audit"],
            "training_seconds": seconds["training"],
            "ratio": [one / other for one, other in pairs],
        },
        {"env_steps": steps},
    )


def env_steps(metrics: Any) -> int:
    """All live steps of a training."""
    return int(np.asarray(metrics["env_steps"]).sum(dtype=np.int64))


def single_episodes(kind: str, size: Size, horizon: int, rounds: int) -> list[kept.Row]:
    """Gradients of single episodes per second, computed in several ways."""
    given = problem(kind)
    num = size.num_replicates
    use = {"policy": given.policy, "estimator": given.estimator, "hyper": given.hyper}

    def collected(function):
        def run(key, params):
            trajectory = rollout.episodes(
                key,
                given.env,
                given.env_params,
                given.policy,
                params,
                num_episodes=num,
                horizon=horizon,
            )
            return function(params, trajectory)

        compiled = training.compile(run, jax.random.key(0), given.params)
        return lambda: compiled(jax.random.key(0), given.params)

    calls = {
        "audit of single episodes": audited(given, size, horizon),
        "norms": collected(
            lambda params, trajectory: gradients.squared_norms(params, trajectory, **use)
        ),
        "mean alone": collected(
            lambda params, trajectory: gradients.trajectory_gradient(params, trajectory, **use)
        ),
        "episodes alone": collected(lambda params, trajectory: jnp.sum(trajectory.mask)),
    }
    seconds = timing.interleaved(calls, rounds=rounds, least=LEAST_SECONDS if rounds > 1 else 0.0)
    return [
        kept.row(
            {"kind": kind, "horizon": horizon, "episodes": num, "way": way},
            {"episodes_per_second": [num / x for x in seconds[way]]},
        )
        for way in calls
    ]


def measure(smoke: bool) -> list[kept.Row]:
    """All rows."""
    kinds, sizes = (("short",), (Size(2, 4, 2),)) if smoke else (tuple(KINDS), SIZES)
    horizon, rounds = (8, 1) if smoke else (HORIZON, ROUNDS)
    mesh = training.mesh()
    rows = []
    for kind in kinds:
        for size in sizes:
            rows.append(beside_training(kind, size, horizon, rounds))
            if mesh is not None and size.num_episodes % mesh.size == 0:
                rows.append(beside_training(kind, size, horizon, rounds, mesh))
        rows += single_episodes(kind, sizes[0]._replace(num_episodes=1), horizon, rounds)
    return rows


def main(arguments: list[str]) -> None:
    """Measures, prints a table and keeps the numbers."""
    kept.run("audit_cost", measure, arguments, settings={"rounds": ROUNDS})


if __name__ == "__main__":
    main(sys.argv[1:])
