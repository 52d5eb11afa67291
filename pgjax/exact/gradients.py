"""Exact gradients on a finite MDP, as `GradientFn`s that ignore their key, and curvature."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pgjax import checks
from pgjax.environments import MDP
from pgjax.estimators import Hyper
from pgjax.exact import model, objectives
from pgjax.policies import Params, Policy
from pgjax.score import GradientFn


def exact_gradient(mdp: MDP, policy: Policy, hyper: Hyper, *, horizon: int | None) -> GradientFn:
    """grad J_gamma, by differentiating the value recursion.

    Args:
      mdp: transition, reward, initial and terminal states; observations if states are aliased.
      policy: any policy without memory over finitely many actions.
      hyper: only the discount matters.
      horizon: maximum number of steps of an episode, T; None for no limit.

    Returns:
      A `GradientFn` that ignores its key; metrics: `expected_return`, the objective.

    Raises:
      ValueError: as `expected_return`; for what depends on the parameters, when it is called.
    """
    model.check_objective(mdp, policy, hyper, horizon)
    objective = lambda params: objectives.objective(mdp, policy, params, hyper, horizon)
    return _ascend(objective, "expected_return")


def average_reward_gradient(mdp: MDP, policy: Policy) -> GradientFn:
    """grad eta, the gradient of the average reward of a continuing task.

    Metrics: `average_reward`. Raises as `average_reward`.

    Source: Sutton et al. 2000; Sutton & Barto 2018, section 13.6.
    """
    model.check(mdp, policy)
    objective = lambda params: objectives.average_objective(mdp, policy, params)
    return _ascend(objective, "average_reward")


def all_action_gradient(
    mdp: MDP, policy: Policy, hyper: Hyper, *, horizon: int | None
) -> GradientFn:
    """grad J_gamma by the policy gradient theorem: its all-actions form.

        grad J_gamma = sum_t sum_s gamma^t P(s_t = s) sum_a grad pi(a | s) Q_t(s, a)

    Equal to `exact_gradient`, but computed another way, and it has no metrics. Arguments and errors
    as there.

    Source: Sutton et al. 2000, theorem 1.
    """
    model.check_objective(mdp, policy, hyper, horizon)

    def gradient_fn(key, params):
        exact = objectives.values(mdp, policy, params, hyper, horizon=horizon)
        visits = objectives.visits(mdp, policy, params, hyper, horizon=horizon)
        # What the policy never comes to may have no value.
        action = jnp.where(jnp.isnan(exact.action), 0, exact.action)
        credit = visits[..., None] * action
        ascent = lambda params: jnp.einsum(
            "sa,...sa->", model.action_probs(mdp, policy, params), credit
        )
        return jax.grad(ascent)(params), {}

    return gradient_fn


def natural_gradient(
    mdp: MDP, policy: Policy, hyper: Hyper, *, horizon: int | None, damping: float = 0.0
) -> GradientFn:
    """The natural gradient (F + damping I)^+ grad J_gamma.

    The pseudo-inverse leaves out the directions that change no action probability, of which a
    softmax has one per state. Arguments and errors as `exact_gradient`.

    Source: Kakade 2001.
    """
    checks.within("damping", damping, 0, float("inf"))
    gradient_fn = exact_gradient(mdp, policy, hyper, horizon=horizon)

    def natural(key, params):
        gradient, metrics = gradient_fn(key, model.precise(params))
        flat, unravel = ravel_pytree(gradient)
        matrix = fisher(mdp, policy, params, hyper, horizon=horizon)
        matrix += damping * jnp.eye(len(flat), dtype=flat.dtype)
        return unravel(jnp.linalg.pinv(matrix, hermitian=True) @ flat), metrics

    return natural


def fisher(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """The Fisher matrix of the policy under its discounted visits, `[D, D]`.

        F = sum_t sum_s gamma^t P(s_t = s) sum_a pi(a | s) u u^T,   u = grad log pi(a | s)

    In the flattened parameters, the order of `ravel_pytree`. Not normalised: with the same measure
    as grad J_gamma, F^-1 grad J_gamma holds the coefficients of the compatible advantages.
    Arguments and errors as `expected_return`.
    """
    visits = objectives.visits(mdp, policy, params, hyper, horizon=horizon)
    visits = visits if horizon is None else jnp.sum(visits, axis=0)
    weight = visits[:, None] * model.action_probs(mdp, policy, params)
    score = model.scores(mdp, policy, params)
    return jnp.einsum("sa,sad,sae->de", weight, score, score)


def hessian(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """The Hessian of J_gamma in the flattened parameters, `[D, D]`; errors as `expected_return`."""
    objective = objectives.objective(mdp, policy, params, hyper, horizon)
    flat, unravel = ravel_pytree(model.precise(params))
    return jax.hessian(lambda flat: objective(unravel(flat)))(flat)


def _ascend(objective: Callable[[Params], Callable[[Params], jax.Array]], name: str) -> GradientFn:
    """The gradient of an objective that needs no samples, checked before it is traced."""

    def gradient_fn(key, params):
        value, gradient = jax.value_and_grad(objective(params))(params)
        return gradient, {name: value}

    return gradient_fn
