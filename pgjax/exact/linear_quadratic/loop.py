"""A linear-quadratic system under a linear-Gaussian policy, as the arrays all else starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import block_diag

from pgjax import checks
from pgjax.distributions import Independent, Normal
from pgjax.environments.linear_quadratic import LQG, check_lqg
from pgjax.estimators import Hyper
from pgjax.exact import model
from pgjax.policies import Params, Policy, check_memoryless


class Loop(NamedTuple):
    """A system and a policy, in terms of x = [s, 1] and z = [s, a, 1]."""

    policy: jax.Array  # [S+A+1, S+1] mean of z given x
    action_noise: jax.Array  # [S+A+1, S+A+1] its covariance
    dynamics: jax.Array  # [S+1, S+A+1] mean of the next x given z
    state_noise: jax.Array  # [S+1, S+1] its covariance
    cost: jax.Array  # [S+A+1, S+A+1] minus the reward, a form in z
    initial_mean: jax.Array  # [S+1]
    initial_covariance: jax.Array  # [S+1, S+1]

    @property
    def closed(self) -> jax.Array:
        """Mean of the next x given x, `[S+1, S+1]`."""
        return self.dynamics @ self.policy

    @property
    def noise(self) -> jax.Array:
        """Covariance of the next x given x, `[S+1, S+1]`."""
        return self.dynamics @ self.action_noise @ self.dynamics.T + self.state_noise


def build(system: LQG, policy: Policy, params: Params) -> Loop:
    """The loop a policy closes, differentiable in its parameters and in the system.

    Raises:
      ValueError: a policy that does not give one normal vector of actions.
    """
    system = jax.tree.map(lambda x: jnp.asarray(x, float), system)
    state, action = np.shape(system.control)
    origin = jnp.zeros(state)
    mean = lambda obs: _normal(policy, params, obs, action).loc
    law = _normal(policy, params, origin, action)
    gain = jax.jacfwd(mean)(origin)
    one, to_one = jnp.ones((1, 1)), jnp.zeros((1, state))
    return Loop(
        policy=jnp.block(
            [[jnp.eye(state), to_one.T], [gain, law.loc[:, None]], [to_one, one]],
        ),
        action_noise=block_diag(jnp.zeros((state, state)), jnp.diag(law.scale**2), 0 * one),
        dynamics=block_diag(jnp.concatenate([system.dynamics, system.control], axis=1), one),
        state_noise=block_diag(system.noise, 0 * one),
        cost=block_diag(system.state_cost, system.action_cost, 0 * one),
        initial_mean=jnp.append(system.initial_mean, 1.0),
        initial_covariance=block_diag(system.initial_covariance, 0 * one),
    )


def _normal(policy: Policy, params: Params, obs: jax.Array, size: int) -> Normal:
    """The normal law of the `size` action components at an observation.

    Raises:
      ValueError: the law is not normal, or of another shape.
    """
    _, distribution = policy.step(params, policy.initial_state(), obs)
    normal = distribution
    while isinstance(normal, Independent):
        normal = normal.distribution
    if not isinstance(normal, Normal):
        raise ValueError(
            f"policy gives {type(normal).__name__}; a linear-quadratic system has exact values "
            f"under Normal actions only"
        )
    if distribution.batch_shape != () or normal.loc.shape != (size,):
        raise ValueError(
            f"policy gives actions of shape {normal.loc.shape} and log-probabilities of shape "
            f"{distribution.batch_shape}; the system takes ({size},) and ()"
        )
    return normal


def check(
    system: LQG, policy: Policy, hyper: Hyper | None = None, horizon: int | None = None
) -> None:
    """Refuses what is wrong whatever the parameters; the horizon only if `hyper` is given."""
    if not checks.is_traced(system):
        check_lqg(system)
    check_memoryless(policy, "exact values")
    if hyper is None:
        return
    model.check_discount(hyper)
    model.check_horizon(horizon)
    if horizon is None and not model.is_discounted(hyper):
        raise ValueError(
            "horizon=None with discount=1: J diverges, because no episode ends; give a horizon or "
            "a discount below 1, or use average_reward"
        )


def check_params(system: LQG, policy: Policy, params: Params, rate: Any = None) -> None:
    """Refuses a policy that is not linear-Gaussian and, given a rate, an unstable loop.

    Traced values pass unseen, and so do those that are not finite.
    """
    flat, unravel = ravel_pytree(params)
    # The mean may happen to be affine at these parameters; gradients need it nearby too.
    nearby = unravel(flat + np.random.default_rng(0).normal(size=flat.shape).astype(flat.dtype))
    for near in (params, nearby):
        if not _is_linear_gaussian(system, policy, near):
            raise ValueError(
                "policy is not linear-Gaussian: its mean must be affine in the observation and "
                "its scale must not see it"
            )
    if rate is None:
        return
    matrix = build(system, policy, params).closed[:-1, :-1]
    if checks.is_traced((matrix, rate)) or not np.all(np.isfinite(matrix)):
        return
    radius = np.max(np.abs(np.linalg.eigvals(np.asarray(matrix)))) * np.sqrt(np.max(rate))
    if radius >= 1:
        raise ValueError(
            f"the loop is unstable: sqrt(discount) (A + B K) has a spectral radius of "
            f"{radius:.4g}, and without a horizon it must be below 1"
        )


def _is_linear_gaussian(system: LQG, policy: Policy, params: Params) -> bool:
    """Whether the policy is linear-Gaussian at a few points; true where it is traced."""
    state, action = np.shape(system.control)
    points = 10 * np.random.default_rng(0).normal(size=(4, state))
    points = jnp.asarray(np.concatenate([np.zeros((1, state)), np.eye(state), points]), float)
    loc, scale = jax.vmap(lambda obs: tuple(_normal(policy, params, obs, action)))(points)
    if checks.is_traced((loc, scale)):
        return True
    loc, scale, points = np.asarray(loc), np.asarray(scale), np.asarray(points)
    affine = loc[0] + points @ (loc[1 : state + 1] - loc[0])
    tolerance = np.sqrt(np.finfo(loc.dtype).eps)
    bent = np.max(np.abs(affine - loc)) > tolerance * np.max(np.abs(loc))
    uneven = np.max(np.abs(scale - scale[0])) > tolerance * np.max(np.abs(scale))
    return not (bent or uneven)
