"""Policy gradients: from trajectories to a gradient, in chunks, and as a `GradientFn`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import batching, checks, estimators, rollout, score
from pgjax.estimators import Estimator, Hyper, Steps
from pgjax.policies import Params, Policy, ValueFunction
from pgjax.rollout import Trajectory
from pgjax.score import GradientFn

# Within 3% of the fastest on two CPU cores: benchmarks/results/chunk_size.json.
CHUNK_SIZE = 4096


def trajectory_gradient(
    params: Params,
    trajectory: Trajectory,
    *,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    value: jax.Array | None = None,
    next_value: jax.Array | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Params:
    """The policy gradient of given trajectories.

        g = 1/N sum_i sum_t ( Psi_it grad log pi(a_it | s_it) + c w_it grad H(pi(. | s_it)) )

    Sum over time, mean over rows; c is `hyper.entropy_cost`, w the state weighting. Biased or not
    as `estimators.is_unbiased` says; with an entropy bonus it is the gradient of no return.

    Args:
      params: the policy's parameters.
      trajectory: N rows of T steps.
      policy: the policy that acted.
      estimator: form, baseline and state weighting.
      hyper: discount, lambda and the like.
      value: `[N, T]` values of the observations; for estimators that read them.
      next_value: `[N, T]` values of the true next observations; for bootstrapping forms.
      chunk_size: samples whose activations are held at a time. Only live samples are visited.

    Returns:
      A gradient shaped like `params`, uphill.

    Raises:
      ValueError: values that the estimator needs and did not get, rates outside [0, 1], or too
        few rows.
    """
    checks.at_least("chunk_size", chunk_size, 1)
    estimators.check_hyper(hyper)
    params, trajectory = jax.tree.map(jnp.asarray, (params, trajectory))
    steps = make_steps(estimator, trajectory, value, next_value)
    return _ascent(params, trajectory, steps, policy, estimator, hyper, chunk_size)


def policy_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    *,
    num_episodes: int,
    horizon: int,
    value_function: ValueFunction | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> GradientFn:
    """Policy gradient of fresh episodes, as a `GradientFn`.

    With a value function, params and gradient are `{"policy": ..., "value": ...}`; the value's
    part descends its own loss, 1/2 (V(s_t) - target_t)^2 averaged over live steps, with the
    return that the estimator's form credits as target. The two parts share no parameters, and
    the values that weigh the policy's part are held constant.

    Args:
      env: a gymnax environment.
      env_params: its parameters.
      policy: the policy.
      estimator: form, baseline and state weighting.
      hyper: discount, lambda and the like.
      num_episodes: rows a gradient, N.
      horizon: steps a row at most, T.
      value_function: for estimators that need values; with others it is fitted and not used.
      chunk_size: samples whose activations are held at a time.

    Returns:
      A `GradientFn`. Metrics, over the episodes: mean `return` and `discounted_return`, mean
      `episode_length`, `env_steps` (live steps taken), `live_fraction` (of N T), `entropy`
      (minus the mean log-probability of the actions taken) and `value_loss`.

    Raises:
      ValueError: counts below one, rates outside [0, 1], too few episodes for the baseline, or
        an estimator that needs a value function without one.
    """
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("chunk_size", chunk_size, 1)
    estimators.check_hyper(hyper)
    estimators.check_rows(estimator, num_episodes)
    if value_function is None and estimators.needs_value(estimator):
        raise ValueError(
            f"form={estimator.form!r} with baseline={estimator.baseline!r} needs a value function"
        )

    def gradient_fn(key, params):
        policy_params = params if value_function is None else params["policy"]
        trajectory = rollout.episodes(
            key, env, env_params, policy, policy_params, num_episodes=num_episodes, horizon=horizon
        )
        value = next_value = None
        if value_function is not None:
            value, next_value = values(value_function, params["value"], trajectory, chunk_size)
        steps = make_steps(estimator, trajectory, value, next_value)
        gradient = _ascent(policy_params, trajectory, steps, policy, estimator, hyper, chunk_size)
        metrics = _metrics(trajectory, hyper)
        if value_function is None:
            return gradient, metrics
        target = estimators.value_target(estimator, steps, hyper)
        value_gradient = _regression(
            params["value"], trajectory, target, value_function, chunk_size
        )
        metrics["value_loss"] = 0.5 * _live_mean((steps.value - target) ** 2, trajectory.mask)
        return {"policy": gradient, "value": value_gradient}, metrics

    return gradient_fn


def values(
    value_function: ValueFunction,
    params: Params,
    trajectory: Trajectory,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """Values of the observations and of the true next observations, both `[N, T]`.

    The next observation of a row's last live step is `trajectory.final_obs`. Zero where the row
    is not live.
    """
    evaluate = jax.vmap(value_function.apply, (None, 0))
    mask = trajectory.mask
    obs = _flatten(trajectory.obs)
    chunks = _live_chunks(mask, chunk_size)

    def fill(index, out):
        chunk = chunks.index[index]
        return out.at[chunk].set(evaluate(params, obs[chunk]).astype(out.dtype))

    blank = jnp.zeros(mask.size, jnp.result_type(trajectory.reward, float))
    value = jax.lax.fori_loop(0, chunks.num, fill, blank).reshape(mask.shape)
    final = evaluate(params, trajectory.final_obs)[:, None].astype(value.dtype)
    goes_on = jnp.pad(mask[:, 1:], ((0, 0), (0, 1))) > 0
    shifted = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
    next_value = jnp.where(mask > 0, jnp.where(goes_on, shifted, final), 0)
    return jax.lax.stop_gradient((value, next_value))


def make_steps(
    estimator: Estimator,
    trajectory: Trajectory,
    value: jax.Array | None = None,
    next_value: jax.Array | None = None,
) -> Steps:
    """What Psi may see of a trajectory.

    Raises:
      ValueError: values that the estimator needs and did not get.
    """
    if value is None and estimators.needs_value(estimator):
        raise ValueError(f"{'+'.join(estimator[:2])} needs value, [N, T]")
    if next_value is None and estimator.form in estimators.BOOTSTRAPPING:
        raise ValueError(f"form={estimator.form!r} needs next_value, [N, T]")
    zeros = jnp.zeros_like(trajectory.reward)
    return Steps(
        reward=trajectory.reward,
        value=zeros if value is None else jnp.asarray(value),
        next_value=zeros if next_value is None else jnp.asarray(next_value),
        terminated=trajectory.terminated,
        boundary=jnp.logical_or(trajectory.terminated, trajectory.truncated),
        mask=trajectory.mask,
    )


def _ascent(params, trajectory, steps, policy, estimator, hyper, chunk_size) -> Params:
    """Gradient of the surrogate with the estimator's weights, and of the entropy bonus.

    Policies without memory see chunks of single samples, the others chunks of whole rows.
    """
    weight = estimators.psi(estimator, steps, hyper)
    live = steps.mask > 0
    bonus = None
    if not _is_zero(hyper.entropy_cost):
        visits = live * estimators.state_weight(estimator, steps, hyper)
        bonus = hyper.entropy_cost * visits.astype(weight.dtype)
    obs, action = trajectory.obs, trajectory.action
    if jax.tree.leaves(policy.initial_state()):
        obs, action = jax.tree.map(lambda x: _repeat_first(x, live), (obs, action))
        samples = (obs, action, steps.boundary, weight, bonus)
        unroll = jax.vmap(policy.unroll, (None, None, 0, 0))
        chunks = _live_chunks(live[:, 0], max(1, chunk_size // weight.shape[1]))
    else:
        samples = jax.tree.map(_flatten, (obs, action, steps.boundary, weight, bonus))
        unroll = policy.unroll
        chunks = _live_chunks(live, chunk_size)

    def objective(params, samples, valid):
        obs, action, boundary, weight, bonus = samples
        distribution = unroll(params, policy.initial_state(), obs, boundary)
        valid = valid.reshape(valid.shape + (1,) * (weight.ndim - 1))
        share = len(weight) / len(live)  # the surrogate means over the chunk, we over all rows
        ascent = score.surrogate(distribution.log_prob(action), share * valid * weight)
        if bonus is not None:
            ascent += jnp.sum(valid * bonus * distribution.entropy()) / len(live)
        return ascent

    return _accumulate(objective, params, samples, chunks)


def _regression(params, trajectory, target, value_function, chunk_size) -> Params:
    """Gradient that descends the mean squared error of the values over live steps."""
    num_live = jnp.maximum(jnp.sum(trajectory.mask), 1)
    samples = jax.tree.map(_flatten, (trajectory.obs, jax.lax.stop_gradient(target)))

    def objective(params, samples, valid):
        obs, target = samples
        error = jax.vmap(value_function.apply, (None, 0))(params, obs) - target
        return -0.5 * jnp.sum(valid * error**2) / num_live

    chunks = _live_chunks(trajectory.mask, chunk_size)
    return _accumulate(objective, params, samples, chunks)


class _Chunks(NamedTuple):
    """Indices of live samples, cut into chunks; the tail repeats the first of them."""

    index: jax.Array  # [C, B] int32
    valid: jax.Array  # [C, B] one for live samples, zero for the tail
    num: jax.Array  # [] chunks that hold any live sample, at most C


def _live_chunks(live: jax.Array, chunk_size: int) -> _Chunks:
    """Cuts the live entries of a mask into chunks, so that cost follows what is live."""
    size = live.size
    width = min(chunk_size, size)
    num_chunks = -(-size // width)
    live = jnp.ravel(live) > 0
    padded = num_chunks * width
    rank = jnp.cumsum(live)
    count = rank[-1]
    place = jnp.where(live, rank - 1, padded)  # past the end, so dropped, where not live
    samples = jnp.arange(size, dtype=jnp.int32)
    index = jnp.zeros(padded, jnp.int32).at[place].set(samples, mode="drop")
    valid = jnp.arange(padded) < count
    index = jnp.where(valid, index, index[0]).reshape(num_chunks, width)
    valid = valid.astype(jnp.result_type(float)).reshape(num_chunks, width)
    return _Chunks(index, valid, num=batching.max_of_all(-(-count // width)))


def _accumulate(
    objective: Callable[[Params, Any, jax.Array], jax.Array],
    params: Params,
    samples: Any,
    chunks: _Chunks,
) -> Params:
    """Gradient of the sum of an objective over chunks, holding one chunk's activations at a time.

    `objective(params, samples [B, ...], valid [B])` must be a sum over samples.
    """

    def add(index, total):
        chunk = jax.tree.map(lambda x: x[chunks.index[index]], samples)
        gradient = jax.grad(objective)(params, chunk, chunks.valid[index])
        return jax.tree.map(jnp.add, total, gradient)

    return jax.lax.fori_loop(0, chunks.num, add, jax.tree.map(jnp.zeros_like, params))


def _metrics(trajectory: Trajectory, hyper: Hyper) -> score.Metrics:
    mask, reward = trajectory.mask, trajectory.reward
    length = jnp.sum(mask, axis=1)
    discount = jnp.asarray(hyper.discount, reward.dtype) ** jnp.arange(reward.shape[1])
    return {
        "return": jnp.mean(jnp.sum(reward, axis=1)),
        "discounted_return": jnp.mean(reward @ discount),
        "episode_length": jnp.mean(length),
        "env_steps": jnp.sum(length.astype(jnp.int32)),
        "live_fraction": jnp.mean(mask),
        "entropy": -_live_mean(trajectory.log_prob, mask),
    }


def _live_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask > 0, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _repeat_first(x: jax.Array, live: jax.Array) -> jax.Array:
    """Fills dead steps with the row's first, so that their log-probabilities are finite."""
    return jnp.where(live.reshape(live.shape + (1,) * (x.ndim - 2)), x, x[:, :1])


def _is_zero(number: Any) -> bool:
    return not checks.is_traced(number) and float(number) == 0
