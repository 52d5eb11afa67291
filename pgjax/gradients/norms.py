"""Squared norms of the gradients of single trajectories, without the gradients."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from pgjax import estimators
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.policy import check_counts
from pgjax.gradients.samples import GRADIENT_FIELDS, check_fields, memories, repeat_first, resolve
from pgjax.gradients.value import make_steps
from pgjax.policies import Params, Policy, has_memory
from pgjax.rollout import Trajectory

Path = tuple[str, ...]


def squared_norms(
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
) -> jax.Array:
    """|g_i|^2 of the gradient of each row, g_i = sum_t Psi_it grad log pi(a_it | s_it).

    The gradient of a dense layer is a sum over time of outer products of its input and of what is
    propagated back to its output, G = sum_t x_t d_t^T. Its norm is computed in one of two ways,
    whichever takes fewer multiplications,

        |G|^2 = |X^T D|^2 = sum_{t,k} (x_t . x_k) (d_t . d_k)

    the second of which never forms G: cheaper where T (in + out) < in out, short episodes and wide
    layers. Other parameters are differentiated a row at a time. With the gradient of the batch,
    the mean of the g_i, the norms give the trace of the covariance of single trajectories,
    (sum |g_i|^2 - N |mean|^2) / (N - 1), where rows are independent: with baselines that do not
    look at other rows.

    Args:
      params: the policy's parameters.
      trajectory: N rows of T steps.
      policy: the policy that acted; dense layers are found where it is a flax network without
        memory.
      estimator: form, baseline and state weighting.
      hyper: discount, lambda and the like; no entropy bonus.
      value: `[N, T]` values of the observations; for estimators that read them.
      next_value: `[N, T]` values of the true next observations; for bootstrapping forms.
      policy_state: `[N, ...]` carry of a policy with memory before the first step, of rows that
        did not start there (`Rows.policy_state`); by default the policy's initial state.
      chunk_size: samples whose activations are held at a time, at least one row; None takes what
        suits the device.

    Returns:
      `[N]` squared norms.

    Raises:
      ValueError: as `trajectory_gradient`, or an entropy bonus.

    Source: Goodfellow 2015, "Efficient Per-Example Gradient Computations"; for sequences, Li et
    al. 2022, "Large Language Models Can Be Strong Differentially Private Learners".
    """
    check_counts(chunk_size=chunk_size)
    estimators.check_hyper(hyper)
    estimators.check_no_bonus(hyper, "squared norms")
    check_fields(trajectory, GRADIENT_FIELDS)
    params, trajectory = jax.tree.map(jnp.asarray, (params, trajectory))
    steps = make_steps(estimator, trajectory, value, next_value)
    weight = jax.lax.stop_gradient(estimators.psi(estimator, steps, hyper))
    live = trajectory.mask > 0
    obs, action = jax.tree.map(lambda x: repeat_first(x, live), (trajectory.obs, trajectory.action))
    first = jax.tree.map(lambda x: x[0, 0], (obs, action))
    layers = _dense_layers(policy, params, *first)
    rest, merge = _split(params, layers)
    num_steps = weight.shape[1]
    probes = {path: jnp.zeros((num_steps, out), weight.dtype) for path, out in layers.items()}

    def row(inputs):
        start, obs, action, boundary, weight = inputs

        def credited(rest, probes):
            own = merge(rest)
            if not layers:
                log_prob = policy.unroll(own, start, obs, boundary).log_prob(action)
                return jnp.sum(weight * log_prob), {}
            step = jax.vmap(_probed(policy), (None, 0, 0, 0))
            log_prob, seen = step(own, probes, obs, action)
            return jnp.sum(weight * log_prob), seen

        gradients, seen = jax.grad(credited, argnums=(0, 1), has_aux=True)(rest, probes)
        own, back = gradients
        total = sum(jnp.sum(leaf**2) for leaf in own)
        return total + sum(_dense_norm(seen[path], back[path]) for path in layers)

    start = memories(policy, policy_state, len(live))
    rows = (start, obs, action, steps.boundary, weight)
    return jax.lax.map(row, rows, batch_size=max(1, resolve(chunk_size) // num_steps))


def _dense_norm(x: jax.Array, back: jax.Array) -> jax.Array:
    """Squared norm of the gradient of kernel and bias, from `[T, in]` and `[T, out]`."""
    bias = jnp.sum(jnp.sum(back, axis=0) ** 2)
    num_steps, num_in, num_out = len(x), x.shape[1], back.shape[1]
    if num_steps * (num_in + num_out) < num_in * num_out:
        return bias + jnp.sum((x @ x.T) * (back @ back.T))
    return bias + jnp.sum((x.T @ back) ** 2)


def _probed(policy: Policy):
    """`(params, probes, obs, action) -> (log_prob, inputs)`; probes are added to outputs."""

    def step(params, probes, obs, action):
        seen = {}

        def intercept(next_fun, args, kwargs, context):
            out = next_fun(*args, **kwargs)
            path = context.module.path
            if path not in probes or not _is_call(context):
                return out
            seen[path] = args[0]
            return out + probes[path]

        with nn.intercept_methods(intercept):
            _, distribution = policy.step(params, policy.initial_state(), obs)
        return distribution.log_prob(action), seen

    return step


def _dense_layers(policy: Policy, params: Params, obs: Any, action: Any) -> dict[Path, int]:
    """Width of each dense layer with a bias that sees one vector, once, by its path.

    Its kernel and bias are leaves of the parameters as they are, read nowhere else: not normalised,
    mapped over by a transform of flax, or shared with others.
    """
    if has_memory(policy):
        return {}
    calls: list[Path] = []
    widths: dict[Path, int] = {}

    def without_layers(params, obs, action):
        """What is computed beside the layers, whose outputs are replaced; their inputs too."""
        inputs = {}

        def intercept(next_fun, args, kwargs, context):
            out = next_fun(*args, **kwargs)
            if not _is_call(context):
                return out
            path = context.module.path
            calls.append(path)
            held = context.module.variables["params"].values()
            own = [x for key, x in jax.tree_util.tree_leaves_with_path(params) if _is_of(key, path)]
            as_it_is = len(own) == 2 and set(map(id, own)) == set(map(id, held))
            # Within a transform, an input is another kind of tracer.
            if not (as_it_is and args and args[0].ndim == 1 and type(args[0]) is type(own[0])):
                return out
            widths[path], inputs[path] = out.shape[-1], args[0]
            return jnp.zeros_like(out)

        with nn.intercept_methods(intercept):
            _, distribution = policy.step(params, policy.initial_state(), obs)
        return distribution.log_prob(action), inputs

    program = jax.make_jaxpr(without_layers)(params, obs, action).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    keys = [key for key, _ in jax.tree_util.tree_leaves_with_path(params)]
    read = list(itertools.compress(keys, used))
    alone = lambda path: calls.count(path) == 1 and not any(_is_of(key, path) for key in read)
    return {path: width for path, width in widths.items() if alone(path)}


def _is_call(context: nn.module.InterceptorContext) -> bool:
    return isinstance(context.module, nn.Dense) and context.method_name == "__call__"


def _is_of(key, path) -> bool:
    """Whether a leaf is the kernel or the bias of the layer at a path."""
    names = tuple(str(getattr(part, "key", part)) for part in key)
    return any(names[-len(path) - 2 :] == ("params", *path, name) for name in ("kernel", "bias"))


def _split(params, layers):
    """The leaves that are not those of the layers, and what puts others in their place."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    found = [(leaf, any(_is_of(key, path) for path in layers)) for key, leaf in leaves]

    def merge(rest):
        given = iter(rest)
        return jax.tree.unflatten(structure, [x if own else next(given) for x, own in found])

    return [leaf for leaf, own in found if not own], merge
