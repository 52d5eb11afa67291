"""Ascending a gradient with optax: `init`, `step` and a scan of steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from pgjax import batching, checks
from pgjax.score import GradientFn, Metrics, Params, StatefulGradientFn, check_returned


class TrainState(NamedTuple):
    """All that training carries; a checkpoint holds exactly this."""

    params: Params
    opt_state: optax.OptState
    gradient_state: Any  # () for a plain `GradientFn`
    step: jax.Array  # [] int32, updates made or skipped
    skipped: jax.Array  # [] int32, updates skipped because something was not finite


def init(
    key: jax.Array,
    params: Params,
    optimizer: optax.GradientTransformation,
    gradient_fn: GradientFn | StatefulGradientFn | None = None,
) -> TrainState:
    """State before the first step.

    Args:
      key: for the state of the gradient, where it has one. Not the key of the run, but another
        split off beforehand: `jax.random.split(key, n)[i]` is `fold_in(key, i)` in JAX's default
        generator, and so may be the key of a step.
      params: where to start.
      optimizer: an optax transformation that needs no more than gradient and params.
      gradient_fn: needed only where the gradient carries state.
    """
    stateful = isinstance(gradient_fn, StatefulGradientFn)
    # Weak types would become strong with the first step, and the second would compile anew.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), params)
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        gradient_state=gradient_fn.init(key, params) if stateful else (),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def step(
    key: jax.Array,
    state: TrainState,
    gradient_fn: GradientFn | StatefulGradientFn,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One step uphill.

        theta <- theta + optimizer(gradient)

    Gradients ascend and optax descends: the sign is flipped here and nowhere else. A gradient whose
    squares have no finite sum, or that leads to params that are not finite, is skipped and counted:
    params, optimiser and whatever the gradient carries stay as they were, so that the next step
    tries again from there with another key. An optimiser that accumulates squares, such as Adam,
    would stand still for good after one that overflows.

    Args:
      key: the key of the run; the step's own key is `fold_in(key, state.step)`, so that a run
        picked up from a saved state goes on exactly as if it had never stopped.
      state: where training stands.
      gradient_fn: the gradient to follow.
      optimizer: the optax transformation `state` was made with.

    Returns:
      The next state, and the gradient's metrics with `gradient_norm`, `param_norm` (after the
      step) and `finite` (bool); the norms are constants to `jax.grad`.

    Raises:
      ValueError: a state made without the gradient, of a gradient that carries something; or a
        gradient shaped unlike the parameters, or without metrics.
    """
    _check_state(key, state, gradient_fn)
    key = jax.random.fold_in(key, state.step)
    gradient, gradient_state, metrics = _lift(gradient_fn).step(
        key, state.params, state.gradient_state
    )
    _check_gradient(gradient, state.params)
    uphill, restore = ravel_pytree(gradient)
    updates, opt_state = optimizer.update(restore(-uphill), state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Not of the norm, for XLA makes an absolute value of that of a single number.
    finite = jnp.isfinite(jnp.sum(uphill**2)) & jnp.all(jnp.isfinite(_flat(params)))
    params, opt_state, gradient_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state, gradient_state),
        (state.params, state.opt_state, state.gradient_state),
    )
    of_tree = batching.sequential_vmap(lambda tree: jnp.linalg.norm(_flat(tree)))
    norm = lambda tree: of_tree(jax.lax.stop_gradient(tree))
    metrics = metrics | {
        "gradient_norm": norm(gradient),
        "param_norm": norm(params),
        "finite": finite,
    }
    skipped = state.skipped + ~finite
    return TrainState(params, opt_state, gradient_state, state.step + 1, skipped), metrics


def train(
    key: jax.Array,
    state: TrainState,
    gradient_fn: GradientFn | StatefulGradientFn,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
) -> tuple[TrainState, Metrics]:
    """`num_steps` steps uphill, as one scan.

    Called again with the state it returned and the same key, it goes on where it stopped.

    Args:
      key: the key of the run, as in `step`.
      state: where training stands.
      gradient_fn: the gradient to follow.
      optimizer: the optax transformation `state` was made with.
      num_steps: how many.

    Returns:
      The state after them, and the metrics of `step`, stacked `[num_steps]`.

    Raises:
      ValueError: as `step`, or `num_steps` is no whole number from zero on.
    """
    checks.at_least("num_steps", num_steps, 0)

    def scan_step(state, _):
        return step(key, state, gradient_fn, optimizer)

    return jax.lax.scan(scan_step, state, length=num_steps)


def _check_state(key, state, gradient_fn):
    if not isinstance(gradient_fn, StatefulGradientFn) or jax.tree.leaves(state.gradient_state):
        return
    if jax.tree.leaves(jax.eval_shape(gradient_fn.init, key, state.params)):
        raise ValueError(
            f"gradient_state={state.gradient_state!r} is not what gradient_fn carries; make the "
            f"state with train.init(key, params, optimizer, gradient_fn)"
        )


def _check_gradient(gradient, params):
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    described = lambda tree: (
        jax.tree.structure(tree),
        [jnp.shape(x) for x in jax.tree.leaves(tree)],
    )
    if described(gradient) != described(params):
        raise ValueError(f"gradient has shapes {shapes(gradient)}; params, {shapes(params)}")


def _lift(gradient_fn: GradientFn | StatefulGradientFn) -> StatefulGradientFn:
    """A plain gradient as one with an empty state."""
    if isinstance(gradient_fn, StatefulGradientFn):
        return gradient_fn

    def step(key, params, state):
        returned = gradient_fn(key, params)
        check_returned(returned)
        gradient, metrics = returned
        return gradient, state, metrics

    return StatefulGradientFn(lambda key, params: (), step)


def _flat(tree: Any) -> jax.Array:
    """All leaves as one vector, on which few operations are needed, whatever the network."""
    return ravel_pytree(tree)[0]
