"""The natural policy gradient, by conjugate gradients on Fisher-vector products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pgjax import checks, estimators, rollout
from pgjax.batching import expand
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.policy import (
    batch_gradient,
    check_batch,
    check_counts,
    episode_means,
    policy_part,
)
from pgjax.gradients.samples import GRADIENT_FIELDS, Term, accumulate, policy_samples
from pgjax.policies import Params, Policy, ValueFunction
from pgjax.rollout import Trajectory
from pgjax.score import GradientFn


def natural_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    *,
    num_episodes: int,
    horizon: int,
    damping: float,
    num_iterations: int = 10,
    value_function: ValueFunction | None = None,
    chunk_size: int | None = None,
) -> GradientFn:
    """Natural policy gradient of fresh episodes, as a `GradientFn`.

        (F + damping I) x = g
        F = 1/N sum_i sum_t w_t u_it u_it^T,   u_it = grad log pi(a_it | s_it)

    g is the policy gradient of the estimator and w_t its state weighting, so that both are means
    over the same visits (but for `total_return`, which credits all visits alike). F is unbiased for
    the Fisher information that Kakade defines, summed over an episode's visits. The solution x is a
    direction of ascent, not an unbiased estimate: the inverse of an unbiased matrix is biased, and
    F and g come from one batch. It does not depend on how the policy is parametrised, up to damping
    and to first order. F is never formed.

    The actions in F are those taken, even where the sum over all of them could be computed. Any
    distribution will then do, and g, a sum of scores, lies in the range of F, so that the system
    has a solution without damping too, unless there is an entropy bonus: the least-squares fit of
    Psi_t / w_t by the scores, the compatible function approximation.

    Args:
      env: a gymnax environment.
      env_params: its parameters.
      policy: the policy.
      estimator: form, baseline and state weighting of g.
      hyper: discount, lambda and the like.
      num_episodes: rows per gradient, N.
      horizon: maximum number of steps of a row, T.
      damping: added to the diagonal; F sums over time, so its scale is that of an episode. Where
        damping is large the result is g / damping.
      num_iterations: of conjugate gradients, each one Fisher-vector product over the batch.
      value_function: as in `policy_gradient`; its part of the gradient is not touched.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.

    Returns:
      A `GradientFn`, with the metrics of `policy_gradient` and `residual`, the norm of
      g - (F + damping I) x relative to that of g.

    Raises:
      ValueError: as `policy_gradient`, or a negative damping.

    Source: Kakade 2001, "A Natural Policy Gradient"; Schulman et al. 2015, "Trust Region Policy
    Optimization", appendix C, for the products.
    """
    check_batch("num_episodes", num_episodes, horizon)
    check_counts(num_iterations=num_iterations)
    checks.within("damping", damping, 0, float("inf"))
    learn = batch_gradient(
        policy, estimator, hyper, value_function, chunk_size, means=episode_means
    )
    estimators.check_rows(estimator, num_episodes)

    def gradient_fn(key, params):
        own = policy_part(params, value_function)
        trajectory = rollout.episodes(
            key,
            env,
            env_params,
            policy,
            own,
            num_episodes=num_episodes,
            horizon=horizon,
            fields=GRADIENT_FIELDS,
            packed=True,
        )
        gradient, metrics = learn(params, trajectory)
        weight = estimators.state_weights(
            estimator.state_weighting, trajectory.boundary, trajectory.mask, hyper
        )
        fisher = fisher_product(own, trajectory, weight, policy, chunk_size)
        damped = lambda x: _add(fisher(x), damping, x)
        natural, residual = conjugate_gradients(
            damped, policy_part(gradient, value_function), num_iterations
        )
        metrics |= {"residual": residual}
        if value_function is None:
            return natural, metrics
        return gradient | {"policy": natural}, metrics

    return gradient_fn


def fisher_product(
    params: Params,
    trajectory: Trajectory,
    weight: jax.Array,
    policy: Policy,
    chunk_size: int | None,
) -> Callable[[Params], Params]:
    """The map x -> 1/N sum_i sum_t w_it u_it (u_it . x) for weights `[N, T]`."""
    samples, live, distributions = policy_samples(policy, trajectory, weight, chunk_size)
    num_rows = len(trajectory.mask)

    def product(x):
        def part(samples, valid):
            log_prob = lambda params: distributions(params, samples).log_prob(samples.action)
            _, slope = jax.jvp(log_prob, (params,), (x,))
            _, pull_back = jax.vjp(log_prob, params)
            weight = expand(valid, slope) * samples.extra / num_rows
            return pull_back((weight * slope).astype(slope.dtype))[0]

        return accumulate(live, Term(part, samples, like=params))[0]

    return product


def conjugate_gradients(
    product: Callable[[Params], Params], b: Params, num_iterations: int
) -> tuple[Params, jax.Array]:
    """Solves `product(x) = b` for a symmetric, positive semi-definite product, starting at zero.

    Returns:
      x, and the norm of the residual b - product(x) relative to that of b.

    Source: Hestenes & Stiefel 1952.
    """
    squared = _dot(b, b)
    # Far enough above rounding error that x does not drift in the null space of the product.
    enough = jnp.finfo(squared.dtype).eps ** (4 / 3) * squared

    def iterate(_, state):
        x, left, direction, left_squared = state
        image = product(direction)
        curvature = _dot(direction, image)
        moves = (left_squared > enough) & (curvature > 0)
        rate = jnp.where(moves, left_squared / jnp.where(moves, curvature, 1), 0)
        x, left = _add(x, rate, direction), _add(left, -rate, image)
        new_squared = _dot(left, left)
        share = jnp.where(moves, new_squared / jnp.where(moves, left_squared, 1), 0)
        return x, left, _add(left, share, direction), new_squared

    start = (jax.tree.map(jnp.zeros_like, b), b, b, squared)
    x, *_, left_squared = jax.lax.fori_loop(0, num_iterations, iterate, start)
    return x, jnp.sqrt(left_squared / jnp.where(squared > 0, squared, 1))


def _add(x: Params, rate: Any, y: Params) -> Params:
    """x + rate y, in the dtypes of x."""
    return jax.tree.map(lambda x, y: (x + rate * y).astype(x.dtype), x, y)


def _dot(x: Params, y: Params) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)
    return jax.tree.reduce(jnp.add, products)
