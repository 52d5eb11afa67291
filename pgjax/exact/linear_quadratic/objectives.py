"""Values, objectives and their gradients on linear-quadratic systems."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag

from pgjax.environments import LQG
from pgjax.estimators import Hyper
from pgjax.exact.linear_quadratic.forms import (
    Quadratic,
    add_constant,
    expectation,
    is_stable,
    lyapunov,
    mean_form,
    nan_unless,
    quadratic,
)
from pgjax.exact.linear_quadratic.loop import Loop, build, check, check_params
from pgjax.policies import Params, Policy
from pgjax.score import GradientFn


class Values(NamedTuple):
    """V and Q as functions of s and of [s, a]; without the time axis for an infinite horizon."""

    state: Quadratic  # [T + 1] V_t(s), the last zero
    action: Quadratic  # [T] Q_t([s, a])


def expected_return(
    system: LQG, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """The objective: J_gamma = E[sum_{t<T} gamma^t r_t] = E[V_0(s_0)].

    Differentiable in `params`, `hyper.discount` and `system`, any number of times.

    Args:
      system: dynamics, noise, costs and the law of the first state.
      policy: a policy without memory, normal, with a mean affine in the state and a scale
        independent of it.
      params: its parameters.
      hyper: only the discount matters.
      horizon: number of steps of an episode, T; None for no limit.

    Returns:
      A scalar; NaN where values diverge on an infinite horizon and only compiled code can know it.

    Raises:
      ValueError: an invalid system, another kind of policy, a discount outside [0, 1], a horizon
        below one, or an infinite horizon on which values diverge: undiscounted, or with a
        spectral radius of sqrt(gamma) (A + B K), K the gain of the policy, of one or more.
    """
    check(system, policy, hyper, horizon)
    check_params(system, policy, params, hyper.discount if horizon is None else None)
    return _expected_return(build(system, policy, params), hyper.discount, horizon)


def values(
    system: LQG, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> Values:
    """V and Q of a policy, as quadratic functions.

        Q_t(s, a) = r(s, a) + gamma E[V_{t+1}(s') | s, a],   V_t(s) = E_{a ~ pi}[Q_t(s, a)]

    With V_T = 0, or the fixed point of both for an infinite horizon. Arguments and errors as in
    `expected_return`.
    """
    check(system, policy, hyper, horizon)
    check_params(system, policy, params, hyper.discount if horizon is None else None)
    state, action = value_forms(build(system, policy, params), hyper.discount, horizon)
    return Values(quadratic(state), quadratic(action))


def average_reward(system: LQG, policy: Policy, params: Params) -> jax.Array:
    """Long-run reward per step: eta = E[r] with s from the stationary law, a ~ pi(. | s).

    Differentiable in `params` and `system`. NaN where the loop is unstable and only compiled code
    can know it.

    Raises:
      ValueError: an invalid system, another kind of policy than `expected_return` takes, or a
        spectral radius of A + B K, K the gain of the policy, of one or more.
    """
    check(system, policy)
    check_params(system, policy, params, rate=1.0)
    return _average_reward(build(system, policy, params))


def exact_gradient(system: LQG, policy: Policy, hyper: Hyper, *, horizon: int | None) -> GradientFn:
    """grad J_gamma, by differentiating the value recursion; arguments as in `expected_return`.

    Returns:
      A `GradientFn` that ignores its key; metrics: `expected_return`, the objective.

    Raises:
      ValueError: as `expected_return`; for what depends on the parameters, when it is called.
    """
    check(system, policy, hyper, horizon)
    rate = hyper.discount if horizon is None else None
    objective = lambda loop: _expected_return(loop, hyper.discount, horizon)
    return _ascend(system, policy, objective, "expected_return", rate)


def average_reward_gradient(system: LQG, policy: Policy) -> GradientFn:
    """grad eta, the gradient of the average reward.

    Metrics: `average_reward`. Raises as `average_reward`.
    """
    check(system, policy)
    return _ascend(system, policy, _average_reward, "average_reward", rate=1.0)


def value_forms(loop: Loop, discount: Any, horizon: int | None) -> tuple[jax.Array, jax.Array]:
    """Minus V and Q as forms in x and z: `[T + 1, S+1, S+1]` and `[T, S+A+1, S+A+1]`."""
    if horizon is None:
        state = _fixed_point(loop, discount)
        return state, _action_form(loop, discount, state)

    def back(state, _):
        action = _action_form(loop, discount, state)
        state = state_form(loop, action)
        return state, (state, action)

    end = jnp.zeros_like(loop.closed)
    _, (state, action) = jax.lax.scan(back, end, length=horizon)
    return jnp.concatenate([state[::-1], end[None]]), action[::-1]


def _action_form(loop: Loop, discount: Any, state: jax.Array) -> jax.Array:
    return loop.cost + discount * mean_form(state, loop.dynamics, loop.state_noise)


def state_form(loop: Loop, action: jax.Array) -> jax.Array:
    """The mean over actions of a form in z, as a form in x."""
    return mean_form(action, loop.policy, loop.action_noise)


def _fixed_point(loop: Loop, discount: Any) -> jax.Array:
    """Minus V of the infinite horizon: a Lyapunov equation, then a constant for future noise."""
    cost = loop.policy.T @ loop.cost @ loop.policy
    form = lyapunov(loop.closed.T, cost, discount)
    noise = state_form(loop, _action_form(loop, discount, form))[-1, -1] - form[-1, -1]
    stable = is_stable(loop.closed[:-1, :-1], discount)
    return nan_unless(stable, add_constant(form, noise / (1 - discount)))


def _expected_return(loop: Loop, discount: Any, horizon: int | None) -> jax.Array:
    state, _ = value_forms(loop, discount, horizon)
    first = state if horizon is None else state[0]
    return -expectation(first, loop.initial_mean, loop.initial_covariance)


def _average_reward(loop: Loop) -> jax.Array:
    matrix, offset = loop.closed[:-1, :-1], loop.closed[:-1, -1]
    mean = jnp.linalg.solve(jnp.eye(len(offset), dtype=offset.dtype) - matrix, offset)
    covariance = block_diag(lyapunov(matrix, loop.noise[:-1, :-1]), jnp.zeros((1, 1)))
    cost = expectation(state_form(loop, loop.cost), jnp.append(mean, 1.0), covariance)
    return nan_unless(is_stable(matrix), -cost)


def _ascend(system: LQG, policy: Policy, objective: Any, name: str, rate: Any) -> GradientFn:
    def gradient_fn(key, params):
        check_params(system, policy, params, rate)
        value, gradient = jax.value_and_grad(
            lambda params: objective(build(system, policy, params))
        )(params)
        return gradient, {name: value}

    return gradient_fn
