"""The all-action policy gradient: the sum over actions taken exactly instead of by sampling."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from pgjax import checks, estimators, returns, rollout
from pgjax.distributions import Distribution
from pgjax.estimators import STATE_WEIGHTINGS, Hyper
from pgjax.gradients.policy import (
    ascent,
    check_batch,
    check_counts,
    entropy_bonus,
    episode_means,
    policy_part,
)
from pgjax.gradients.samples import accumulate, evaluate, policy_samples
from pgjax.gradients.value import live_mean, regression
from pgjax.policies import Params, Policy, ValueFunction, values_of_batch
from pgjax.rollout import Trajectory
from pgjax.score import GradientFn

ActionValues = Callable[[Params, Trajectory], jax.Array]
"""`(policy_params, trajectory) -> [N, T, A]`, the value of every action at every step."""


def all_action_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    hyper: Hyper,
    *,
    num_episodes: int,
    horizon: int,
    action_values: ActionValues | None = None,
    action_value_function: ValueFunction | None = None,
    state_weighting: str = "discounted",
    chunk_size: int | None = None,
) -> GradientFn:
    """All-action policy gradient of fresh episodes, as a `GradientFn`.

        g = 1/N sum_i sum_t w_t ( sum_a grad pi(a | s_it) Q(s_it, a) + c grad H(pi(. | s_it)) )
        w_t = gamma^t or 1

    Unbiased for grad J_gamma if Q is exact for the policy, the time and the horizon, w_t is
    `discounted` and there is no entropy bonus (c = `hyper.entropy_cost` = 0). The actions then add
    no variance at the step where they are taken, only through the states that they lead to. With
    any other Q it is biased, however many the samples.

    Q comes from exactly one of two places. Given as `action_values` it is held constant, and
    params and gradient are the policy's own. Learned as an `action_value_function`, params and
    gradient are `{"policy": ..., "value": ...}`, and the value's part descends
    1/2 (Q(s_t, a_t) - G_t)^2 averaged over live steps, with the lambda-return

        G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}]
        V(s) = sum_a pi(a | s) Q(s, a)

    which bootstraps from the true next observation of a truncated episode.

    Args:
      env: a gymnax environment with discrete actions.
      env_params: its parameters.
      policy: the policy, whose distribution is over whole numbers below the number of actions.
      hyper: `discount`, `lambda_` and `entropy_cost`.
      num_episodes: rows per gradient, N.
      horizon: maximum number of steps of a row, T.
      action_values: `(policy_params, trajectory) -> [N, T, A]`.
      action_value_function: its `apply` gives the values `[A]` of all actions.
      state_weighting: `discounted` or `uniform`.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.

    Returns:
      A `GradientFn`, with the metrics of `policy_gradient`.

    Raises:
      ValueError: counts below one, 2^31 steps or more, rates outside [0, 1], an unknown state
        weighting, continuous actions, or not exactly one source of action values.

    Source: Sutton et al. 2000; Allen et al. 2017, "Mean Actor Critic"; Ciosek & Whiteson 2018,
    "Expected Policy Gradients".
    """
    check_batch("num_episodes", num_episodes, horizon)
    check_counts(chunk_size=chunk_size)
    checks.choice("state_weighting", state_weighting, STATE_WEIGHTINGS)
    estimators.check_hyper(hyper)
    if (action_values is None) == (action_value_function is None):
        raise ValueError("give exactly one of action_values and action_value_function")
    num_actions = _num_actions(env, env_params)

    def ascend(params, trajectory, q):
        chex.assert_shape(q, (num_episodes, horizon, num_actions))
        counts = estimators.state_weights(
            state_weighting, trajectory.boundary, trajectory.mask, hyper
        )[:, :, None]
        weight = jnp.where(trajectory.mask[:, :, None] > 0, counts * q, 0)
        bonus = entropy_bonus(state_weighting, trajectory, hyper)
        scored = lambda distribution: _probs(distribution, num_actions)
        term, live = ascent(params, trajectory, weight, bonus, policy, chunk_size, scored=scored)
        ((gradient, _),) = accumulate(live, term)
        return gradient

    def gradient_fn(key, params):
        own = policy_part(params, action_value_function)
        trajectory = rollout.episodes(
            key, env, env_params, policy, own, num_episodes=num_episodes, horizon=horizon
        )
        metrics = episode_means(trajectory, hyper)
        metrics["entropy"] = -live_mean(trajectory.log_prob, trajectory.mask)
        if action_values is not None:
            return ascend(own, trajectory, action_values(own, trajectory)), metrics
        assert action_value_function is not None
        apply = values_of_batch(action_value_function)
        q, v = _learned_values(apply, params, policy, trajectory, num_actions, chunk_size)
        target = _lambda_return(trajectory, v[:, 1:], hyper)

        def predict(params, obs, action):
            return jnp.take_along_axis(apply(params, obs), action[:, None], axis=1)[:, 0]

        of_value, live = regression(params["value"], trajectory, target, predict, chunk_size)
        length = jnp.maximum(metrics["episode_length"], 1 / num_episodes)
        value = jax.tree.map(lambda x: (x / length).astype(x.dtype), accumulate(live, of_value)[0])
        taken = jnp.take_along_axis(q, trajectory.action[:, :, None], axis=2)[:, :, 0]
        metrics["value_loss"] = 0.5 * live_mean((taken - target) ** 2, trajectory.mask)
        return {"policy": ascend(own, trajectory, q), "value": value}, metrics

    return gradient_fn


def _num_actions(env, env_params) -> int:
    space = env.action_space(env_params)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"env={env.name!r} has actions {type(space).__name__}; use discrete ones")
    return int(space.n)


def _probs(distribution: Distribution, num_actions: int) -> jax.Array:
    """Probabilities of all actions, `[*B, A]`."""
    log_prob = lambda action: distribution.log_prob(jnp.full(distribution.batch_shape, action))
    return jnp.moveaxis(jnp.exp(jax.vmap(log_prob)(jnp.arange(num_actions))), 0, -1)


def _learned_values(
    apply, params, policy, trajectory, num_actions, chunk_size
) -> tuple[jax.Array, jax.Array]:
    """Q at every step, `[N, T, A]`, and its mean over actions there and one step on, `[N, T + 1]`.

    The observation after an episode's last step is placed after it.
    """
    longer = _with_final_obs(trajectory)
    samples, live, distributions = policy_samples(policy, longer, None, chunk_size)

    def probs_and_values(samples):
        probs = _probs(distributions(params["policy"], samples), num_actions)
        batch = probs.shape[:-1]
        obs = samples.obs.reshape(-1, *trajectory.obs.shape[2:])
        q = apply(params["value"], obs).reshape(*batch, num_actions)
        return jnp.stack([probs, q.astype(probs.dtype)], axis=-1)

    both = evaluate(probs_and_values, samples, live)
    both = both.reshape(*longer.mask.shape, num_actions, 2)
    probs, q = jax.lax.stop_gradient((both[..., 0], both[..., 1]))
    return q[:, :-1], jnp.sum(probs * q, axis=-1)


def _with_final_obs(trajectory: Trajectory) -> Trajectory:
    """Rows of T + 1 steps: after its last step, each has the observation that it ended on."""
    length = jnp.sum(trajectory.mask > 0, axis=1)
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:, :1])], axis=1)
    longer = jax.tree.map(pad, trajectory._replace(final_obs=None))
    rows = jnp.arange(len(length))
    return longer._replace(
        obs=longer.obs.at[rows, length].set(trajectory.final_obs),
        mask=longer.mask.at[rows, length].set(1),
        # The policy's memory covers the whole episode, its end included.
        terminated=jnp.zeros_like(longer.terminated),
        truncated=jnp.zeros_like(longer.truncated),
    )


def _lambda_return(trajectory: Trajectory, next_value: jax.Array, hyper: Hyper) -> jax.Array:
    """Lambda-returns `[N, T]`; the value after a natural end is not read."""
    live = trajectory.mask > 0
    return returns.lambda_return(
        trajectory.reward,
        jnp.where(live & ~trajectory.terminated, next_value, 0),
        hyper.discount * ~trajectory.terminated,
        hyper.lambda_,
        trajectory.boundary,
    )
