"""The baselines that leave the least variance, exactly, on a finite MDP."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pgjax import checks
from pgjax.environments import MDP
from pgjax.estimators import Estimator, Hyper, time_weights
from pgjax.exact import credits, episode, model, moments, objectives
from pgjax.policies import Params, Policy

DEPENDS_ON = ("nothing", "parameter", "time", "state", "state_and_time")
"""What a baseline may look at."""


def optimal_baseline(
    mdp: MDP,
    policy: Policy,
    params: Params,
    estimator: Estimator,
    hyper: Hyper,
    *,
    horizon: int,
    depends_on: str,
    value: jax.Array | None = None,
) -> Any:
    """The baseline that minimises the trace of a single episode's covariance.

    With the scores u_t = grad log pi(a_t | s_t), which are uncorrelated between times, and the
    gradient without a baseline, X = sum_k w_k u_k y_k,

        b_t(s) = E[u_t . X | s_t = s] / (w_t E[|u_t|^2 | s_t = s])

    and numerator and denominator are summed, with weights w_t P(s_t = s) and w_t^2 P(s_t = s), over
    what the baseline does not depend on. For the total return X = U R and b = E[|U|^2 R] / E|U|^2,
    where U = sum_t u_t. A baseline for each parameter takes the products of single entries instead
    of inner products.

    Args:
      mdp: transition, reward, initial and terminal states.
      policy: any policy without memory over finitely many actions.
      params: its parameters.
      estimator: form and state weighting; its own baseline is ignored.
      hyper: discount, lambda and the like.
      horizon: maximum number of steps of an episode, T.
      depends_on: `nothing`, `parameter`, `time`, `state` or `state_and_time`; for the total
        return one of the first two.
      value: values of the states for bootstrapping forms, as in `exact_moments`.

    Returns:
      `[]`, a pytree like `params`, `[T]`, `[S]` or `[T, S]`; zero where it makes no difference.

    Raises:
      ValueError: an unknown `depends_on`, and as `exact_moments`.

    Source: Greensmith et al. 2004, theorem 8; Peters & Schaal 2008 for each parameter.
    """
    checks.choice("depends_on", depends_on, DEPENDS_ON)
    estimator = estimator._replace(baseline="none")
    checks.choice("form", estimator.form, sorted(moments.CLOSED))
    moments.check(estimator, hyper, horizon, num_episodes=1)
    given = moments.given_values(mdp, estimator, value, horizon)
    tables = model.build(mdp, policy, params)
    score = model.scores(mdp, policy, params)
    unravel = ravel_pytree(model.precise(params))[1]
    if estimator.form == "total_return":
        if depends_on not in ("nothing", "parameter"):
            raise ValueError(
                f"depends_on={depends_on!r} does not go with form='total_return', which credits "
                f"every step alike; choose nothing or parameter, or form='reward_to_go'"
            )
        square = episode.joint(tables, score, hyper, horizon).square
        if depends_on == "parameter":
            return unravel(_ratio(square[1], square[0]))
        return _ratio(jnp.sum(square[1]), jnp.sum(square[0]))
    weight = time_weights(estimator.state_weighting, hyper, horizon)
    axis = 0 if depends_on == "parameter" else 1
    above, below = _products(tables, score, estimator, hyper, given, weight, axis)
    if depends_on == "state_and_time":
        return _ratio(above, weight[:, None] * below)
    above, below = weight[:, None] * above, weight[:, None] ** 2 * below
    if depends_on == "time":
        return _ratio(jnp.sum(above, axis=1), jnp.sum(below, axis=1))
    if depends_on == "nothing":
        return _ratio(jnp.sum(above), jnp.sum(below))
    baseline = _ratio(jnp.sum(above, axis=0), jnp.sum(below, axis=0))
    return unravel(baseline) if depends_on == "parameter" else baseline


def _products(tables, score, estimator, hyper, given, weight, axis):
    """E[u_t o X; s_t = s] and E[u_t o u_t; s_t = s], summed over one of the axes of `[T, S, D]`."""
    credit = credits.moments(tables, estimator.form, hyper, given).mean
    rec = credits.recursion(tables, estimator.form, hyper, given)
    probs = objectives.state_probs(tables, len(weight))
    last = jnp.eye(len(rec.carry), dtype=score.dtype)[-1]

    def forward(past, inputs):
        """sum_{k<t} w_k E[u_k; s_t = s] times the share of y_t in y_k, [M, S, D]."""
        probs, weight = inputs
        now = jnp.einsum("s,sa,sad,sak->kd", probs, tables.probs, score, tables.transition)
        now *= weight * tables.live[:, None]
        moved = jnp.einsum("sk,msd->mkd", tables.move, past) + last[:, None, None] * now[None]
        return jnp.einsum("mn,mkd->nkd", rec.carry, moved), past

    def back(ahead, inputs):
        past, credit, probs, weight = inputs
        paired = jnp.einsum("sa,sam,sad->msd", tables.probs, credit, score)
        rest = weight * credit[..., -1, None] * score + tables.expect_next(ahead)
        own = jnp.einsum("sa,sad,sad->sd", tables.probs, score, rest)
        above = jnp.sum(past * paired, axis=0) + probs[:, None] * own
        below = probs[:, None] * jnp.einsum("sa,sad->sd", tables.probs, score**2)
        ahead = jnp.einsum("sa,sad->sd", tables.probs, rest)
        return ahead, (jnp.sum(above, axis=axis), jnp.sum(below, axis=axis))

    blank = jnp.zeros_like(score[:, 0])
    start = jnp.zeros((len(rec.carry), *blank.shape), score.dtype)
    _, past = jax.lax.scan(forward, start, (probs, weight))
    _, products = jax.lax.scan(back, blank, (past, credit, probs, weight), reverse=True)
    return products


def _ratio(above, below):
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
