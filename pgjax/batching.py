"""How programs behave when they are vmapped: loop bounds that all share, and work done in turn.

A `while_loop` whose condition differs over a vmapped axis selects between old and new carry at
every iteration, which copies a trajectory again and again. `any_of_all` and `max_of_all` reduce
over the vmapped axes too, so that the loop runs until all are done.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pgjax import backends


@jax.custom_batching.custom_vmap
def any_of_all(x: jax.Array) -> jax.Array:
    """Whether anything is true, over all axes and all vmapped axes."""
    return jnp.any(x)


@any_of_all.def_vmap
def _(axis_size, in_batched, x):
    return any_of_all(x), False


@jax.custom_batching.custom_vmap
def max_of_all(x: jax.Array) -> jax.Array:
    """The largest entry, over all axes and all vmapped axes."""
    return jnp.max(x)


@max_of_all.def_vmap
def _(axis_size, in_batched, x):
    return max_of_all(x), False


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose vmapped calls are made in turn on a CPU, and side by side elsewhere.

    For work that fills a core's cache by itself: in turn, each call has loop bounds of its own
    and sums in an order that the others do not change, so that its result is the same bits
    however many there are. Numbers that are no arrays stay constants, and what `function` closes
    over must not be vmapped.
    """

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

        def restored(*arrays):
            given = iter(arrays)
            filled = [next(given) if isinstance(x, jax.Array) else x for x in leaves]
            return function(*jax.tree.unflatten(structure, filled))

        return _in_turn(restored)(*arrays)

    return call


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    apply = jax.custom_batching.custom_vmap(function)

    @apply.def_vmap
    def _(axis_size, in_batched, *arrays):
        if not backends.current().in_turn:
            axes = [0 if batched else None for batched in in_batched]
            out = jax.vmap(function, axes, axis_size=axis_size)(*arrays)
            return out, jax.tree.map(lambda _: True, out)

        def one(index):
            pairs = zip(arrays, in_batched, strict=True)
            return apply(*(x[index] if batched else x for x, batched in pairs))

        def store(index, out):
            return jax.tree.map(lambda buffer, x: buffer.at[index].set(x), out, one(index))

        blank = lambda x: jnp.zeros((axis_size, *x.shape), x.dtype)
        # Unknown to the compiler, so that it does not fuse a single call with what surrounds it.
        num = jax.lax.optimization_barrier(jnp.int32(axis_size))
        out = jax.lax.fori_loop(0, num, store, jax.tree.map(blank, jax.eval_shape(one, 0)))
        return out, jax.tree.map(lambda _: True, out)

    return apply


def seldom(function: Callable[..., Any]) -> Callable[..., Any]:
    """`(condition, otherwise, *args) -> function(*args)` where a condition holds, else `otherwise`.

    For work that few of many vmapped calls need: on a CPU only those do it, some at a time;
    elsewhere all do it side by side, and it is chosen from. What `function` closes over must not be
    vmapped.
    """

    @jax.custom_batching.custom_vmap
    def apply(condition, otherwise, args):
        return choose(condition, function(*args), otherwise)

    @apply.def_vmap
    def _(axis_size, in_batched, condition, otherwise, args):
        batched, old_batched, args_batched = in_batched
        fill = lambda x, has: x if has else jnp.broadcast_to(x, (axis_size, *x.shape))
        otherwise = jax.tree.map(fill, otherwise, old_batched)
        condition = fill(condition, batched)
        axes = jax.tree.map(lambda has: 0 if has else None, args_batched)
        many = jax.vmap(lambda args: function(*args), (axes,))
        everything = jax.tree.map(lambda _: True, otherwise)
        at_once = backends.current().seldom
        if at_once is None or axis_size <= at_once:
            return jax.vmap(choose)(condition, many(args), otherwise), everything

        def go_on(loop):
            return any_of_all(loop[0])

        def some(loop):
            left, out = loop
            (index,) = jnp.nonzero(left, size=at_once, fill_value=axis_size)
            own = jax.tree.map(lambda x, has: x[index] if has else x, args, args_batched)
            put = lambda x, new: x.at[index].set(new.astype(x.dtype), mode="drop")
            return left.at[index].set(False, mode="drop"), jax.tree.map(put, out, many(own))

        return jax.lax.while_loop(go_on, some, (condition, otherwise))[1], everything

    return lambda condition, otherwise, *args: apply(condition, otherwise, args)


def choose(flag: jax.Array, new: Any, old: Any) -> Any:
    """New leaves where a flag is set, else old ones, in the dtypes of the old."""
    pick = lambda new, old: jnp.where(flag, jnp.asarray(new).astype(old.dtype), old)
    return jax.tree.map(pick, new, old)


def vmap_in_blocks(function: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """`jax.vmap(function)`, of at most `size` calls at a time; None makes all of them at once.

    Blocks are alike; what is missing to the last one is filled by its last call, made again.
    """

    def call(*args: Any) -> Any:
        num = len(jax.tree.leaves(args)[0])
        if size is None or num <= size:
            return jax.vmap(function)(*args)
        num_blocks = -(-num // size)
        width = -(-num // num_blocks)
        index = jnp.minimum(jnp.arange(num_blocks * width), num - 1).reshape(num_blocks, width)
        blocks = jax.tree.map(lambda x: x[index], args)
        out = jax.lax.map(lambda block: jax.vmap(function)(*block), blocks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], out)

    return call
