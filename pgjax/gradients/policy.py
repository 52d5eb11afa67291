"""The policy gradient: of given trajectories, and of fresh episodes as a `GradientFn`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pgjax import batching, checks, estimators, rollout, score, sharding
from pgjax.batching import expand
from pgjax.distributions import Distribution
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.samples import (
    GRADIENT_FIELDS,
    Selection,
    Term,
    accumulate,
    check_fields,
    policy_samples,
)
from pgjax.gradients.value import make_steps, regression, values
from pgjax.policies import Params, Policy, ValueFunction, has_memory, values_of_batch
from pgjax.rollout import Trajectory
from pgjax.score import GradientFn, Metrics
from pgjax.sharding import over_rows

MAX_STEPS = 2**31
"""Steps of a gradient, live or not, are indices and counts of 32 bits."""


def trajectory_gradient(
    params: Params,
    trajectory: Trajectory,
    *,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    value: jax.Array | None = None,
    next_value: jax.Array | None = None,
    policy_state: Any = None,
    chunk_size: int | None = None,
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
      policy_state: `[N, ...]` carry of a policy with memory before the first step, of rows that
        did not start there (`Rows.policy_state`); by default the policy's initial state.
      chunk_size: live samples whose activations are held at a time; None takes what suits the
        device.

    Returns:
      A gradient shaped like `params`, uphill.

    Raises:
      ValueError: values that the estimator needs are missing, rates outside [0, 1], too few rows,
        a trajectory without `obs`, `action`, `reward`, `terminated`, `truncated` or `mask`, or of
        which one does not fit the mask, or log-probabilities of actions that are no scalars.

    Source: Williams 1992; Sutton et al. 2000; for the weights Psi, Schulman et al. 2016, eq. 1.
    """
    check_counts(chunk_size=chunk_size)
    check_fields(trajectory, GRADIENT_FIELDS)
    estimators.check_hyper(hyper)
    params, trajectory = jax.tree.map(jnp.asarray, (params, trajectory))
    steps = make_steps(estimator, trajectory, value, next_value)
    weight = estimators.psi(estimator, steps, hyper)
    bonus = entropy_bonus(estimator.state_weighting, trajectory, hyper)
    term, live = ascent(params, trajectory, weight, bonus, policy, chunk_size, policy_state)
    ((gradient, _),) = accumulate(live, term)
    return gradient


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
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> GradientFn:
    """Policy gradient of fresh episodes, as a `GradientFn`.

        g = 1/N sum_i sum_t ( Psi_it grad log pi(a_it | s_it) + c w_it grad H(pi(. | s_it)) )

    The `trajectory_gradient` of N episodes that the policy itself plays. Biased or not for
    grad J_gamma as `estimators.is_unbiased` says; with an entropy bonus, the gradient of no return.

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
      num_episodes: rows per gradient, N.
      horizon: maximum number of steps of a row, T.
      value_function: for estimators that need values; with others it is fitted and not used.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.
      mesh: devices that the episodes are shared out over (`sharding.mesh`); None for one. The
        episodes do not depend on it.

    Returns:
      A `GradientFn`. Metrics, over the episodes: mean `return` and `discounted_return`, mean
      `episode_length`, `env_steps` (live steps taken), `live_fraction` (of N T), `entropy`
      (minus the mean log-probability of the actions taken) and `value_loss`.

    Raises:
      ValueError: counts below one, 2^31 steps or more, rates outside [0, 1], too few episodes for
        the baseline or not a multiple of the devices, or an estimator that needs a value function
        without one.

    Source: Williams 1992; Sutton et al. 2000; for the weights Psi, Schulman et al. 2016, eq. 1.
    """
    check_batch("num_episodes", num_episodes, horizon)
    sharding.check("num_episodes", num_episodes, mesh)
    learn = batch_gradient(
        policy, estimator, hyper, value_function, chunk_size, mesh=mesh, means=episode_means
    )
    estimators.check_rows(estimator, num_episodes)

    def gradient_fn(key, params):
        trajectory = rollout.episodes(
            key,
            env,
            env_params,
            policy,
            policy_part(params, value_function),
            num_episodes=num_episodes,
            horizon=horizon,
            fields=GRADIENT_FIELDS,
            packed=True,
            mesh=mesh,
        )
        return learn(params, trajectory)

    return gradient_fn


