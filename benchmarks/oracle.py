"""Seconds the exact oracle takes, tracing and compilation included: every call is a first one.

Moments with a horizon of 200 on 100 states and 5 actions, with a softmax table of 500 parameters;
values and gradients on 1000 states and 10 actions, with a table of 10,000. All in float64.

    python -m benchmarks.oracle             # all of it
    python -m benchmarks.oracle --smoke     # tiny, to see that it runs; writes nothing
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kept, timing
from pgjax import estimators, exact, policies
from pgjax.estimators import Hyper

MOMENTS = (
    "total_return+none",
    "total_return+leave_one_out",
    "reward_to_go+none",
    "reward_to_go+value",
    "reward_to_go+leave_one_out",
    "n_step+value",
    "gae+none",
    "gae+leave_one_out",
)


def random_mdp(num_states: int, num_actions: int) -> exact.MDP:
    """A dense random MDP whose last state is terminal."""
    rng = np.random.default_rng(0)
    shape = (num_states, num_actions, num_states)
    transition = rng.gamma(0.1, size=shape) + 1e-9
    return exact.MDP(
        transition=transition / transition.sum(-1, keepdims=True),
        reward=rng.normal(size=shape),
        initial=np.eye(num_states)[0],
        terminal=np.arange(num_states) == num_states - 1,
    )


def measure(smoke: bool) -> list[kept.Row]:
    """Seconds of every function."""
    with jax.enable_x64(True):
        if smoke:
            found = measure_sizes(MOMENTS[:1], (3, 4, 2), (5, 2), rounds=1)
        else:
            found = measure_sizes(MOMENTS, (200, 100, 5), (1000, 10), rounds=3)
    return [kept.row({"function": name}, {"seconds": taken}) for name, taken in found.items()]


def measure_sizes(
    names: tuple[str, ...],
    moments_of: tuple[int, int, int],
    values_of: tuple[int, int],
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of every function, by round; the functions are timed in turn."""
    horizon, *size = moments_of
    small, policy = random_mdp(*size), policies.tabular(*size)
    params = jnp.asarray(np.random.default_rng(1).normal(size=size))
    hyper = Hyper(discount=0.99, n=5)
    table = exact.values(small, policy, params, hyper, horizon=horizon).state

    def moments(name):
        estimator = estimators.estimator(*name.split("+"))
        num = 4 if "leave_one_out" in name else 1
        return lambda: exact.exact_moments(
            small,
            policy,
            params,
            estimator,
            hyper,
            horizon=horizon,
            num_episodes=num,
            value=table,
        )

    large, wide = random_mdp(*values_of), policies.tabular(*values_of)
    start = jnp.zeros(values_of)
    going_on = large._replace(terminal=np.zeros(values_of[0], bool))
    both = {"horizon 200": horizon, "no horizon": None}
    calls: dict[str, Callable[[], Any]] = {f"moments, {name}": moments(name) for name in names}
    for name, limit in both.items():
        calls[f"values, {name}"] = lambda limit=limit: exact.values(
            large, wide, start, hyper, horizon=limit
        )
        calls[f"gradient, {name}"] = lambda limit=limit: exact.exact_gradient(
            large, wide, hyper, horizon=limit
        )(jax.random.key(0), start)
    calls["gradient, average reward"] = lambda: exact.average_reward_gradient(going_on, wide)(
        jax.random.key(0), start
    )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if rounds > 1:
                jax.clear_caches()
            seconds[name].append(timing.seconds(call))
    return seconds


if __name__ == "__main__":
    kept.run("oracle", measure, sys.argv[1:])
