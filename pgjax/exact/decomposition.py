"""Where the variance of a policy gradient comes from, exactly, on a finite MDP."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator, time_weights
from pgjax.exact import credits, model, moments, objectives
from pgjax.policies import Params, Policy


class Decomposition(NamedTuple):
    """Parts of the variance of one step's term of the gradient; they add up to it."""

    trajectory: jax.Array  # [] of the return, given state and action
    action: jax.Array  # [] of the action, given the state
    state: jax.Array  # [] of the state


def variance_decomposition(
    mdp: MDP,
    policy: Policy,
    params: Params,
    hyper: Hyper,
    *,
    horizon: int,
    value: jax.Array | None = None,
    state_weighting: str = "discounted",
) -> Decomposition:
    """The law of total variance for one step's term of the policy gradient.

        g = (G_t - b_t(s)) u,   u = grad log pi(a | s)
        trajectory = E[Var(G_t | s, a) |u|^2]
        action     = E[tr Var_a((Q_t(s, a) - b_t(s)) u | s)]
        state      = tr Var(E_a[Q_t(s, a) u | s])

    The step is drawn from the visits of an episode, (t, s) in proportion to w_t P(s_t = s). A
    baseline changes the part of the action only, an action-dependent one could remove it, and
    neither touches the other two.

    Args:
      mdp: transition, reward, initial and terminal states.
      policy: any policy without memory over finitely many actions.
      params: its parameters.
      hyper: only the discount matters.
      horizon: maximum number of steps of an episode, T.
      value: the baseline b, `[S]`, `[T, S]` or `[T + 1, S]`; none by default.
      state_weighting: `discounted` or `uniform`.

    Returns:
      The traces of the three covariances.

    Raises:
      ValueError: as `exact_moments`.

    Source: Tucker et al. 2018, "The Mirage of Action-Dependent Baselines", eq. 4.
    """
    chosen = estimator("reward_to_go", "none" if value is None else "value", state_weighting)
    moments.check(chosen, hyper, horizon, num_episodes=1)
    baseline = moments.given_values(mdp, chosen, value, horizon)[:-1]
    tables = model.build(mdp, policy, params)
    score = model.scores(mdp, policy, params)
    norm = jnp.sum(score**2, axis=-1)
    credit = credits.moments(tables, "reward_to_go", hyper, jnp.pad(baseline, ((0, 1), (0, 0))))
    mean, square = credit.mean[..., 0], credit.square[..., 0, 0]
    visits = objectives.state_probs(tables, horizon)
    visits *= time_weights(state_weighting, hyper, horizon)[:, None]
    visits /= jnp.sum(visits)
    chance = visits[..., None] * tables.probs[None]
    of_state = jnp.einsum("sa,tsa,sad->tsd", tables.probs, mean, score)
    squared = jnp.sum(visits * jnp.sum(of_state**2, axis=-1))
    overall = jnp.einsum("ts,tsd->d", visits, of_state)
    centred = (mean - baseline[..., None]) ** 2
    return Decomposition(
        trajectory=jnp.sum(chance * (square - mean**2) * norm[None]),
        action=jnp.sum(chance * centred * norm[None]) - squared,
        state=squared - jnp.sum(overall**2),
    )
