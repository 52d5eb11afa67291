"""States met along episodes, and what follows when an episode is restarted from one.

A gymnax state is a value: it can be kept, copied and continued as often as one likes, so that
nested expectations, over what follows a state and an action, can be sampled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pgjax import batching, checks, rollout
from pgjax.batching import choose
from pgjax.policies import Params, Policy, check_memoryless


class Visits(NamedTuple):
    """One step of each of N episodes, with the state to restart from."""

    state: Any  # [N, ...] of the environment
    obs: jax.Array  # [N, *O]
    time: jax.Array  # [N] int32
    weight: jax.Array  # [N] sum of the weights of the episode's steps


def visit(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    weights: jax.Array,
    *,
    num_episodes: int,
) -> Visits:
    """One step of each episode, drawn in proportion to a weight of its time.

        E[sum_t w_t f(t, s_t)] = E[W f(tau, s_tau)],   P(tau = t) = w_t / W,   W = sum_t w_t

    The sums go over the steps of an episode. One state per episode is held, by reservoir sampling,
    and rows are independent.

    Args:
      key: typed PRNG key.
      env: a gymnax environment.
      env_params: its parameters.
      policy: acts; without memory.
      params: its parameters.
      weights: `[T]` not negative, the first positive.
      num_episodes: rows, N.

    Raises:
      ValueError: no episodes, or a policy with memory.

    Source: Chao 1982, "A general purpose unequal probability sampling plan".
    """
    checks.at_least("num_episodes", num_episodes, 1)
    check_memoryless(policy, "restarts")

    def one(key):
        reset_key, step_key, keep_key = jax.random.split(key, 3)
        advance = _advance(step_key, env, env_params, policy, params)
        obs, state = env.reset_env(reset_key, env_params)
        _, later, _ = jax.eval_shape(advance, jnp.int32(0), state, obs, jnp.bool_(True))
        obs = rollout.promote(obs, later)
        start = Visits(state, obs, jnp.int32(0), jnp.zeros((), weights.dtype))

        def go_on(loop):
            time, _, live, _ = loop
            return (time < len(weights)) & batching.any_across_vmap(live)

        def step(loop):
            time, (state, obs), live, kept = loop
            total = kept.weight + jnp.where(live, weights[time], 0)
            chance = jax.random.uniform(jax.random.fold_in(keep_key, time), (), total.dtype)
            take = live & (chance * total < weights[time])
            kept = choose(take, Visits(state, obs, time, total), kept)._replace(weight=total)
            state, obs, record = advance(time, state, obs, live)
            live &= ~record.boundary
            return time + 1, (state, obs), live, kept

        loop = (jnp.int32(0), (state, obs), jnp.bool_(True), start)
        *_, kept = jax.lax.while_loop(go_on, step, loop)
        return kept

    return jax.vmap(one)(jax.random.split(key, num_episodes))


def continuations(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    visits: Visits,
    action: jax.Array,
    *,
    discount: ArrayLike,
    horizon: int,
) -> jax.Array:
    """Return from a step on, given its state and its action: one fresh sample per row.

        G = sum_{k >= 0} gamma^k r_{t+k},   s_t and a_t given, up to the end or step T

    Args:
      key: typed PRNG key; another one gives an independent sample.
      env: a gymnax environment.
      env_params: its parameters.
      policy: acts from the second step on.
      params: its parameters.
      visits: where to restart.
      action: `[N, ...]` the first action, as the policy's distribution samples it.
      discount: gamma.
      horizon: T, counted from the start of the episode.

    Returns:
      `[N]` returns.
    """

    def one(key, visit, action):
        advance = _advance(key, env, env_params, policy, params)

        def go_on(loop):
            *_, live, _ = loop
            return batching.any_across_vmap(live)

        def step(loop):
            elapsed, state, obs, live, total = loop
            state, obs, record = advance(elapsed, state, obs, live, action)
            gain = jnp.asarray(discount, total.dtype) ** elapsed * record.reward
            total += jnp.where(live, gain, 0)
            live &= ~record.boundary
            live &= visit.time + elapsed + 1 < horizon
            return elapsed + 1, state, obs, live, total

        blank = jnp.zeros((), jnp.result_type(float))
        start = (jnp.int32(0), visit.state, visit.obs, visit.time < horizon, blank)
        return jax.lax.while_loop(go_on, step, start)[-1]

    return jax.vmap(one)(jax.random.split(key, len(visits.time)), visits, action)


def _advance(key, env, env_params, policy, params):
    """A step of a live row; one that has ended stays. The first action may be given."""
    take = rollout.advancing(env, env_params)

    def advance(time, state, obs, live, first_action=None):
        action_key, env_key = jax.random.split(jax.random.fold_in(key, time))
        _, distribution = policy.step(params, (), obs)
        action = distribution.sample(action_key)
        if first_action is not None:
            action = jnp.where(time == 0, first_action, action)
        next_state, next_obs, record = take(env_key, distribution, action, state, obs)
        state, obs = choose(live, (next_state, next_obs), (state, record.obs))
        return state, obs, record

    return advance
