"""Heads: from the outputs of a network to a distribution over actions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from pgjax import checks, distributions
from pgjax.distributions import Distribution


class Head(NamedTuple):
    """From the outputs of a network to a distribution.

    The last `num_free` outputs are parameters of their own that do not see the observation.
    """

    num_outputs: int
    num_free: int
    distribution: Callable[[jax.Array], Distribution]  # [num_outputs + num_free] -> dist


def categorical(num_actions: int) -> Head:
    """Logits of a categorical over `num_actions`."""
    return Head(num_actions, 0, distributions.categorical)


def bernoulli() -> Head:
    """Logit of one Bernoulli."""
    return Head(1, 0, lambda outputs: distributions.bernoulli(outputs[0]))


def normal(shape: Sequence[int], centre: Any = 0.0, half_range: Any = 1.0) -> Head:
    """Normal action of a shape, in units of the half range around the centre.

    The mean is an output of the network, the log standard deviation a free parameter.
    """
    size = math.prod(shape)

    def distribution(outputs):
        loc, log_std = outputs[:size].reshape(shape), outputs[size:].reshape(shape)
        normal = distributions.normal(centre + half_range * loc, half_range * jnp.exp(log_std))
        return _event(normal, shape)

    return Head(size, size, distribution)


def tanh_normal(shape: Sequence[int]) -> Head:
    """Normal squashed by tanh: mean from the network, log standard deviation free."""
    size = math.prod(shape)

    def distribution(outputs):
        loc, log_std = outputs[:size].reshape(shape), outputs[size:].reshape(shape)
        return _event(distributions.tanh_normal(loc, jnp.exp(log_std)), shape)

    return Head(size, size, distribution)


def beta(shape: Sequence[int]) -> Head:
    """Beta with both concentrations above one, so that it has a single mode inside."""
    size = math.prod(shape)

    def distribution(outputs):
        alpha, beta = 1 + jax.nn.softplus(outputs).reshape(2, *shape)
        return _event(distributions.beta(alpha, beta), shape)

    return Head(2 * size, 0, distribution)


DISTRIBUTIONS = {
    "auto": "categorical for discrete actions, normal for continuous ones",
    "categorical": "discrete actions",
    "bernoulli": "two discrete actions from one logit",
    "normal": "continuous actions, clipped to their bounds before the environment",
    "tanh_normal": "continuous bounded actions, squashed by tanh",
    "beta": "continuous bounded actions",
}
"""Action distributions `for_space` knows."""


def for_space(space: spaces.Space, distribution: str, env_name: str) -> Head:
    """The head of a distribution over the actions of a space.

    Args:
      space: the action space.
      distribution: a name in `DISTRIBUTIONS`.
      env_name: shown in messages.

    Raises:
      ValueError: an unknown distribution, or one that does not fit the space.
    """
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    if isinstance(space, spaces.Discrete):
        if distribution in ("auto", "categorical"):
            return categorical(space.n)
        if distribution == "bernoulli" and space.n == 2:
            return bernoulli()
    elif isinstance(space, spaces.Box):
        bounded = bool(np.all(np.isfinite(space.low)) and np.all(np.isfinite(space.high)))
        if distribution in ("auto", "normal"):
            if not bounded:
                return normal(space.shape)
            low, high = jnp.asarray(space.low), jnp.asarray(space.high)
            return normal(space.shape, (high + low) / 2, (high - low) / 2)
        if distribution == "tanh_normal" and bounded:
            return tanh_normal(space.shape)
        if distribution == "beta" and bounded:
            return beta(space.shape)
    raise ValueError(
        f"distribution={distribution!r} does not fit the actions of {env_name}, {space}"
    )


def _event(distribution: Distribution, shape: Sequence[int]) -> Distribution:
    for _ in shape:
        distribution = distributions.independent(distribution)
    return distribution
