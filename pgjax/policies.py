"""Policies and value functions: pure functions of parameters and observations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from pgjax import backends, checks, distributions, heads
from pgjax.distributions import Distribution
from pgjax.heads import Head

Params = Any
Carry = Any


class Policy(NamedTuple):
    """A distribution over actions given what was observed.

    `step` acts on one observation, `unroll` evaluates a sequence of T for learning; for policies
    without memory the carry is `()` and the T observations may be any batch.
    """

    init: Callable[[jax.Array, jax.Array], Params]  # (key, obs [*O]) -> params
    initial_state: Callable[[], Carry]  # () -> carry; () without memory
    step: Callable[..., tuple[Carry, Distribution]]  # (params, carry, obs [*O]) -> (carry, dist)
    unroll: Callable[..., Distribution]  # (params, carry, obs [T, *O], boundary [T]) -> dist of T


def has_memory(policy: Policy) -> bool:
    """Whether a policy carries anything from step to step."""
    return bool(jax.tree.leaves(policy.initial_state()))


def check_memoryless(policy: Policy, what: str) -> None:
    """Raises `ValueError` for a policy with memory, which `what` is not for."""
    if has_memory(policy):
        raise ValueError(f"policy has a memory: {what} are for policies without one")


class ValueFunction(NamedTuple):
    """The expected return from an observation on, or from each action there."""

    init: Callable[[jax.Array, jax.Array], Params]  # (key, obs [*O]) -> params
    apply: Callable[[Params, jax.Array], jax.Array]  # (params, obs [*O]) -> [], or [A] for actions
    # (params, obs [B, *O]) -> [B], or [B, A]: the same of a batch, faster
    unroll: Callable[[Params, jax.Array], jax.Array] | None = None


OUTPUT_SCALE = 0.01
"""Of the last layer of a network: at first, all actions are about as likely."""


class Network(nn.Module):
    """Multilayer perceptron of the last axis; without hidden layers, a linear map.

    Hidden weights are scaled normals, never orthogonal: their QR factorisation, vmapped over
    seeds, can deadlock jaxlib's CPU thread pool.
    """

    hidden: Sequence[int]
    num_outputs: int
    num_free: int = 0
    free_value: float = 0.0
    activation: Callable[[jax.Array], jax.Array] = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)
        for width in self.hidden:
            kernel = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
            x = self.activation(self._dense(width, kernel)(x))
        kernel = nn.initializers.variance_scaling(OUTPUT_SCALE**2, "fan_in", "normal")
        x = self._dense(self.num_outputs, kernel)(x)
        if not self.num_free:
            return x
        start = nn.initializers.constant(self.free_value)
        free = self.param("free", start, (self.num_free,), dtype)
        return jnp.concatenate([x, jnp.broadcast_to(free, (*x.shape[:-1], self.num_free))], axis=-1)

    def _dense(self, width, kernel):
        dtype = jnp.result_type(float)
        return nn.Dense(width, kernel_init=kernel, param_dtype=dtype, dot_general=_dot_general)


NARROW = 4
"""Most columns of a kernel for which the gradient of its input is computed as a sum."""


def _dot_general(x, kernel, dimension_numbers, **options):
    """The product in a dense layer: `[F]` or `[B, F]` times `[F, H]`."""
    return matmul(x, kernel)


@jax.custom_jvp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, whose gradients are fast on a CPU.

    With respect to the kernel that is `x.T @ y`, where y is the gradient of the output. Left to
    itself, XLA folds the transpose into a product over leading axes, for which its CPU backend has
    slow code, slowest where there are few columns. A copy of the transpose costs less, and least
    for the narrower factor: for the last layer that is y, and the gradient is `(y.T @ x).T`.

    With respect to x it is `y @ kernel.T`: over few columns a sum, which XLA fuses into what comes
    next, where a product would write and read an array as large as x.

    Args:
      x: `[F]` or `[B, F]`.
      kernel: `[F, H]`.

    Returns:
      `[H]` or `[B, H]`.
    """
    return x @ kernel


