"""Many rows of a policy in an environment: whole episodes, or windows of rows that persist."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import batching, checks
from pgjax.environments import to_action
from pgjax.policies import Params, Policy

STEPS_BETWEEN_LOOKS = 32


class Trajectory(NamedTuple):
    """What N rows of T steps gave."""

    obs: jax.Array  # [N, T, *O]
    action: jax.Array  # [N, T, ...] what the distribution sampled, before squashing or clipping
    log_prob: jax.Array  # [N, T] under the policy that acted
    reward: jax.Array  # [N, T] zero after the end
    terminated: jax.Array  # [N, T] bool, natural end: the future is worth zero
    truncated: jax.Array  # [N, T] bool, cut by a time limit or the window
    mask: jax.Array  # [N, T] one while the row is live
    final_obs: Any = None  # [N, *O] after the last live step; [N, T, *O] after each, in segments


class Rows(NamedTuple):
    """Where N persistent rows stand between two windows."""

    state: Any  # [N, ...] of the environment
    obs: jax.Array  # [N, *O]
    policy_state: Any  # [N, ...] the policy's carry
    elapsed: jax.Array  # [N] int32, steps since the episode began
    time: jax.Array  # [] int32, steps since `start`


def episodes(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    *,
    num_episodes: int,
    horizon: int,
) -> Trajectory:
    """Independent episodes from the start, at most `horizon` steps each.

    An ended row keeps its last state and observation; stepping stops once every row has ended,
    so that the cost follows the longest episode of the batch, not the horizon.

    Args:
      key: typed PRNG key.
      env: a gymnax environment; its `step_env` is called, so nothing is reset inside a row.
      env_params: its parameters.
      policy: acts.
      params: the policy's parameters.
      num_episodes: rows, N.
      horizon: steps a row, T; a row cut there is truncated.

    Returns:
      A `Trajectory` of `[N, T, ...]`, zero wherever `mask` is zero.

    Raises:
      ValueError: `num_episodes` or `horizon` below one.
    """
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("horizon", horizon, 1)
    reset_key, action_key, env_key = jax.random.split(key, 3)
    step_rows = rows_step(action_key, env_key, env, env_params, policy, params)

    def step(carry, time):
        state, obs, policy_state, live = carry
        next_state, next_obs, policy_state, record = step_rows(time, state, obs, policy_state)
        window_ends = (time == horizon - 1) & ~record.terminated
        record = record._replace(truncated=record.truncated | window_ends)
        ended = record.terminated | record.truncated
        record = keep(record, jax.tree.map(jnp.zeros_like, record), live)
        state, obs = keep((next_state, next_obs), (state, obs), live)
        return (state, obs, policy_state, live & ~ended), record

    obs, state = _reset(reset_key, env, env_params, num_episodes)
    policy_state = _repeat(policy.initial_state(), num_episodes)
    carry = (state, obs, policy_state, jnp.ones(num_episodes, bool))
    (_, final_obs, _, _), records = _scan_while_live(step, carry, horizon)
    return records._replace(final_obs=final_obs)


def start(key: jax.Array, env: Any, env_params: Any, policy: Policy, *, num_rows: int) -> Rows:
    """Persistent rows at the start of their first episodes, for `segments`.

    Raises:
      ValueError: `num_rows` below one.
    """
    checks.at_least("num_rows", num_rows, 1)
    obs, state = _reset(key, env, env_params, num_rows)
    policy_state = _repeat(policy.initial_state(), num_rows)
    rows = Rows(state, obs, policy_state, jnp.zeros(num_rows, jnp.int32), jnp.int32(0))
    # Weak types would turn strong in the first window, and the second compile anew.
    return jax.tree.map(lambda x: x.astype(x.dtype), rows)


def segments(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    carry: Rows,
    *,
    horizon: int,
) -> tuple[Trajectory, Rows]:
    """The next window of rows that persist: where an episode ends, another begins.

    Ends inside a row are marked `terminated`, or `truncated` at the environment's own time limit,
    and the policy's memory starts afresh after them; the last step of the window is truncated
    unless terminated. What is drawn depends on the key and on `carry.time` only, so that two
    windows with one key are one window of twice the length. An episode that a window finds under
    way counts from the window's first step: gamma^t of the state weighting does too.

    Args:
      key: typed PRNG key; the same or another for each window.
      env: a gymnax environment.
      env_params: its parameters.
      policy: acts.
      params: the policy's parameters.
      carry: from `start`, or from the window before.
      horizon: steps a window, T.

    Returns:
      A `Trajectory` of `[N, T, ...]` that is live throughout, whose `final_obs [N, T, *O]` are the
      true next observations, before any reset; and the rows after it.

    Raises:
      ValueError: `horizon` below one.
    """
    checks.at_least("horizon", horizon, 1)
    num_rows = len(carry.elapsed)
    reset_key, action_key, env_key = jax.random.split(key, 3)
    step_rows = rows_step(action_key, env_key, env, env_params, policy, params)
    fresh_policy_state = _repeat(policy.initial_state(), num_rows)

    def step(rows, _):
        *following, record = step_rows(rows.time, rows.state, rows.obs, rows.policy_state)
        obs, state = _reset(jax.random.fold_in(reset_key, rows.time), env, env_params, num_rows)
        goes_on = ~(record.terminated | record.truncated)
        state, obs, policy_state = keep(following, [state, obs, fresh_policy_state], goes_on)
        elapsed = jnp.where(goes_on, rows.elapsed + 1, 0)
        record = record._replace(final_obs=following[1].astype(obs.dtype))
        return Rows(state, obs, policy_state, elapsed, rows.time + 1), record

    rows, records = jax.lax.scan(step, carry, length=horizon)
    trajectory = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), records)
    last_cut = trajectory.truncated[:, -1] | ~trajectory.terminated[:, -1]
    return trajectory._replace(truncated=trajectory.truncated.at[:, -1].set(last_cut)), rows


def _reset(key, env, env_params, num_rows):
    return jax.vmap(env.reset_env, (0, None))(jax.random.split(key, num_rows), env_params)


def rows_step(action_key, env_key, env, env_params, policy, params):
    """One step of all rows, with noise that depends on the time and nothing else.

    Returns:
      `(time, state, obs, policy_state, first_action=None) -> (state, obs, policy_state, record)`;
      `first_action`, if given, is taken at time zero.
    """
    step_row = jax.vmap(_row_step(env, env_params))
    act = jax.vmap(policy.step, (None, 0, 0))

    def step(time, state, obs, policy_state, first_action=None):
        policy_state, distribution = act(params, policy_state, obs)
        action = distribution.sample(jax.random.fold_in(action_key, time))
        if first_action is not None:
            action = jnp.where(time == 0, first_action, action)
        env_keys = jax.random.split(jax.random.fold_in(env_key, time), len(obs))
        next_obs, next_state, reward, terminated, truncated = step_row(
            env_keys, state, distribution, action
        )
        record = Trajectory(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            mask=jnp.ones_like(reward),
        )
        return next_state, next_obs, policy_state, record

    return step


def _row_step(env, env_params):
    """One environment step of one row, without gymnax's automatic reset."""
    space = env.action_space(env_params)

    def step(key, state, distribution, sample):
        action = to_action(space, distribution, sample)
        obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
        truncated = env.is_truncated(state, env_params)
        reward = jnp.asarray(reward, jnp.result_type(float))
        return obs, state, reward, jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)

    return step


