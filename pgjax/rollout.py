"""Episodes of a policy in an environment, many at a time: a row is an episode."""

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
    final_obs: Any = None  # [N, *O] observation after the last live step


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
    step_row = _row_step(env, env_params)
    act = jax.vmap(policy.step, (None, 0, 0))

    def step(carry, time):
        state, obs, policy_state, live = carry
        policy_state, distribution = act(params, policy_state, obs)
        action = distribution.sample(jax.random.fold_in(action_key, time))
        env_keys = jax.random.split(jax.random.fold_in(env_key, time), num_episodes)
        next_obs, next_state, reward, terminated, truncated = jax.vmap(step_row)(
            env_keys, state, distribution, action
        )
        truncated |= (time == horizon - 1) & ~terminated
        record = Trajectory(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            mask=jnp.ones_like(reward),
        )
        record = _keep(record, jax.tree.map(jnp.zeros_like, record), live)
        state, obs = _keep((next_state, next_obs), (state, obs), live)
        return (state, obs, policy_state, live & ~(terminated | truncated)), record

    reset_key, action_key, env_key = jax.random.split(key, 3)
    reset_keys = jax.random.split(reset_key, num_episodes)
    obs, state = jax.vmap(env.reset_env, (0, None))(reset_keys, env_params)
    policy_state = _repeat(policy.initial_state(), num_episodes)
    carry = (state, obs, policy_state, jnp.ones(num_episodes, bool))
    (_, final_obs, _, _), records = _scan_while_live(step, carry, horizon)
    return records._replace(final_obs=final_obs)


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


def _keep(new, old, live):
    """New leaves for live rows, old ones for the others, in the dtypes of the old."""

    def choose(new, old):
        keep = live.reshape(live.shape + (1,) * (old.ndim - 1))
        return jnp.where(keep, jnp.asarray(new).astype(old.dtype), old)

    return jax.tree.map(choose, new, old)


def _repeat(tree, num):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), tree)
