"""Milliseconds of single kernels, each compiled before it is timed.

    python -m benchmarks.kernels             # all of them
    python -m benchmarks.kernels --smoke     # toy size, to see that they run; writes nothing

`pytest benchmarks --benchmark-only -n 0` times the same kernels (`test_kernels`).
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import kept, timing, training
from benchmarks.training import Setting
from pgjax import chunks, estimators, gradients, returns, rollout

SETTING = Setting(num_rows=1024, horizon=128)
TOY = SETTING._replace(num_rows=4, horizon=8)
ROUNDS = 9
LEAST_SECONDS = 0.1
"""The least seconds of a round of one kernel, which are filled with many calls."""


class Kernel(NamedTuple):
    """A function to be compiled, and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def compile(self) -> Callable[[], Any]:
        """A call that returns once the result is there."""
        compiled = training.compile(self.function, *self.args)
        return lambda: jax.block_until_ready(compiled(*self.args))


def kernels(setting: Setting) -> Mapping[str, Kernel]:
    """All kernels by name, on trajectories of a setting; every other row ends half way."""
    own = training.parts(setting)
    env, env_params, policy, value_function = own
    num_rows, horizon = setting.num_rows, setting.horizon
    key = jax.random.key(0)
    params, value_params = jax.jit(own.init)(key)

    def roll(key, params):
        return rollout.episodes(
            key, env, env_params, policy, params, num_episodes=num_rows, horizon=horizon
        )

    def step(key, params, rows):
        return rollout.segments(key, env, env_params, policy, params, rows, horizon=1)

    whole = jax.jit(roll)(key, params)
    ended = (jnp.arange(num_rows)[:, None] % 2 == 0) & (jnp.arange(horizon)[None] >= horizon // 2)
    trajectory = whole._replace(mask=jnp.where(ended, 0, whole.mask))
    rows = jax.jit(lambda key: rollout.start(key, env, env_params, policy, num_rows=num_rows))(key)
    reward, value = trajectory.reward, jnp.cos(trajectory.reward)
    hyper = estimators.Hyper(discount=0.99, lambda_=0.95)
    plain = estimators.estimator("reward_to_go", "batch_mean", "uniform")
    coupled = estimators.estimator("gae", "leave_one_out", "uniform")
    steps = gradients.make_steps(coupled, trajectory, value, value)

    def add(index, valid, total):
        return total + jnp.sum(index * valid)

    def gradient(params, trajectory):
        return gradients.trajectory_gradient(
            params, trajectory, policy=policy, estimator=plain, hyper=hyper
        )

    return {
        "discounted_sum": Kernel(lambda x: returns.discounted_sum(x, 0.99), (reward,)),
        "gae": Kernel(
            lambda reward, value: returns.gae(reward, value, value, 0.99, 0.95), (reward, value)
        ),
        "psi": Kernel(lambda steps: estimators.psi(coupled, steps, hyper), (steps,)),
        "fold": Kernel(lambda mask: chunks.fold(add, 0, mask, [512]), (trajectory.mask > 0,)),
        "rollout_step": Kernel(step, (key, params, rows)),
        "trajectory_gradient": Kernel(gradient, (params, trajectory)),
        "values": Kernel(
            lambda params, trajectory: gradients.values(value_function, params, trajectory),
            (value_params, trajectory),
        ),
    }


def is_finite(tree: Any) -> bool:
    """Whether a kernel gave numbers."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(x).all()) for x in floats)


def measure(smoke: bool) -> list[kept.Row]:
    """Milliseconds of every kernel, in turn."""
    calls = {name: kernel.compile() for name, kernel in kernels(TOY if smoke else SETTING).items()}
    rounds, least = (1, 0.0) if smoke else (ROUNDS, LEAST_SECONDS)
    seconds = timing.interleaved(calls, rounds=rounds, least=least)
    return [
        kept.row({"kernel": name}, {"milliseconds": [1000 * x for x in seconds[name]]})
        for name in calls
    ]


if __name__ == "__main__":
    kept.run("kernels", measure, sys.argv[1:], settings=SETTING._asdict())
