"""The exact mean and variance of estimators on a finite MDP, by backward recursion.

Every form but the total return is a linear recursion over time, y_t = c_t(s, a, s') + K y_{t+1},
with one component, or n of them for the n-step return. The gradient is one too:

    g_t = w_t (y_t - b_t(s_t)) grad log pi(a_t | s_t) + g_{t+1},

so that E[y|s], E[y y^T|s], E[g|s], E[y g|s] and E[|g|^2|s] follow from those one step later. No
trajectory is enumerated, and the cost is O(T S^2 A D) for D parameters; baselines of the batch
couple all pairs of times, which adds O(T^2 S^2 A).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pgjax import baselines, checks, estimators
from pgjax.environments import MDP
from pgjax.estimators import Estimator, Hyper
from pgjax.exact import credits, enumeration, episode, model, objectives
from pgjax.exact.model import Model
from pgjax.policies import Params, Policy

POLYNOMIAL = frozenset({"none", "constant", "value", "batch_mean", "leave_one_out"})
"""Baselines whose estimators are polynomials of returns and scores, in any form of `CLOSED`."""

CLOSED = credits.RECURSIVE | {"total_return"}
"""Forms whose moments close under a recursion; with others, and other baselines, outcomes are
enumerated."""


class Moments(NamedTuple):
    """Mean, total variance and bias of an estimator."""

    mean: Params  # like params, E[g]
    trace: jax.Array  # [] trace of the covariance, E|g - E g|^2
    bias: Params  # like params, E[g] - grad J_gamma


def exact_moments(
    mdp: MDP,
    policy: Policy,
    params: Params,
    estimator: Estimator,
    hyper: Hyper,
    *,
    horizon: int,
    num_episodes: int = 1,
    value: jax.Array | None = None,
) -> Moments:
    """Exact mean, bias and total variance of the gradient of a batch of episodes.

    For any horizon, without enumeration, if the form is in `CLOSED` and the baseline in
    `POLYNOMIAL`. Batches with `batch_mean` and `leave_one_out` are U-statistics of order two,

        g = 1/K sum_i X_ii - 1/(K (K-1)) sum_{i != j} X_ij,   X_ij = sum_t w_t u_it (y_jt - E y_t)

    whose two sums are uncorrelated. The other baselines divide by counts or spreads of the batch,
    so that the estimator is no polynomial: its outcomes are enumerated, on tiny problems only.
    Differentiable in `params`, `value` and the numbers in `hyper`. Where it is called often, it
    belongs inside `jax.jit`.

    Args:
      mdp: transition, reward, initial and terminal states; observations if states are aliased.
      policy: any policy without memory over finitely many actions.
      params: its parameters.
      estimator: form, baseline and state weighting.
      hyper: discount, lambda and the like.
      horizon: maximum number of steps of an episode, T.
      num_episodes: episodes per gradient, K.
      value: `[S]`, `[T, S]` or `[T + 1, S]` values of the states, for estimators that need them;
        `[T, S]` means that values are zero after the horizon, as those of `values` are. With the
        baseline `value` and a Monte-Carlo form it may be any function of state and time.

    Returns:
      `Moments`; the bias is relative to grad J_gamma within the horizon.

    Raises:
      ValueError: as `expected_return`; values that are needed and missing or of another shape,
        too few episodes, an entropy bonus, or a batch that has too many outcomes to enumerate.

    Source: leave-one-out after Kool et al. 2019.
    """
    check(estimator, hyper, horizon, num_episodes)
    given = given_values(mdp, estimator, value, horizon)
    if estimator.baseline in POLYNOMIAL and estimator.form in CLOSED:
        problem = _Problem(
            tables=model.build(mdp, policy, params),
            score=model.scores(mdp, policy, params),
            estimator=estimator,
            hyper=hyper,
            value=given,
            weight=estimators.time_weights(estimator.state_weighting, hyper, horizon),
            num_episodes=num_episodes,
        )
        total = estimator.form == "total_return"
        mean, trace = _total_return(problem) if total else _recursive(problem)
    else:
        mean, trace = enumeration.moments(
            mdp, policy, params, estimator, hyper, horizon, num_episodes, given
        )
    return _against_truth(mdp, policy, params, hyper, horizon, mean, trace)


def all_action_moments(
    mdp: MDP,
    policy: Policy,
    params: Params,
    hyper: Hyper,
    *,
    horizon: int,
    num_episodes: int = 1,
    action_value: jax.Array | None = None,
    state_weighting: str = "discounted",
) -> Moments:
    """Exact moments of the all-action gradient, random only in the states that are visited.

        g = 1/N sum_i sum_t w_t sum_a grad pi(a | s_it) Q_t(s_it, a)

    Args:
      action_value: `[S, A]` or `[T, S, A]`; the exact Q by default, which leaves no bias.
      state_weighting: `discounted` or `uniform`.

    Other arguments and errors as in `exact_moments`.
    """
    estimator = estimators.estimator("reward_to_go", "none", state_weighting)
    check(estimator, hyper, horizon, num_episodes)
    if action_value is None:
        action_value = objectives.values(mdp, policy, params, hyper, horizon=horizon).action
    action_value = jnp.asarray(action_value)
    tables = model.build(mdp, policy, params)
    shape = tables.probs.shape
    if action_value.shape not in (shape, (horizon, *shape)):
        raise ValueError(
            f"action_value has shape {action_value.shape}; expected {shape} or {(horizon, *shape)}"
        )
    action_value = jnp.broadcast_to(action_value, (horizon, *shape))
    score = model.scores(mdp, policy, params)
    move = tables.move

    def back(following, inputs):
        mean, square = following
        action_value, weight = inputs
        own = weight * jnp.einsum("sa,sa,sad->sd", tables.probs, action_value, score)
        ahead = move @ mean
        square = jnp.sum(own * (own + 2 * ahead), axis=-1) + move @ square
        return (own + ahead, square), None

    end = (jnp.zeros_like(score[:, 0]), jnp.zeros_like(tables.initial))
    inputs = (action_value, estimators.time_weights(state_weighting, hyper, horizon))
    (mean, square), _ = jax.lax.scan(back, end, inputs, reverse=True)
    mean, trace = _at_start(tables, mean, square, num_episodes)
    return _against_truth(mdp, policy, params, hyper, horizon, mean, trace)


def _against_truth(mdp, policy, params, hyper, horizon, mean, trace) -> Moments:
    """Moments with the bias of a mean `[D]` relative to grad J_gamma."""
    params = model.precise(params)
    mean = ravel_pytree(params)[1](mean)
    truth = jax.grad(objectives.objective(mdp, policy, params, hyper, horizon))(params)
    return Moments(mean, trace, jax.tree.map(jnp.subtract, mean, truth))


class _Problem(NamedTuple):
    """All that moments depend on."""

    tables: Model
    score: jax.Array  # [S, A, D]
    estimator: Estimator
    hyper: Hyper
    value: jax.Array  # [T + 1, S]
    weight: jax.Array  # [T] of the states
    num_episodes: int

    def recursion(self) -> credits.Recursion:
        return credits.recursion(self.tables, self.estimator.form, self.hyper, self.value)


def _recursive(problem: _Problem):
    """Mean and trace for forms that are recursions, alone or coupled by their batch."""
    tables, score, estimator, hyper, value, weight, num_episodes = problem
    credit = credits.moments(tables, estimator.form, hyper, value)
    if estimator.baseline not in baselines.COUPLED:
        return _alone(problem, credit, _baseline(estimator, hyper, value))
    probs = objectives.state_probs(tables, len(weight))
    spent = jnp.einsum("ts,sa,tsa->t", probs, tables.probs, credit.mean[..., -1])
    squares = jnp.einsum("ts,sa,tsa->t", probs, tables.probs, credit.square[..., -1, -1])
    mean, own = _alone(problem, credit, jnp.broadcast_to(spent[:, None], probs.shape))
    visited = jnp.einsum("ts,sa,sa->t", probs, tables.probs, jnp.sum(score**2, axis=-1))
    pairs = jnp.sum(weight**2 * visited * (squares - spent**2))
    pairs += _products(problem, credit.mean, probs)
    trace = own + pairs / (num_episodes * (num_episodes - 1))
    return _shrunk(estimator, num_episodes, mean, trace)


def _alone(problem: _Problem, credit: credits.Credit, baseline: jax.Array):
    """Mean and trace of a batch of uncoupled episodes, with a baseline b_t(s) `[T, S]`."""
    tables, score, rec = problem.tables, problem.score, problem.recursion()
    norm = jnp.sum(score**2, axis=-1)
    move = tables.move
    weights = tables.probs[..., None] * tables.transition

    def back(following, inputs):
        gradient, product, square = following  # [S, D], [M, S, D], [S]
        value, credit, baseline, weight = inputs
        own = rec.own(*value)
        mean, last = credit.mean, credit.mean[..., -1]
        # y_t - b_t and its products with y_t, given state and action.
        psi = weight * (last - baseline[:, None])
        joint = weight * (credit.square[..., -1] - baseline[:, None, None] * mean)
        second = weight**2 * (
            credit.square[..., -1, -1] + baseline[:, None] * (baseline[:, None] - 2 * last)
        )
        carried = jnp.tensordot(rec.carry, product, axes=1)
        # E[y_t g_{t+1} | s, a] along the score, and E[g_{t+1} | s, a] along it.
        along = jnp.einsum("sad,kd->sak", score, gradient)
        ahead = jnp.einsum("sad,kd->sak", score, carried[-1])
        cross = jnp.sum(tables.transition * (own[-1] * along + ahead), axis=-1)
        cross -= baseline[:, None] * jnp.sum(tables.transition * along, axis=-1)
        square = (
            jnp.sum(tables.probs * (second * norm + 2 * weight * cross), axis=-1) + move @ square
        )
        paired = jnp.einsum("sa,sam,sad->msd", tables.probs, joint, score)
        paired += jnp.einsum("sak,msak,kd->msd", weights, own, gradient)
        paired += jnp.einsum("sk,mkd->msd", move, carried)
        gradient = jnp.einsum("sa,sa,sad->sd", tables.probs, psi, score) + move @ gradient
        return (gradient, paired, square), None

    num_components, num_states = rec.end.shape
    blank = jnp.zeros((num_components, num_states, score.shape[-1]), score.dtype)
    end = (blank[0], blank, jnp.zeros_like(tables.initial))
    inputs = ((problem.value[:-1], problem.value[1:]), credit, baseline, problem.weight)
    (gradient, _, square), _ = jax.lax.scan(back, end, inputs, reverse=True)
    return _at_start(tables, gradient, square, problem.num_episodes)


def _products(problem: _Problem, credit: jax.Array, probs: jax.Array) -> jax.Array:
    """sum_{t,k} w_t w_k E[u_t y_k] . E[u_k y_t], over all pairs of times.

    For t < k the first factor looks ahead and the second is K^(k-t) E[y_k u_k]: of y_t, only what
    comes after k depends on the action at k.
    """
    tables, score, weight, rec = problem.tables, problem.score, problem.weight, problem.recursion()
    horizon = len(weight)
    now = jnp.einsum("ts,sa,tsam,sad->tmd", probs, tables.probs, credit, score)
    aligned = jnp.einsum("sad,umd->saum", score, now)
    expected = jnp.einsum("sa,tsa->ts", tables.probs, credit[..., -1])

    def power(last, _):
        return last @ rec.carry, last

    last = jnp.eye(len(rec.carry), dtype=score.dtype)[-1]
    _, powers = jax.lax.scan(power, last, length=horizon)  # [T, M] e^T K^j

    def back(ahead, inputs):
        time, visits, weight_t, expected = inputs
        # E[y_k | s_t, a_t] of every later k; zero where k <= t.
        seen = tables.expect_next(ahead.T)
        later = jnp.arange(horizon) - time
        factor = jnp.where((later > 0)[:, None], powers[jnp.clip(later, 0)], 0)
        factor *= (weight_t * weight)[:, None]
        total = jnp.einsum("s,sa,sau,saum,um->", visits, tables.probs, seen, aligned, factor)
        ahead = jnp.einsum("sa,sau->us", tables.probs, seen)
        return ahead.at[time].set(expected), total

    inputs = (jnp.arange(horizon), probs, weight, expected)
    blank = jnp.zeros((horizon, len(tables.live)), score.dtype)
    _, totals = jax.lax.scan(back, blank, inputs, reverse=True)
    return jnp.sum(weight**2 * jnp.sum(now[:, -1] ** 2, axis=-1)) + 2 * jnp.sum(totals)


def _total_return(problem: _Problem):
    """Mean and trace of U (R - b), alone or as the sample covariance of R and U."""
    tables, score, estimator, hyper, _, weight, k = problem
    powers, gradients, squares = episode.joint(tables, score, hyper, len(weight))
    (_, mean, square), gradient = powers, gradients[1]
    normal, product, both = jnp.sum(squares, axis=-1)  # E[R^i |U|^2]
    norm = jnp.sum(gradient**2)
    if estimator.baseline not in baselines.COUPLED:
        b = hyper.constant if estimator.baseline == "constant" else 0.0
        return gradient, (both - 2 * b * product + b**2 * normal - norm) / k
    centred = both - 2 * mean * product + mean**2 * normal
    spread = (square - mean**2) * normal
    trace = ((k - 1) * centred - (k - 2) * norm + spread) / (k * (k - 1))
    return _shrunk(estimator, k, gradient, trace)


def _shrunk(estimator, num_episodes, mean, trace):
    """With the mean of the whole batch, leave-one-out shrinks by the factor (K - 1) / K."""
    if estimator.baseline == "leave_one_out":
        return mean, trace
    shrink = (num_episodes - 1) / num_episodes
    return shrink * mean, shrink**2 * trace


def _at_start(tables, gradient, square, num_episodes):
    mean = tables.initial @ gradient
    return mean, (tables.initial @ square - jnp.sum(mean**2)) / num_episodes


def _baseline(estimator, hyper, value):
    """b_t(s) of baselines that look at no other episode, `[T, S]`."""
    if estimator.baseline == "value" and not estimators.is_advantage(estimator.form):
        return value[:-1]
    number = hyper.constant if estimator.baseline == "constant" else 0.0
    return jnp.full_like(value[:-1], number)


def given_values(
    mdp: MDP, estimator: Estimator, value: jax.Array | None, horizon: int
) -> jax.Array:
    """The values as `[T + 1, S]`; zeros where none are needed.

    Raises:
      ValueError: values that are needed and missing, or of another shape.
    """
    num_states = jnp.shape(mdp.terminal)[0]
    dtype = jnp.result_type(float)
    if not estimators.needs_value(estimator):
        return jnp.zeros((horizon + 1, num_states), dtype)
    if value is None:
        raise ValueError(
            f"{'+'.join(estimator[:2])} needs value, [S], [T, S] or [T + 1, S]; the exact one is "
            f"exact.values(...).state"
        )
    value = jnp.asarray(value, dtype)
    if not checks.is_traced(mdp) and value.shape[-1:] == (num_states,):
        # States that are never visited may have no value.
        value = jnp.where(model.visited(mdp), value, jnp.zeros_like(value))
    if value.shape == (horizon, num_states):
        return jnp.pad(value, ((0, 1), (0, 0)))
    if value.shape not in ((num_states,), (horizon + 1, num_states)):
        raise ValueError(
            f"value has shape {value.shape}; expected [S], [T, S] or [T + 1, S] with "
            f"S={num_states}, T={horizon}"
        )
    return jnp.broadcast_to(value, (horizon + 1, num_states))


def check(estimator: Estimator, hyper: Hyper, horizon: int, num_episodes: int) -> None:
    """Refuses choices that have no exact moments."""
    estimators.check(estimator)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("num_episodes", num_episodes, 1)
    estimators.check_hyper(hyper)
    estimators.check_rows(estimator, num_episodes)
    estimators.check_no_bonus(hyper, "exact moments")
    if estimator.form == "n_step" and checks.is_traced(hyper.n):
        raise ValueError("n must be known: it is the number of equations of the n-step return")
