"""Values of a trajectory's observations, what Psi may see, and the gradient of their fit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pgjax import estimators
from pgjax.estimators import Estimator, Steps
from pgjax.gradients.samples import Selection, Term, check_fields, evaluate, flatten, resolve
from pgjax.policies import Params, ValueFunction, values_of_batch
from pgjax.rollout import Trajectory


def values(
    value_function: ValueFunction,
    params: Params,
    trajectory: Trajectory,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Values of the observations and of the true next observations, both `[N, T]`.

    After a row's last live step, and after every end where rows go on, the next observation is that
    of `trajectory.final_obs`, never the one after the reset. Zero where the row is not live, and
    held constant everywhere.

    Args:
      value_function: V.
      params: its parameters.
      trajectory: N rows of T steps, with `final_obs`.
      chunk_size: observations whose activations are held at a time; None takes what suits the
        device.

    Raises:
      ValueError: the trajectory lacks a field that is read, or a value is no scalar.
    """
    check_fields(trajectory, ("obs", "reward", "terminated", "truncated", "mask", "final_obs"))
    live = trajectory.mask > 0
    dtype = jnp.result_type(trajectory.reward, float)
    apply = values_of_batch(value_function)

    def predict(obs):
        value = apply(params, obs)
        if value.ndim != 1:
            raise ValueError(f"value of an observation has shape {value.shape[1:]}, not ()")
        return value

    def value_of(obs, where):
        flat = jax.tree.map(lambda x: x.reshape(where.size, *x.shape[where.ndim :]), obs)
        value = evaluate(predict, flat, Selection(where, resolve(chunk_size)))
        return value.reshape(where.shape).astype(dtype)

    value = value_of(trajectory.obs, live)
    ends = ~jnp.pad(live[:, 1:], ((0, 0), (0, 1)))
    num_axes = lambda obs: jax.tree.leaves(obs)[0].ndim
    if num_axes(trajectory.final_obs) < num_axes(trajectory.obs):
        last = value_of(trajectory.final_obs, live[:, 0])[:, None]
    else:
        ends |= trajectory.boundary
        last = value_of(trajectory.final_obs, live & ends)
    following = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
    next_value = jnp.where(live, jnp.where(ends, last, following), 0)
    return jax.lax.stop_gradient((value, next_value))


def make_steps(
    estimator: Estimator,
    trajectory: Trajectory,
    value: jax.Array | None = None,
    next_value: jax.Array | None = None,
) -> Steps:
    """What Psi may see of a trajectory.

    Args:
      estimator: form, baseline and state weighting.
      trajectory: N rows of T steps.
      value: `[N, T]` values of the observations; for estimators that read them.
      next_value: `[N, T]` values of the true next observations; for bootstrapping forms.

    Returns:
      `Steps` of `[N, T]`; values that are not given are zero.

    Raises:
      ValueError: an unknown name in the estimator, or values that it needs, or a field of the
        trajectory, are missing or do not fit the mask.
    """
    estimators.check(estimator)
    check_fields(trajectory, ("reward", "terminated", "truncated", "mask"))
    if value is None and estimators.needs_value(estimator):
        raise ValueError(f"{'+'.join(estimator[:2])} needs value, [N, T]")
    if next_value is None and estimators.bootstraps(estimator.form):
        raise ValueError(f"form={estimator.form!r} needs next_value, [N, T]")
    for name, x in {"value": value, "next_value": next_value}.items():
        if x is not None and jnp.shape(x) != jnp.shape(trajectory.mask):
            raise ValueError(
                f"{name} has shape {jnp.shape(x)}; the mask has {trajectory.mask.shape}"
            )
    zeros = jnp.zeros_like(trajectory.reward)
    return Steps(
        reward=trajectory.reward,
        value=zeros if value is None else jnp.asarray(value),
        next_value=zeros if next_value is None else jnp.asarray(next_value),
        terminated=trajectory.terminated,
        boundary=trajectory.boundary,
        mask=trajectory.mask,
    )


def regression(
    params: Params,
    trajectory: Trajectory,
    target: jax.Array,
    predict: Callable[[Params, jax.Array, jax.Array], jax.Array],
    chunk_size: int | None,
) -> tuple[Term, Selection]:
    """Gradient of -1/2 1/N sum_i sum_t (prediction_it - target_it)^2 at live steps, to be summed.

    Divided by the mean length of a row, it is the gradient of a mean over live steps.

    Args:
      params: of the predictions.
      trajectory: where they are made, N rows.
      target: `[N, T]`, held constant.
      predict: `(params, obs [B, *O], action [B, ...]) -> [B]`.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.

    Returns:
      The sum to be made, and which samples it is over.
    """
    num_rows = len(trajectory.mask)
    samples = (trajectory.obs, trajectory.action, jax.lax.stop_gradient(target))

    def objective(params, obs, action, target, valid):
        error = predict(params, obs, action) - target
        return -0.5 * jnp.sum(valid * error**2) / num_rows

    gradient = lambda samples, valid: jax.grad(objective)(params, *samples, valid)
    live = Selection(trajectory.mask > 0, resolve(chunk_size))
    return Term(gradient, jax.tree.map(flatten, samples), like=params), live


def live_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over live steps, zero if there are none."""
    return jnp.sum(jnp.where(mask > 0, x, 0)) / jnp.maximum(jnp.sum(mask), 1)
