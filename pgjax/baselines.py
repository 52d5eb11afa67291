"""Statistics of a batch used as baselines: what is subtracted from a return before its score.

Each takes the returns `x [N, ...]` of N independent rows, with `mask [N, T]` where the rows' ends
matter, and gives a baseline of the shape of `x`. A baseline leaves the gradient unbiased when it
does not depend on the row it is subtracted from.

Means are taken in two passes, the second of what the first leaves: where all entries are equal,
x - b is zero and not the rounding of a sum, which an optimiser such as Adam would scale up to full
steps.
"""

import chex
import jax
import jax.numpy as jnp


def zero(x: jax.Array) -> jax.Array:
    """No baseline: b = 0. Unbiased."""
    return jnp.zeros_like(x)


def batch_mean(x: jax.Array) -> jax.Array:
    """Mean over all rows, row i included: b_i = 1/N sum_j x_j.

    Biased: the gradient is exactly (N-1)/N of the leave-one-out gradient.
    """
    centre = jnp.mean(x, axis=0, keepdims=True)
    return jnp.broadcast_to(centre + jnp.mean(x - centre, axis=0, keepdims=True), x.shape)


def leave_one_out(x: jax.Array) -> jax.Array:
    """Mean over the other rows: b_i = 1/(N-1) sum_{j != i} x_j. Unbiased; needs N >= 2.

    Per time step where `x` is; rows that have ended count with their `x` there, which is zero for a
    reward-to-go.

    Source: Kool et al. 2019; Mnih & Rezende 2016.
    """
    centre = jnp.mean(x, axis=0, keepdims=True)
    left = x - centre
    return centre + (jnp.sum(left, axis=0, keepdims=True) - left) / (x.shape[0] - 1)


def leave_one_out_live(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the other rows still live at the same step; zero where there are none. Unbiased.

    b_it = sum_{j != i} m_jt x_jt / max(1, sum_{j != i} m_jt)
    """
    chex.assert_equal_shape([x, mask])
    count = jnp.sum(mask, axis=0, keepdims=True)
    centre = jnp.sum(mask * x, axis=0, keepdims=True) / jnp.maximum(count, 1)
    left, others = mask * (x - centre), count - mask
    total = jnp.sum(left, axis=0, keepdims=True) - left
    return jnp.where(others > 0, centre + total / jnp.maximum(others, 1), 0)


def time_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over every live step of the other rows, one number a row. Unbiased; needs N >= 2.

    b_i = sum_{j != i} sum_t m_jt x_jt / sum_{j != i} sum_t m_jt
    """
    chex.assert_equal_shape([x, mask])
    centre = jnp.sum(mask * x) / jnp.maximum(jnp.sum(mask), 1)
    total = jnp.sum(mask * (x - centre), axis=1, keepdims=True)
    count = jnp.sum(mask, axis=1, keepdims=True)
    others = jnp.sum(count) - count
    mean = centre + (jnp.sum(total) - total) / jnp.maximum(others, 1)
    return jnp.broadcast_to(jnp.where(others > 0, mean, 0), x.shape)


def standardise(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The baseline whose subtraction standardises: x - b = (x - mean) / std, over live entries.

    Biased, as `standardised` says. Where x is large, its subtraction rounds (x - mean) / std to
    nothing: who wants that takes `standardised` itself.
    """
    return x - standardised(x, mask)


def standardised(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """What the baseline `standardise` leaves: (x - mean) / std, over live entries.

    Biased as a weight: it rescales the gradient by a random factor and sees the row it weighs.
    A batch without spread has zero weights, so that nothing is learned from it; one whose squares
    overflow has NaN.
    """
    mask = jnp.ones_like(x) if mask is None else mask
    chex.assert_equal_shape([x, mask])
    count = jnp.maximum(jnp.sum(mask), 1)
    centred = x - jnp.sum(mask * x) / count
    std = jnp.sqrt(jnp.sum(mask * centred**2) / count)
    rounding = 1e-6 if jnp.finfo(centred.dtype).bits < 64 else 1e-13  # of sums of many rewards
    size = jnp.sqrt(jnp.sum(mask * x**2) / count)
    flat = std <= rounding * size  # never of NaN
    weight = jnp.where(flat, 0, centred / jnp.where(flat, 1, std))
    return jnp.where(jnp.isfinite(size), weight, jnp.nan)


BATCH = {
    "none": zero,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "standardise": standardise,
}
"""Baselines of a plain batch `[N]`, by name."""

COUPLED = {"batch_mean", "leave_one_out", "leave_one_out_live", "time_mean", "standardise"}
"""Names of the baselines that look at other rows, and so need at least two."""
