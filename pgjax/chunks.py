"""The live entries of a batch, some at a time, so that cost follows what is live."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import batching

SLAB = 512
"""Chunks whose entries are looked for at a time: the memory that takes does not grow with the
batch, and what is lost where the last chunk of a slab is not full stays small."""


class Chunks(NamedTuple):
    """Indices of live entries, cut into chunks; the tail repeats the first of them."""

    index: jax.Array  # [C, B] int32
    valid: jax.Array  # [C, B] bool, false in the tail
    num: jax.Array  # [] chunks that hold any live entry, at most C


def live_chunks(mask: jax.Array, size: int) -> Chunks:
    """Cuts the live entries of a mask, taken as flat `[M]`, into chunks of `size`, in order."""
    live = jnp.ravel(mask) > 0
    width = min(size, live.size)
    num_chunks = -(-live.size // width)
    padded = num_chunks * width
    rank = jnp.cumsum(live)
    count = rank[-1]
    place = jnp.where(live, rank - 1, padded)  # past the end, so dropped, where not live
    entries = jnp.arange(live.size, dtype=jnp.int32)
    index = jnp.zeros(padded, jnp.int32).at[place].set(entries, mode="drop")
    valid = jnp.arange(padded) < count
    index = jnp.where(valid, index, index[0]).reshape(num_chunks, width)
    num = batching.max_of_all(-(-count // width))
    return Chunks(index, valid.reshape(num_chunks, width), num)


def fold(
    function: Callable[[jax.Array, jax.Array, Any], Any], init: Any, mask: jax.Array, size: int
) -> Any:
    """Carries a value through chunks of the live entries of a mask, in order.

    Args:
      function: `(index [B], valid [B], carry) -> carry`; indices that are not valid count for
        nothing, and are those of live entries.
      init: the first carry.
      mask: taken as flat, `[M]`.
      size: live entries of a chunk, B, at most M.
    """
    live = jnp.ravel(mask if mask.dtype == bool else mask > 0)  # alike, to be computed once
    num = min(SLAB * size, live.size)

    def fold_slab(number, carry):
        # The last slab takes along entries of the one before, which are not live a second time.
        start = jnp.minimum(number * num, live.size - num)
        own = jax.lax.dynamic_slice(live, [start], [num])
        chunks = live_chunks(own & (start + jnp.arange(num) >= number * num), size)
        step = lambda at, carry: function(start + chunks.index[at], chunks.valid[at], carry)
        return jax.lax.fori_loop(0, chunks.num, step, carry)

    return jax.lax.fori_loop(0, -(-live.size // num), fold_slab, init)


def take(tree: Any, index: jax.Array) -> Any:
    """Entries `index [B]` of every leaf `[M, ...]`.

    Neighbours, as all are where everything is live, are one slice: picked one by one, they would
    take a tenth of the time of the gradient that they are for.
    """
    first, width = index[0], len(index)
    scattered = index != first + jnp.arange(width, dtype=index.dtype)
    return jax.lax.cond(
        batching.any_of_all(scattered),
        lambda: jax.tree.map(lambda x: x[index], tree),
        lambda: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width), tree),
    )
