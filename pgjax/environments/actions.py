"""Between policy and environment: from what a distribution sampled to a legal action."""

import math

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from pgjax.distributions import Distribution


def to_action(space: spaces.Space, distribution: Distribution, sample: jax.Array) -> jax.Array:
    """The action an environment gets for a sample; the log-probability stays the sample's own.

    A distribution of bounded support (tanh-normal, beta) is squashed and stretched over the
    bounds of the action space; any other sample is clipped to them. Discrete actions pass,
    as JAX's default integers.

    Args:
      space: the environment's action space.
      distribution: what was sampled from.
      sample: `[...]`, as `distribution.sample` gave it.
    """
    if not isinstance(space, spaces.Box):
        return sample.astype(int)  # int64 with x64, where gymnax's own integers are int64 too
    action = distribution.squash(sample)
    low, high = distribution.support or (-math.inf, math.inf)
    if math.isfinite(low) and math.isfinite(high):
        action = space.low + (action - low) / (high - low) * (space.high - space.low)
    return jnp.clip(action, space.low, space.high)
