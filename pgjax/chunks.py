"""The live entries of a batch, some at a time, so that cost follows what is live."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import batching


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
