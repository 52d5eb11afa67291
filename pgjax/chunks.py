"""The live entries of a batch, some at a time, so that cost follows what is live."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pgjax import batching, bits

SEARCHED = 512
"""Chunks of the largest size whose entries are searched for at a time: memory then does not grow
with the batch, and only the last chunk of a slab is not full."""


def fold(
    function: Callable[[jax.Array, jax.Array, Any], Any],
    init: Any,
    mask: jax.Array,
    sizes: Sequence[int],
    spare: int | None = None,
) -> Any:
    """Carries a value through chunks of the live entries of a mask, in order.

    Args:
      function: `(index [B], valid [B], carry) -> carry`, traced for every size; entries that are
        not valid are to be ignored. Vmapped calls all make as many turns as the one with most
        chunks; in those that it has too many, nothing is valid.
      init: the first carry.
      mask: bool, taken as flat, `[M]`.
      sizes: numbers of entries B that a chunk may have. Which of them an entry's chunk has depends
        on its own mask, not on those vmapped with it.
      spare: most entries that are left over for smaller chunks; None for half a chunk.

    Returns:
      The last carry.
    """
    return fold_each([function], [init], mask, sizes, spare)[0]


def fold_each(
    functions: Sequence[Callable[[jax.Array, jax.Array, Any], Any]],
    inits: Sequence[Any],
    mask: jax.Array,
    sizes: Sequence[int],
    spare: int | None = None,
) -> list[Any]:
    """`fold` for several functions, with a single search for the live entries."""
    # While it compiles, XLA would spend seconds on counting through a constant mask.
    live = jax.lax.optimization_barrier(jnp.ravel(mask))
    sizes = sorted({min(size, live.size) for size in sizes}, reverse=True)
    num = min(SEARCHED * sizes[0], live.size)

    def fold_slab(number, carries):
        # The last slab overlaps the one before; what it repeats is not live a second time.
        start = jnp.minimum(number * num, live.size - num)
        own = jax.lax.dynamic_slice(live, [start], [num])
        own &= start + jnp.arange(num) >= number * num
        index, count = batching.true_first(own, sizes[0])

        def fold_chunk(function, begin, end, size, at, carry):
            first = begin + at * size
            chunk = jax.lax.dynamic_slice(index, [first], [size])
            return function(start + chunk, first + jnp.arange(size) < end, carry)

        def fold_one(function, carry):
            begin = jnp.zeros_like(count)
            for size in sizes:
                to_smaller = size // 2 if spare is None else spare
                left = count - begin - (0 if size == sizes[-1] else to_smaller)
                num_chunks = jnp.maximum(0, -(-left // size))
                end = begin + num_chunks * size
                chunk = partial(fold_chunk, function, begin, jnp.minimum(end, count), size)
                carry = jax.lax.fori_loop(0, batching.max_across_vmap(num_chunks), chunk, carry)
                begin = end
            return carry

        return list(map(fold_one, functions, carries))

    if num == live.size:
        return fold_slab(0, inits)
    return jax.lax.fori_loop(0, -(-live.size // num), fold_slab, list(inits))


def take(tree: Any, index: jax.Array) -> Any:
    """Entries `index [B]` of every leaf `[M, ...]`; indices ascend, except those that fill it up.

    Neighbours, as all entries are where everything is live, are taken as one slice, which takes
    less time than gathering them. Bits are unpacked.
    """
    first, width = index[0], len(index)
    scattered = index[-1] - first != width - 1
    # As vectors: a CPU copies entries piece by piece, and a piece is what lies on the last axis.
    flat = jax.tree.map(lambda x: x.reshape(len(x), -1) if x.ndim > 2 else x, tree)
    taken = jax.lax.cond(
        batching.any_across_vmap(scattered),
        lambda: jax.tree.map(lambda x: x[index], flat),
        lambda: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width), flat),
    )
    restored = lambda x, like: x.reshape(width, *like.shape[1:])
    return bits.unpack(jax.tree.map(restored, taken, tree))