@matmul.defjvp
def _(primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    copy = jax.lax.optimization_barrier if backends.current().copy_transposes else lambda x: x
    if kernel.shape[1] < kernel.shape[0]:
        rows = (((1,), (x.ndim - 1,)), ((), ()))
        of_kernel = jnp.moveaxis(copy(jax.lax.dot_general(copy(kernel_dot.T), x, rows)), 0, -1)
    else:
        first = copy(jnp.moveaxis(x, -1, 0))
        of_kernel = jax.lax.dot_general(first, kernel_dot, (((0,), (0,)), ((), ())))
    if kernel.shape[1] > NARROW:
        of_x = x_dot @ kernel
    else:
        columns = (jnp.broadcast_to(column, x.shape) for column in kernel.T)
        of_x = jnp.stack([jnp.sum(x_dot * column, axis=-1) for column in columns], axis=-1)
    return matmul(x, kernel), of_x + of_kernel


ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu}


def ravel(obs: jax.Array) -> jax.Array:
    """Features of an array observation: its entries, as floats."""
    return jnp.ravel(obs).astype(jnp.result_type(float))


def one_hot(num: int) -> Callable[[jax.Array], jax.Array]:
    """Features of an index below `num`: a unit vector."""
    return lambda obs: jax.nn.one_hot(obs, num, dtype=jnp.result_type(float))


def memoryless(
    init: Callable[[jax.Array, jax.Array], Params],
    apply: Callable[[Params, jax.Array], Distribution],
) -> Policy:
    """Policy that looks at one observation only.

    Args:
      init: `(key, obs) -> params`.
      apply: `(params, obs [*O]) -> distribution`.
    """
    return Policy(
        init=init,
        initial_state=lambda: (),
        step=lambda params, carry, obs: (carry, apply(params, obs)),
        unroll=lambda params, carry, obs, boundary: jax.vmap(apply, (None, 0))(params, obs),
    )


def tabular(num_states: int, num_actions: int) -> Policy:
    """Softmax over a table of logits: pi(a | s) = exp(theta[s, a]) / sum_b exp(theta[s, b]).

    Args:
      num_states: number of observations, S; an observation is an int32 index `[]`.
      num_actions: A.

    Returns:
      Policy whose params are the logits `[S, A]`, zero at first: the uniform policy.

    Raises:
      ValueError: a count below one.
    """
    checks.at_least("num_states", num_states, 1)
    checks.at_least("num_actions", num_actions, 1)
    return memoryless(
        init=lambda key, obs: jnp.zeros((num_states, num_actions)),
        apply=lambda params, obs: distributions.categorical(_row(params, obs)),
    )


def mlp(
    head: Head,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    features: Callable[[jax.Array], jax.Array] = ravel,
    free_value: float = 0.0,
) -> Policy:
    """Multilayer perceptron from features of the observation to the parameters of a distribution.

    Args:
      head: what the outputs mean; see `pgjax.heads`.
      hidden: widths of the hidden layers.
      activation: a name in `ACTIVATIONS`.
      features: `obs [*O] -> [F]`.
      free_value: initial value of the outputs that do not see the observation.

    Raises:
      ValueError: an unknown activation or a width below one.
    """
    network = _network(hidden, activation, head.num_outputs, head.num_free, free_value)

    def unroll(params, carry, obs, boundary):
        outputs = network.apply(params, jax.vmap(features)(obs))
        return jax.vmap(head.distribution)(outputs)

    one = memoryless(
        init=lambda key, obs: network.init(key, features(obs)),
        apply=lambda params, obs: head.distribution(network.apply(params, features(obs))),
    )
    return one._replace(unroll=unroll)


