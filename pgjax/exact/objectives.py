"""Objectives, values and state distributions, exactly, on a finite MDP.

A horizon of T steps gives the finite-horizon objective, whose values depend on the time; None gives
the infinite one, discounted, or undiscounted where every episode ends.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.environments import MDP
from pgjax.estimators import Hyper, time_weights
from pgjax.exact import model
from pgjax.exact.model import Model
from pgjax.policies import Params, Policy
from pgjax.rollout import Trajectory


class Values(NamedTuple):
    """V and Q, zero in terminal states; without the time axis for an infinite horizon."""

    state: jax.Array  # [T + 1, S] V_t(s), the last zero, or [S]
    action: jax.Array  # [T, S, A] Q_t(s, a), or [S, A]


def expected_return(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """The objective: J_gamma = E[sum_{t<T} gamma^t r_t].

    Differentiable in `params` and `hyper.discount`, any number of times.

    Args:
      mdp: transition, reward, initial and terminal states; observations if states are aliased.
      policy: any policy without memory over finitely many actions.
      params: its parameters.
      hyper: only the discount matters.
      horizon: maximum number of steps of an episode, T; None for no limit.

    Returns:
      A scalar.

    Raises:
      ValueError: an invalid MDP, a discount outside [0, 1], a horizon below one, or an undiscounted
        infinite horizon on which some state that is visited never reaches a terminal one, so that
        J diverges.
    """
    return objective(mdp, policy, params, hyper, horizon)(params)


def objective(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, horizon: int | None
) -> Callable[[Params], jax.Array]:
    """J_gamma as a function of the parameters, to be differentiated where it was checked."""
    tables_at = _checked(mdp, policy, params, hyper, horizon)

    def expected(params):
        tables = tables_at(params)
        return tables.initial @ _state_values(tables, hyper, horizon)[0]

    return expected


def values(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> Values:
    """V and Q of a policy.

        Q_t(s, a) = E[r + gamma V_{t+1}(s') | s, a],   V_t(s) = sum_a pi(a | s) Q_t(s, a)

    With V_T = 0, or the fixed point of both for an infinite horizon. On an undiscounted infinite
    horizon, states that are never visited and may never reach a terminal one have the value NaN,
    and so have actions that may lead to them. Arguments and errors as in `expected_return`.
    """
    tables = _checked(mdp, policy, params, hyper, horizon)(params)
    state = _state_values(tables, hyper, horizon)
    following = state[1:] if horizon is not None else state
    future = jnp.moveaxis(tables.expect_next(following.T), -1, 0)
    action = tables.mean_reward[None] + hyper.discount * future
    if horizon is not None:
        return Values(state, action)
    nowhere = _endless(mdp, policy, params, hyper, horizon)
    into = nowhere[:, None] | jnp.any((tables.transition > 0) & nowhere[None, None], axis=-1)
    state, action = state[0], action[0]
    return Values(jnp.where(nowhere, jnp.nan, state), jnp.where(into, jnp.nan, action))


def visits(
    mdp: MDP, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """Discounted visits of live states: d_t(s) = gamma^t P(s_t = s), not normalised.

    Terminal states are never visited. Arguments and errors as in `expected_return`.

    Returns:
      `[T, S]`; `[S]` summed over all t for an infinite horizon.
    """
    tables = _checked(mdp, policy, params, hyper, horizon)(params)
    if horizon is None:
        return jnp.linalg.solve(_resolvent(tables, hyper).T, tables.initial)
    return state_probs(tables, horizon) * time_weights("discounted", hyper, horizon)[:, None]


def action_values(
    mdp: MDP, policy: Policy, hyper: Hyper, *, horizon: int | None
) -> Callable[[Params, Trajectory], jax.Array]:
    """Exact Q for `gradients.all_action_gradient`: `(params, trajectory) -> [N, T, A]`.

    Rows have `horizon` steps; with None they are of any length, and Q is that of the infinite
    horizon at every step, zero where it is undefined, which the policy never comes to.

    Raises:
      ValueError: aliased states, whose Q cannot be told from what is observed; and as in
        `expected_return`.
    """
    if mdp.observation is not None:
        raise ValueError("mdp.observation hides the state, and Q is a function of the state")
    model.check_objective(mdp, policy, hyper, horizon)

    def look_up(params: Params, trajectory: Trajectory) -> jax.Array:
        table = values(mdp, policy, params, hyper, horizon=horizon).action
        table = jnp.where(jnp.isnan(table), 0, table)
        if horizon is None:
            return table[trajectory.obs]
        return table[jnp.arange(horizon)[None], trajectory.obs]

    return look_up


def state_probs(tables: Model, horizon: int) -> jax.Array:
    """P(s_t = s) of live states, `[T, S]`."""
    move = tables.move
    step = lambda probs, _: (probs @ move, probs)
    return jax.lax.scan(step, tables.initial, length=horizon)[1]


def average_reward(mdp: MDP, policy: Policy, params: Params) -> jax.Array:
    """Long-run reward per step of a continuing task: eta = E_{s ~ mu, a ~ pi}[r].

    Differentiable in `params`.

    Raises:
      ValueError: an invalid MDP, a terminal state, or a chain that is reducible.

    Source: Sutton & Barto 2018, eq. 10.7.
    """
    return average_objective(mdp, policy, params)(params)


def average_objective(mdp: MDP, policy: Policy, params: Params) -> Callable[[Params], jax.Array]:
    """eta as a function of the parameters, to be differentiated where it was checked."""
    tables_at = _checked_continuing(mdp, policy, params)

    def eta(params):
        tables = tables_at(params)
        return _stationary(tables) @ tables.policy_reward

    return eta


def stationary(mdp: MDP, policy: Policy, params: Params) -> jax.Array:
    """The share of time spent in each state: mu = mu P_pi, `[S]`; errors as `average_reward`."""
    return _stationary(_checked_continuing(mdp, policy, params)(params))


def differential_values(mdp: MDP, policy: Policy, params: Params) -> Values:
    """Differential values h and q of a continuing task; errors as `average_reward`.

        q(s, a) = E[r - eta + h(s') | s, a],   h(s) = sum_a pi(a | s) q(s, a),   mu . h = 0

    Source: Sutton & Barto 2018, section 10.3.
    """
    tables = _checked_continuing(mdp, policy, params)(params)
    probs = _stationary(tables)
    reward = tables.policy_reward
    eta = probs @ reward
    identity = jnp.eye(len(probs), dtype=probs.dtype)
    # Adding mu to every row makes the matrix regular, and its solution the one with mu . h = 0.
    state = jnp.linalg.solve(identity - tables.move + probs[None], reward - eta)
    return Values(state, tables.mean_reward - eta + tables.expect_next(state))


def _checked(mdp, policy, params, hyper, horizon) -> Callable[[Params], Model]:
    """The tables as a function of the parameters, once the objective is known to exist."""
    model.check_objective(mdp, policy, hyper, horizon)
    model.check_fit(mdp, policy, params)
    endless = _endless(mdp, policy, params, hyper, horizon)

    def tables_at(params):
        tables = model.build(mdp, policy, params)
        # Never visited: without their moves the linear system is regular, and J is unchanged.
        return tables._replace(live=jnp.where(endless, 0, tables.live))

    return tables_at


def _endless(mdp, policy, params, hyper, horizon) -> np.ndarray:
    """States from which an undiscounted episode without a limit may never end, `[S]` bool.

    Raises:
      ValueError: one of them is visited.
    """
    none = np.zeros(jnp.shape(mdp.terminal), bool)
    if horizon is not None or model.is_discounted(hyper):
        return none
    possible = model.moves(mdp, policy, params)
    if possible is None:
        return none
    endless = ~model.leads_to(possible, np.asarray(mdp.terminal, bool))
    starts = np.asarray(mdp.initial) > 0
    visited = endless & model.leads_to(possible.T, starts)
    if visited.any():
        raise ValueError(
            f"horizon=None with discount=1: J diverges, because state {visited.argmax()} is "
            f"visited and never reaches a terminal state; mark one terminal, or give a horizon or "
            f"a discount below 1"
        )
    return model.leads_to(possible, endless)


def _checked_continuing(mdp, policy, params) -> Callable[[Params], Model]:
    """The tables as a function of the parameters, once the average reward is known to exist."""
    tables_at = lambda params: model.build(mdp, policy, params)
    model.check(mdp, policy)
    model.check_fit(mdp, policy, params)
    possible = model.moves(mdp, policy, params)
    if possible is None:
        return tables_at
    if np.any(mdp.terminal):
        raise ValueError(
            f"average reward is for continuing tasks, and state {np.argmax(mdp.terminal)} is "
            f"terminal; let it lead back to a start instead"
        )
    apart = model.not_communicating(possible)
    if apart.any():
        raise ValueError(
            f"the chain is reducible: state {apart.argmax()} and state 0 do not lead to each "
            f"other, so the average reward may depend on the start; leave out what is not recurrent"
        )
    return tables_at


def _state_values(tables: Model, hyper: Hyper, horizon: int | None) -> jax.Array:
    """V, `[T + 1, S]`, or `[1, S]` for an infinite horizon."""
    reward = tables.policy_reward
    if horizon is None:
        return jnp.linalg.solve(_resolvent(tables, hyper), reward)[None]
    move = hyper.discount * tables.move
    end = jnp.zeros_like(reward)

    def back(value, _):
        value = reward + move @ value
        return value, value

    _, state = jax.lax.scan(back, end, length=horizon)
    return jnp.concatenate([state[::-1], end[None]])


def _resolvent(tables: Model, hyper: Hyper) -> jax.Array:
    """I - gamma P_pi, whose inverse sums all discounted moves."""
    return jnp.eye(len(tables.live), dtype=tables.live.dtype) - hyper.discount * tables.move


def _stationary(tables: Model) -> jax.Array:
    ones = jnp.ones_like(tables.initial)
    # mu (I - P + 1 1^T) = 1^T, which is regular for an irreducible chain.
    matrix = jnp.eye(len(ones), dtype=ones.dtype) - tables.move + 1
    return jnp.linalg.solve(matrix.T, ones)