def _scan_while_live(step, carry, horizon):
    """`scan` of `step` over at most `horizon` steps, in blocks, until no row is live.

    The last entry of the carry is `live [N]`. Steps never taken are zeros; records `[N, T, ...]`.
    """
    num_blocks = -(-horizon // STEPS_BETWEEN_LOOKS)
    block = -(-horizon // num_blocks)
    shapes = jax.eval_shape(step, carry, jnp.int32(0))
    carry = jax.tree.map(lambda x, like: x.astype(like.dtype), carry, shapes[0])
    blank = jax.tree.map(lambda x: jnp.zeros((num_blocks, block, *x.shape), x.dtype), shapes[1])

    def go_on(loop):
        index, (*_, live), _ = loop
        return (index < num_blocks) & batching.any_of_all(live)

    def run_block(loop):
        index, carry, records = loop
        carry, new = jax.lax.scan(step, carry, index * block + jnp.arange(block))
        records = jax.tree.map(
            lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, index, 0),
            records,
            new,
        )
        return index + 1, carry, records

    _, carry, records = jax.lax.while_loop(go_on, run_block, (jnp.int32(0), carry, blank))
    return carry, jax.tree.map(lambda x: _rows_first(x, horizon), records)


def _rows_first(x, horizon):
    num_blocks, block, *shape = x.shape
    return jnp.moveaxis(x.reshape(num_blocks * block, *shape)[:horizon], 1, 0)


def keep(new, old, live):
    """New leaves for live rows, old ones for the others, in the dtypes of the old."""

    def choose(new, old):
        keep = live.reshape(live.shape + (1,) * (old.ndim - 1))
        return jnp.where(keep, jnp.asarray(new).astype(old.dtype), old)

    return jax.tree.map(choose, new, old)


def _repeat(tree, num):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), tree)
