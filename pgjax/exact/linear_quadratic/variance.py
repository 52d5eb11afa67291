"""Where the variance of a policy gradient comes from, exactly, on linear-quadratic systems."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pgjax import checks, estimators
from pgjax.environments import LQG
from pgjax.estimators import Hyper
from pgjax.exact.decomposition import Decomposition
from pgjax.exact.linear_quadratic.forms import at, mean_form, variance_form
from pgjax.exact.linear_quadratic.loop import Loop, build, check, check_params
from pgjax.exact.linear_quadratic.objectives import state_form, value_forms
from pgjax.policies import Params, Policy

BASELINES = ("none", "value")
"""Baselines `variance_decomposition` knows: nothing, and V_t(s)."""

STATE_NODES, ACTION_NODES = 4, 5
MAX_NODES = 2**20


class _Step(NamedTuple):
    """The parts at one step, and the mean over its states of E_a[Q u | s], u the score."""

    trajectory: jax.Array  # []
    action: jax.Array  # []
    state: jax.Array  # []
    drift: jax.Array  # [D]


def variance_decomposition(
    system: LQG,
    policy: Policy,
    params: Params,
    hyper: Hyper,
    *,
    horizon: int,
    baseline: str = "none",
    state_weighting: str = "discounted",
    chunk_size: int = 16384,
) -> Decomposition:
    """The law of total variance for one step's term of the policy gradient.

        g = (G_t - b_t(s)) u,   u = grad log pi(a | s)
        trajectory = E[Var(G_t | s, a) |u|^2]
        action     = E[tr Var_a((Q_t(s, a) - b_t(s)) u | s)]
        state      = tr Var(E_a[Q_t(s, a) u | s])

    As `exact.variance_decomposition` on a finite MDP: the step is drawn from the visits of an
    episode, here the time in proportion to w_t and the state from its law at that time, and the
    gradient is with respect to all of the policy's parameters.

    The law of s_t, Q_t and Var(G_t | s, a) have closed forms; the means over s_t and a_t are taken
    by Gauss-Hermite quadrature with 4 nodes per state dimension and 5 per action dimension, exact
    up to degrees 7 and 9. That is enough: the score has degree 1 in the state and 2 in the noise of
    the action, Q_t and the variance degree 2 in both, so that no integrand is of more than degree 6
    in s_t or 8 in a_t.

    Args:
      system: as in `expected_return`.
      policy: as in `expected_return`.
      params: its parameters.
      hyper: only the discount matters.
      horizon: number of steps of an episode, T.
      baseline: `none` or `value`, which is the exact V_t(s).
      state_weighting: `discounted` or `uniform`.
      chunk_size: nodes whose scores are held at a time.

    Returns:
      The traces of the three covariances.

    Raises:
      ValueError: as `expected_return`, an unknown baseline or state weighting, or a system of so
        many dimensions that quadrature would take more than 2^20 nodes per step.

    Source: Tucker et al. 2018, "The Mirage of Action-Dependent Baselines", eq. 4.
    """
    checks.choice("baseline", baseline, BASELINES)
    checks.choice("state_weighting", state_weighting, estimators.STATE_WEIGHTINGS)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("chunk_size", chunk_size, 1)
    check(system, policy, hyper, horizon)
    check_params(system, policy, params)
    _check_dimensions(system)
    loop = build(system, policy, params)
    state_forms, action_forms = value_forms(loop, hyper.discount, horizon)
    variances = _return_variances(loop, hyper.discount, state_forms, action_forms)
    mean, covariance = _state_laws(loop, horizon)
    at_step = _at_step(loop, policy, params, baseline, chunk_size)
    inputs = (mean, _root(covariance), state_forms[:-1], action_forms, variances)
    weight = estimators.time_weights(state_weighting, hyper, horizon)
    return _pooled(weight / jnp.sum(weight), jax.lax.map(lambda step: at_step(*step), inputs))


def _pooled(chance: jax.Array, steps: _Step) -> Decomposition:
    """The parts for a step drawn with probabilities `[T]`; drifts also differ between times."""
    apart = steps.drift - (chance @ steps.drift)[None]
    return Decomposition(
        trajectory=chance @ steps.trajectory,
        action=chance @ steps.action,
        state=chance @ (steps.state + jnp.sum(apart**2, axis=1)),
    )


def _return_variances(
    loop: Loop, discount: Any, state_forms: jax.Array, action_forms: jax.Array
) -> jax.Array:
    """Var(G_t | s, a) as forms in z, `[T, S+A+1, S+A+1]`.

    Var(G_t | s, a) = gamma^2 (E[Var(G_{t+1} | s')] + Var(V_{t+1}(s')))
    Var(G_t | s)    = E[Var(G_t | s, a)] + Var(Q_t(s, a))
    """

    def back(later, forms):  # later: Var(G_{t+1} | s), a form in x
        next_state, action = forms
        mean = mean_form(later, loop.dynamics, loop.state_noise)
        spread = variance_form(next_state, loop.dynamics, loop.state_noise)
        variance = discount**2 * (mean + spread)
        now = state_form(loop, variance)
        now = now + variance_form(action, loop.policy, loop.action_noise)
        return now, variance

    end, forms = jnp.zeros_like(loop.closed), (state_forms[1:], action_forms)
    return jax.lax.scan(back, end, forms, reverse=True)[1]


def _state_laws(loop: Loop, horizon: int) -> tuple[jax.Array, jax.Array]:
    """Means `[T, S+1]` and covariances `[T, S+1, S+1]` of x_t."""

    def forward(law, _):
        mean, covariance = law
        closed = loop.closed
        return (closed @ mean, closed @ covariance @ closed.T + loop.noise), law

    first = (loop.initial_mean, loop.initial_covariance)
    return jax.lax.scan(forward, first, length=horizon)[1]


def _at_step(loop, policy, params, baseline, chunk_size):
    """`(mean and root of the law of x_t, forms of V, Q and Var(G | s, a)) -> _Step`."""
    size = len(loop.closed) - 1
    num_actions = len(loop.cost) - size - 1
    flat, unravel = ravel_pytree(params)
    root = jnp.sqrt(loop.action_noise)  # diagonal
    action_nodes, action_weights = _gauss_hermite(ACTION_NODES, num_actions)
    action_nodes = jnp.pad(action_nodes, ((0, 0), (size, 1)))
    state_nodes, state_weights = _gauss_hermite(STATE_NODES, size)
    state_nodes = jnp.pad(state_nodes, ((0, 0), (0, 1)))

    def score(z):
        obs, action = z[:size], z[size:-1]
        step = lambda flat: policy.step(unravel(flat), policy.initial_state(), obs)
        return jax.grad(lambda flat: step(flat)[1].log_prob(action))(flat)

    def at_step(mean, state_root, value_form, action_form, return_variance):
        def at_state(node):
            x = mean + state_root @ node
            z = (loop.policy @ x)[None] + action_nodes @ root
            scores = jax.vmap(score)(z)
            value = -(x @ value_form @ x)
            advantage = -at(action_form, z) - value
            credit = advantage + value if baseline == "none" else advantage
            # No baseline changes the mean over actions; the advantage cancels least.
            drift = (action_weights * advantage) @ scores
            spread = jnp.sum((credit[:, None] * scores - drift[None]) ** 2, axis=1)
            noise = at(return_variance, z) * jnp.sum(scores**2, axis=1)
            return action_weights @ noise, action_weights @ spread, drift

        batch = min(max(1, chunk_size // len(action_nodes)), len(state_nodes))
        trajectory, action, drift = jax.lax.map(at_state, state_nodes, batch_size=batch)
        overall = state_weights @ drift
        state = state_weights @ jnp.sum((drift - overall[None]) ** 2, axis=1)
        return _Step(state_weights @ trajectory, state_weights @ action, state, overall)

    return at_step


def _gauss_hermite(num: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Nodes `[num^size, size]` and weights of a tensor rule for a standard normal vector."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    points = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), axis=-1).reshape(-1, size)
    products = np.stack(np.meshgrid(*[weights] * size, indexing="ij"), axis=-1).prod(-1).ravel()
    return jnp.asarray(points, float), jnp.asarray(products / products.sum(), float)


def _root(covariance: jax.Array) -> jax.Array:
    """Symmetric square roots of `[..., D, D]` covariances, which may be singular."""
    variances, vectors = jnp.linalg.eigh(covariance)
    scaled = vectors * jnp.sqrt(jnp.maximum(variances, 0))[..., None, :]
    return scaled @ jnp.swapaxes(vectors, -1, -2)


def _check_dimensions(system: LQG) -> None:
    state, action = np.shape(system.control)
    num_nodes = STATE_NODES**state * ACTION_NODES**action
    if num_nodes > MAX_NODES:
        raise ValueError(
            f"a system of {state} state and {action} action dimensions takes {num_nodes} nodes; "
            f"variance_decomposition allows {MAX_NODES}"
        )