def policy_part(params: Params, value_function: ValueFunction | None) -> Params:
    """The policy's own parameters.

    Raises:
      ValueError: with a value function, params that are not `{"policy": ..., "value": ...}`.
    """
    if value_function is None:
        return params
    if not isinstance(params, Mapping) or set(params) != {"policy", "value"}:
        raise ValueError('params with a value function must be {"policy": ..., "value": ...}')
    return params["policy"]


def batch_gradient(
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    value_function: ValueFunction | None,
    chunk_size: int | None,
    *,
    mesh: Mesh | None = None,
    means: Callable[[Trajectory, Hyper], Metrics] | None = None,
) -> Callable[..., tuple[Params, Metrics]]:
    """Gradient of given trajectories, with the value's part and loss where there is one.

    Weights are computed from the whole batch; what goes through a network, by each device from its
    own rows. Devices wait for each other once, for the gradient and for `means`, the other means
    over rows.

    Returns:
      `(params, trajectory, policy_state=None) -> (gradient, metrics)`; metrics are `entropy` (minus
      the mean log-probability of the actions taken), with values `value_loss`, and `means`.

    Raises:
      ValueError: a chunk size below one, and as `check_estimator`.
    """
    check_counts(chunk_size=chunk_size)
    check_estimator(estimator, hyper, value_function)

    def local_values(params, trajectory):
        assert value_function is not None
        return values(value_function, params, trajectory, chunk_size)

    def local_gradient(replicated, trajectory, weight, bonus, policy_state, value, target):
        params, hyper = replicated
        of_row = lambda x: jnp.mean(jnp.sum(x, axis=1))
        metrics = {"live": of_row(trajectory.mask)}
        if means is not None:
            metrics |= means(trajectory, hyper)
        own = policy_part(params, value_function)
        policy_term, steps_acted = ascent(
            own, trajectory, weight, bonus, policy, chunk_size, policy_state
        )
        if value_function is None:
            ((gradient, log_prob),) = accumulate(steps_acted, policy_term)
            return gradient, metrics | {"log_prob": log_prob}
        apply = values_of_batch(value_function)
        predict = lambda params, obs, action: apply(params, obs)
        value_term, steps_valued = regression(
            params["value"], trajectory, target, predict, chunk_size
        )
        if has_memory(policy):  # its samples are rows, the value's are steps
            sums = accumulate(steps_acted, policy_term) + accumulate(steps_valued, value_term)
        else:  # a single search for the live ones
            sums = accumulate(steps_acted, policy_term, value_term)
        (gradient, log_prob), value_gradient = sums
        error = jnp.where(trajectory.mask > 0, value - target, 0)
        metrics |= {"log_prob": log_prob, "value_loss": 0.5 * of_row(error**2)}
        return {"policy": gradient, "value": value_gradient}, metrics

    def gradient_and_metrics(params, trajectory, hyper, policy_state):
        value = next_value = target = None
        if value_function is not None:
            value, next_value = over_rows(local_values, mesh)(params["value"], trajectory)
        steps = make_steps(estimator, trajectory, value, next_value)
        weight = estimators.psi(estimator, steps, hyper)
        bonus = entropy_bonus(estimator.state_weighting, trajectory, hyper)
        if value_function is not None:
            target = estimators.value_target(estimator, steps, hyper)
        gradient, metrics = over_rows(local_gradient, mesh, mean=True)(
            (params, hyper), trajectory, weight, bonus, policy_state, value, target
        )
        # Of sums over time, means over live steps.
        live = jnp.maximum(metrics.pop("live"), 1 / len(trajectory.mask))
        metrics["entropy"] = -metrics.pop("log_prob") / live
        if value_function is not None:
            mean = lambda x: (x / live).astype(x.dtype)
            gradient["value"] = jax.tree.map(mean, gradient["value"])
            metrics["value_loss"] /= live
        return gradient, metrics

    def learn(params, trajectory, policy_state=None):
        return batching.sequential_vmap(gradient_and_metrics)(
            params, trajectory, hyper, policy_state
        )

    return learn