def linear(
    head: Head,
    *,
    features: Callable[[jax.Array], jax.Array] = ravel,
    free_value: float = 0.0,
) -> Policy:
    """Linear map, with bias, from features of the observation to the parameters of a distribution.

    Args:
      head: what the outputs mean; see `pgjax.heads`.
      features: `obs [*O] -> [F]`.
      free_value: initial value of the outputs that do not see the observation.
    """
    return mlp(head, hidden=(), features=features, free_value=free_value)


def mlp_value(
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    features: Callable[[jax.Array], jax.Array] = ravel,
    num_actions: int | None = None,
) -> ValueFunction:
    """Multilayer perceptron from features of the observation to a value, or to those of actions.

    Args:
      hidden: widths of the hidden layers; none makes it linear.
      activation: a name in `ACTIVATIONS`.
      features: `obs [*O] -> [F]`.
      num_actions: A, for the values `[A]` of all actions; None for one value `[]`.

    Raises:
      ValueError: an unknown activation, or a width or a number of actions below one.
    """
    if num_actions is not None:
        checks.at_least("num_actions", num_actions, 1)
    network = _network(hidden, activation, num_outputs=num_actions or 1)

    def values(params, x):
        outputs = network.apply(params, x)
        return outputs[..., 0] if num_actions is None else outputs

    return ValueFunction(
        init=lambda key, obs: network.init(key, features(obs)),
        apply=lambda params, obs: values(params, features(obs)),
        unroll=lambda params, obs: values(params, jax.vmap(features)(obs)),
    )


def values_of_batch(value_function: ValueFunction) -> Callable[[Params, jax.Array], jax.Array]:
    """`(params, obs [B, *O]) -> [B]`, or `[B, A]` for actions."""
    return value_function.unroll or jax.vmap(value_function.apply, (None, 0))


def tabular_value(num_states: int, *, num_actions: int | None = None) -> ValueFunction:
    """A table of values `[S]`, or of the actions' values `[S, A]`, zero at first.

    Args:
      num_states: S; an observation is an int32 index `[]`.
      num_actions: A, or None for one value of each state.

    Raises:
      ValueError: a count below one.
    """
    checks.at_least("num_states", num_states, 1)
    if num_actions is not None:
        checks.at_least("num_actions", num_actions, 1)
    shape = (num_states,) if num_actions is None else (num_states, num_actions)
    return ValueFunction(
        init=lambda key, obs: jnp.zeros(shape),
        apply=_row,
    )


def _row(table, index):
    # Past the table there is nothing; JAX's own indexing would take its last row.
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


class Greedy(NamedTuple):
    """All of a distribution's mass on its mode.

    Where x is a whole number, log P(x) is 0 at the mode and -inf elsewhere, and NaN where the
    distribution gives NaN. A continuous one has no density left: its log-probability is 0, and
    good for nothing but acting.
    """

    distribution: Any

    @property
    def probs(self):
        """Probabilities in the shape of those of the distribution, which has to be finite."""
        probs, mode = self.distribution.probs, self.mode()
        if probs.ndim == mode.ndim:  # of a one
            return mode.astype(probs.dtype)
        return jax.nn.one_hot(mode, probs.shape[-1], dtype=probs.dtype)

    def sample(self, key):
        return self.distribution.mode()

    def log_prob(self, x):
        if self.support is not None:
            return jnp.zeros(self.batch_shape)
        log_prob, mode = self.distribution.log_prob(x), self.mode()
        event = tuple(range(len(self.batch_shape) - mode.ndim, 0))
        at_mode = jnp.all(jnp.equal(*jnp.broadcast_arrays(x, mode)), axis=event)
        known = jnp.where(at_mode, 0, -jnp.inf).astype(log_prob.dtype)
        return jnp.where(jnp.isnan(log_prob), jnp.nan, known)

    def entropy(self):
        return jnp.zeros(self.distribution.batch_shape)

    def mode(self):
        return self.distribution.mode()

    @property
    def batch_shape(self):
        return self.distribution.batch_shape

    def squash(self, x):
        return self.distribution.squash(x)

    @property
    def support(self):
        return self.distribution.support


