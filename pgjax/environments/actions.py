"""Between policy and environment: from what a distribution sampled to a legal action."""

import math

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from pgjax.distributions import Categorical, Distribution


def to_action(space: spaces.Space, distribution: Distribution, sample: jax.Array) -> jax.Array:
    """The action an environment gets for a sample; the log-probability stays the sample's own.

    A distribution of bounded support (tanh-normal, beta) is squashed and stretched over the
    bounds of the action space; any other sample is clipped to them. Discrete actions pass,
    in the dtype of the space.

    Args:
      space: the environment's action space.
      distribution: what was sampled from.
      sample: `[...]`, as `distribution.sample` gave it.

    Raises:
      ValueError: for a discrete space, a categorical over more actions than it has, or samples that
        are floating-point numbers.
    """
    if isinstance(space, spaces.Discrete):
        if jnp.issubdtype(sample.dtype, jnp.floating):
            raise ValueError(f"policy's actions are {sample.dtype}; the environment's, discrete")
        num = distribution.logits.shape[-1] if isinstance(distribution, Categorical) else 0
        if num > space.n:
            raise ValueError(f"policy chooses from {num} actions; the environment has {space.n}")
        return sample.astype(space.dtype)
    if not isinstance(space, spaces.Box):
        return sample
    action = distribution.squash(sample)
    low, high = distribution.support or (-math.inf, math.inf)
    if math.isfinite(low) and math.isfinite(high):
        action = space.low + (action - low) / (high - low) * (space.high - space.low)
    return jnp.clip(action, space.low, space.high)
