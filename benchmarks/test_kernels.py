"""Kernels, timed one by one: `pytest benchmarks --benchmark-only -n 0`.

Each is compiled before it is timed. To compare two states of the code, run one with
`--benchmark-save=before` and the other with `--benchmark-compare`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from benchmarks import training
from benchmarks.training import Setting
from pgjax import chunks, estimators, gradients, returns, rollout

SETTING = Setting(num_rows=1024, horizon=128)
TOY = SETTING._replace(num_rows=4, horizon=8)


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


@pytest.fixture(scope="module")
def compiled():
    """A function of a kernel's name and a setting that gives the compiled call."""
    made: dict[Setting, Mapping[str, Kernel]] = {}

    def get(name, setting):
        if setting not in made:
            made[setting] = kernels(setting)
        return made[setting][name].compile()

    return get


NAMES = (
    "discounted_sum",
    "gae",
    "psi",
    "fold",
    "rollout_step",
    "trajectory_gradient",
    "values",
)


@pytest.mark.parametrize("name", NAMES)
def test_kernel(name, compiled, benchmark):
    call = compiled(name, SETTING if benchmark.enabled else TOY)
    assert is_finite(benchmark(call))