def greedy(policy: Policy) -> Policy:
    """The policy that always takes the mode of its distribution: to evaluate, not to learn from."""

    def step(params, carry, obs):
        carry, distribution = policy.step(params, carry, obs)
        return carry, Greedy(distribution)

    def unroll(params, carry, obs, boundary):
        return Greedy(policy.unroll(params, carry, obs, boundary))

    return policy._replace(step=step, unroll=unroll)


POLICIES = {
    "tabular": "a softmax table, for discrete observations and actions",
    "linear": "a linear map of the observation",
    "mlp": "a multilayer perceptron of the observation",
}
"""Kinds of policy and value function `make` and `make_value` know."""


def make(
    kind: str,
    env: Any,
    env_params: Any,
    *,
    distribution: str = "auto",
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    initial_log_std: float = 0.0,
) -> Policy:
    """A policy that fits an environment's observations and actions.

    Args:
      kind: a name in `POLICIES`.
      env: a gymnax environment.
      env_params: its parameters.
      distribution: a name in `heads.DISTRIBUTIONS`.
      hidden: widths of the hidden layers of `mlp`.
      activation: a name in `ACTIVATIONS`.
      initial_log_std: log standard deviation at first of `normal` (in units of half the action
        range, where that is finite) and `tanh_normal`.

    Raises:
      ValueError: unknown names, or a policy that does not fit the spaces.
    """
    checks.choice("policy", kind, POLICIES)
    # Also while a program is traced, spaces are to be numbers that can be looked at.
    with jax.ensure_compile_time_eval():
        obs_space, space = env.observation_space(env_params), env.action_space(env_params)
    if kind == "tabular":
        if distribution not in ("auto", "categorical"):
            raise ValueError(f"distribution={distribution!r} does not go with policy='tabular'")
        _check_tabular(env, obs_space)
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"policy='tabular' needs discrete actions; {env.name} has {space}")
        return tabular(obs_space.n, space.n)
    with jax.ensure_compile_time_eval():
        head = heads.for_space(space, distribution, env.name)
    features = _features(obs_space)
    if kind == "linear":
        return linear(head, features=features, free_value=initial_log_std)
    return mlp(
        head,
        hidden=hidden,
        activation=activation,
        features=features,
        free_value=initial_log_std,
    )


def make_value(
    kind: str,
    env: Any,
    env_params: Any,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    num_actions: int | None = None,
) -> ValueFunction:
    """A value function that fits an environment's observations; arguments as in `make`.

    With `num_actions`, one that gives the value of each action.
    """
    checks.choice("policy", kind, POLICIES)
    obs_space = env.observation_space(env_params)
    if kind == "tabular":
        _check_tabular(env, obs_space)
        return tabular_value(obs_space.n, num_actions=num_actions)
    return mlp_value(
        hidden=() if kind == "linear" else hidden,
        activation=activation,
        features=_features(obs_space),
        num_actions=num_actions,
    )


def _network(hidden, activation, num_outputs, num_free=0, free_value=0.0) -> Any:
    checks.choice("activation", activation, ACTIVATIONS)
    for width in hidden:
        checks.at_least("hidden", width, 1)
    return Network(
        hidden=tuple(hidden),
        num_outputs=num_outputs,
        num_free=num_free,
        free_value=free_value,
        activation=ACTIVATIONS[activation],
    )


def _features(obs_space):
    return one_hot(obs_space.n) if isinstance(obs_space, spaces.Discrete) else ravel


def _check_tabular(env, obs_space) -> None:
    if not isinstance(obs_space, spaces.Discrete):
        raise ValueError(
            f"policy='tabular' needs discrete observations; {env.name} has {obs_space}"
        )
