"""The policy gradient from windows of persistent rows: how actor-critics collect their data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from pgjax import estimators, rollout, sharding
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.policy import batch_gradient, check_batch, policy_part
from pgjax.gradients.samples import GRADIENT_FIELDS
from pgjax.policies import Policy, ValueFunction
from pgjax.rollout import Rows, Trajectory
from pgjax.score import Metrics, StatefulGradientFn

EPISODE_METRICS = ("return", "discounted_return", "episode_length")


class SegmentState(NamedTuple):
    """What is carried from window to window."""

    rows: Rows
    under_way: Metrics  # each [N], sums over the episodes that have not ended yet
    ended: Metrics  # each [], means over the last episodes to end


def segment_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    *,
    num_rows: int,
    horizon: int,
    value_function: ValueFunction | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> StatefulGradientFn:
    """Policy gradient of windows of persistent rows, as a `StatefulGradientFn`.

        g = 1/N sum_i sum_t ( Psi_it u_it + c grad H(pi(. | s_it)) )
        u_it = grad log pi(a_it | s_it)

    A window may begin and end within an episode: at its end the form bootstraps from the true next
    observation. Sum over time, mean over rows, as everywhere: a window twice as long has twice the
    gradient, and plain gradient ascent then needs half the learning rate; Adam is unaffected. The
    value's part is a mean over steps, as in `policy_gradient`. Params and gradient are
    `{"policy": ..., "value": ...}`.

    With exact values, at any lambda, with an unbiased baseline and without an entropy bonus
    (c = `hyper.entropy_cost` = 0), the mean is

        E g = sum_t E[ u_t A_gamma(s_t, a_t) ]

    over the states the rows are in; under the stationary law of one episode after another, that is
    T times one mean. Every visit counts the same, which is common practice and biased: unless
    gamma = 1 that is the gradient of no function. At gamma = 1, and without a time limit, it is
    T / E[L] grad J, where L is the length of an episode and T / E[L] their number in a window. With
    learned values it is biased at lambda = 1 too, because the end of a window bootstraps.

    The weights gamma^t of the discounted state weighting count from the start of an episode, which
    is not in the window, and Monte Carlo forms would take the rest of a window for the return: both
    are refused.

    Args:
      env: a gymnax environment.
      env_params: its parameters.
      policy: the policy; through its memory, if any, backpropagation through time is truncated at
        the start of the window.
      estimator: a bootstrapping form, any baseline, `uniform` state weighting.
      hyper: discount, lambda and the like.
      num_rows: N.
      horizon: steps per window, T.
      value_function: V.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.
      mesh: devices that the rows are shared out over (`sharding.mesh`); None for one.

    Returns:
      A `StatefulGradientFn`. Metrics, over the episodes that ended in the window, from their true
      start: mean `return`, `discounted_return` and `episode_length`; where none ended, those of the
      last window in which one did, and NaN before the first. Over the window: `ends` (how many
      episodes ended), `env_steps`, `entropy` (minus the mean log-probability of the actions taken)
      and `value_loss`.

    Raises:
      ValueError: counts below one, 2^31 steps or more, rates outside [0, 1], a form that does not
        bootstrap, another state weighting, no value function, or too few rows for the baseline or
        not a multiple of the devices.

    Source: Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning"; for the bias,
    Nota & Thomas 2020, "Is the Policy Gradient a Gradient?".
    """
    check_batch("num_rows", num_rows, horizon)
    sharding.check("num_rows", num_rows, mesh)
    learn = batch_gradient(policy, estimator, hyper, value_function, chunk_size, mesh=mesh)
    estimators.check_bootstraps(estimator)
    if estimator.state_weighting != "uniform":
        raise ValueError(
            f"state_weighting={estimator.state_weighting!r} counts from the start of an episode, "
            "which is not in the window; choose 'uniform'"
        )
    estimators.check_rows(estimator, num_rows, "num_rows")

    def init(key, params):
        rows = rollout.start(key, env, env_params, policy, num_rows=num_rows)
        dtype = jnp.result_type(float)
        under_way = {name: jnp.zeros(num_rows, dtype) for name in EPISODE_METRICS}
        ended = {name: jnp.array(jnp.nan, dtype) for name in EPISODE_METRICS}
        return SegmentState(rows, under_way, ended)

    def step(key, params, state):
        own = policy_part(params, value_function)
        trajectory, rows = rollout.segments(
            key,
            env,
            env_params,
            policy,
            own,
            state.rows,
            horizon=horizon,
            fields=(*GRADIENT_FIELDS, "final_obs"),
            packed=True,
            mesh=mesh,
        )
        gradient, metrics = learn(params, trajectory, state.rows.policy_state)
        ends = episode_ends(trajectory, rows)
        under_way, ended = _tally(trajectory.reward, ends, hyper.discount, state)
        metrics |= ended | {
            "ends": jnp.sum(ends, dtype=jnp.int32),
            "env_steps": jnp.int32(trajectory.mask.size),
        }
        return gradient, SegmentState(rows, under_way, ended), metrics

    return StatefulGradientFn(init, step)


def episode_ends(trajectory: Trajectory, rows: Rows) -> jax.Array:
    """Where episodes ended, `[N, T]`; the last step is cut even if none ended there."""
    return trajectory.boundary.at[:, -1].set(rows.elapsed == 0)


def _tally(
    reward: jax.Array, ends: jax.Array, discount: ArrayLike, state: SegmentState
) -> tuple[Metrics, Metrics]:
    """Sums over the episodes under way after a window, and means over those that ended in it."""
    elapsed = _elapsed(ends, state.rows.elapsed)
    addends = {
        "return": reward,
        "discounted_return": jnp.asarray(discount, reward.dtype) ** elapsed * reward,
        "episode_length": jnp.ones_like(reward),
    }
    time = jnp.arange(ends.shape[1])[None]
    last_end = jnp.max(jnp.where(ends, time, -1), axis=1, keepdims=True)
    finished, num_ends = time <= last_end, jnp.sum(ends)

    def sums(name, chosen):
        inside = jnp.sum(jnp.where(chosen, addends[name], 0), axis=1)
        return inside + jnp.where(chosen[:, 0], state.under_way[name], 0)

    def mean(name, last):
        return jnp.where(
            num_ends > 0, jnp.sum(sums(name, finished)) / jnp.maximum(num_ends, 1), last
        )

    under_way = {name: sums(name, ~finished) for name in state.under_way}
    return under_way, {name: mean(name, last) for name, last in state.ended.items()}


def _elapsed(ends: jax.Array, before: jax.Array) -> jax.Array:
    """Steps since the episode began, `[N, T]`; `before [N]` of them precede the window."""
    time = jnp.broadcast_to(jnp.arange(ends.shape[1]), ends.shape)
    starts = jnp.where(jnp.pad(ends[:, :-1], ((0, 0), (1, 0))), time, -before[:, None])
    return time - jax.lax.cummax(starts, axis=1)
