"""Policies and value functions: pure functions of parameters and observations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from pgjax import checks, distributions, heads, networks
from pgjax.distributions import Distribution
from pgjax.heads import Head
from pgjax.score import Params

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
    shape = (num_states, num_actions)
    return memoryless(
        init=lambda key, obs: jnp.zeros(shape),
        apply=lambda params, obs: distributions.categorical(_row(params, obs, shape)),
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
      activation: a name in `networks.ACTIVATIONS`.
      features: `obs [*O] -> [F]`.
      free_value: initial value of the outputs that do not see the observation.

    Returns:
      Policy whose params are those of a `networks.Network`; at first, actions are nearly as likely
      as each other.

    Raises:
      ValueError: an unknown activation or a width below one.
    """
    network = networks.mlp(hidden, activation, head.num_outputs, head.num_free, free_value)

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

    Returns:
      Policy whose params are those of a `networks.Network` without hidden layers.
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
      activation: a name in `networks.ACTIVATIONS`.
      features: `obs [*O] -> [F]`.
      num_actions: A, for the values `[A]` of all actions; None for one value `[]`.

    Returns:
      `ValueFunction` whose params are those of a `networks.Network`.

    Raises:
      ValueError: an unknown activation, or a width or a number of actions below one.
    """
    if num_actions is not None:
        checks.at_least("num_actions", num_actions, 1)
    network = networks.mlp(hidden, activation, num_outputs=num_actions or 1)

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
        apply=lambda params, obs: _row(params, obs, shape),
    )


def _row(table, index, shape):
    if jnp.shape(table) != shape:
        raise ValueError(f"params of a table have shape {jnp.shape(table)}; expected {shape}")
    table = jnp.asarray(table)
    # Past the table there is nothing; JAX's own indexing would take its last row.
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


def greedy(policy: Policy) -> Policy:
    """The policy that always takes the mode of its distribution: to evaluate, not to learn from."""

    def step(params, carry, obs):
        carry, distribution = policy.step(params, carry, obs)
        return carry, distributions.Greedy(distribution)

    def unroll(params, carry, obs, boundary):
        return distributions.Greedy(policy.unroll(params, carry, obs, boundary))

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
      activation: a name in `networks.ACTIVATIONS`.
      initial_log_std: log standard deviation at first of `normal` (in units of half the action
        range, where that is finite) and `tanh_normal`.

    Returns:
      A policy without memory; its discrete observations are indices, one-hot for networks.

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
    features = _features(env, obs_space)
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

    Raises:
      ValueError: as `make`, or a number of actions below one.
    """
    checks.choice("policy", kind, POLICIES)
    obs_space = env.observation_space(env_params)
    if kind == "tabular":
        _check_tabular(env, obs_space)
        return tabular_value(obs_space.n, num_actions=num_actions)
    return mlp_value(
        hidden=() if kind == "linear" else hidden,
        activation=activation,
        features=_features(env, obs_space),
        num_actions=num_actions,
    )


def _features(env, obs_space):
    if isinstance(obs_space, spaces.Dict | spaces.Tuple):
        raise ValueError(
            f"observations of {env.name} are no arrays but a {type(obs_space).__name__}; "
            "policies.mlp(head, features=...) takes what makes vectors of them"
        )
    return one_hot(obs_space.n) if isinstance(obs_space, spaces.Discrete) else ravel


def _check_tabular(env, obs_space) -> None:
    if not isinstance(obs_space, spaces.Discrete):
        raise ValueError(
            f"policy='tabular' needs discrete observations; {env.name} has {obs_space}"
        )