def ascent(
    params: Params,
    trajectory: Trajectory,
    weight: jax.Array,
    bonus: jax.Array | None,
    policy: Policy,
    chunk_size: int | None,
    policy_state: Any = None,
    scored: Callable[[Distribution], jax.Array] | None = None,
) -> tuple[Term, Selection]:
    """Gradient of 1/N sum_i sum_t (weight_it scored_it + bonus_it H(pi(. | s_it))), to be summed.

    Along with it 1/N sum_i sum_t log pi(a_it | s_it), which costs little here: a rollout would have
    to normalise its distributions for it.

    Args:
      params: the policy's parameters.
      trajectory: N rows of T steps.
      weight: `[N, T, ...]` held constant, zero where the row is not live.
      bonus: `[N, T]` weight of the entropy, or None.
      policy: the policy that acted.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.
      policy_state: `[N, ...]` where the policy's memory starts; None for its initial state.
      scored: function of the distribution that is weighted, shaped like `weight`; None for the
        log-probability of the action taken.

    Returns:
      The sum to be made, and which samples it is over.
    """
    samples, live, distributions = policy_samples(
        policy, trajectory, (weight, bonus), chunk_size, policy_state
    )
    num_rows = len(trajectory.mask)

    def objective(params, samples, valid):
        weight, bonus = samples.extra
        distribution = distributions(params, samples)
        log_prob = distribution.log_prob(samples.action)
        share = len(weight) / num_rows  # the surrogate means over the chunk, we over all rows
        shared = share * expand(valid, weight) * weight
        uphill = score.surrogate(log_prob if scored is None else scored(distribution), shared)
        if bonus is not None:
            uphill += jnp.sum(expand(valid, bonus) * bonus * distribution.entropy()) / num_rows
        counts = valid if samples.live is None else valid[:, None] * samples.live
        return uphill, jnp.sum(counts * log_prob) / num_rows

    gradient = lambda samples, valid: jax.grad(objective, has_aux=True)(params, samples, valid)
    like = (params, jnp.zeros(()))
    return Term(gradient, samples, like), live


def entropy_bonus(state_weighting: str, trajectory: Trajectory, hyper: Hyper) -> jax.Array | None:
    """Weight of the entropy at each step, `[N, T]`, or None where it is known to be zero."""
    if not checks.is_traced(hyper.entropy_cost) and float(hyper.entropy_cost) == 0:
        return None
    return hyper.entropy_cost * estimators.state_weights(
        state_weighting, trajectory.boundary, trajectory.mask, hyper
    )


def episode_means(trajectory: Trajectory, hyper: Hyper) -> Metrics:
    """What `policy_gradient` reports about its episodes: means over rows, and `env_steps`."""
    reward = trajectory.reward
    discount = estimators.time_weights("discounted", hyper, reward.shape[1])
    length = jnp.sum(trajectory.mask, axis=1)
    sums = {
        "return": jnp.sum(reward, axis=1),
        "discounted_return": reward @ discount,
        "episode_length": length,
        "live_fraction": length / reward.shape[1],
    }
    return jax.tree.map(jnp.mean, sums) | {"env_steps": jnp.sum(length.astype(jnp.int32))}


def check_counts(**counts: int | None) -> None:
    """Raises `ValueError` unless every count that is given is a whole number of at least one."""
    for argument, count in counts.items():
        if count is not None:
            checks.at_least(argument, count, 1)


def check_batch(argument: str, num_rows: int, horizon: int) -> None:
    """Raises `ValueError` for counts below one, or for more steps than an int32 can count."""
    check_counts(**{argument: num_rows, "horizon": horizon})
    if num_rows * horizon >= MAX_STEPS:
        raise ValueError(
            f"{argument}={num_rows!r} times horizon={horizon!r} must be below 2**31 steps"
        )


def check_estimator(
    estimator: Estimator, hyper: Hyper, value_function: ValueFunction | None
) -> None:
    """Raises `ValueError` for bad names or rates, or an estimator without the values it needs."""
    estimators.check(estimator)
    estimators.check_hyper(hyper)
    if value_function is None and estimators.needs_value(estimator):
        raise ValueError(
            f"form={estimator.form!r} with baseline={estimator.baseline!r} needs a value function: "
            "value_function=policies.make_value(...)"
        )
