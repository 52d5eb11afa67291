"""How programs behave when they are vmapped: loop bounds that all share, and work done in turn.

A `while_loop` whose condition differs over a vmapped axis selects between old and new carry at
every iteration, which copies a trajectory again and again. `any_across_vmap` and `max_across_vmap`
reduce over the vmapped axes too, so that the loop runs until all of them are done.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from pgjax import backends, checks


@jax.custom_batching.custom_vmap
def any_across_vmap(x: jax.Array) -> jax.Array:
    """Whether anything is true, over all axes and all vmapped axes."""
    return jnp.any(x)


@any_across_vmap.def_vmap
def _(axis_size, in_batched, x):
    return any_across_vmap(x), False


@jax.custom_batching.custom_vmap
def max_across_vmap(x: jax.Array) -> jax.Array:
    """The largest entry, over all axes and all vmapped axes."""
    return jnp.max(x)


@max_across_vmap.def_vmap
def _(axis_size, in_batched, x):
    return max_across_vmap(x), False


def sequential_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose vmapped calls are made in turn on a CPU, and side by side elsewhere.

    For work that fills a core's cache by itself. In turn, each call has its own loop bounds and an
    order of summation that the others do not change, so that its result is the same bits however
    many there are. Numbers that are not arrays stay constants.
    """

    def call(*args):
        arrays, restore = split(args, jax.Array)
        run, closed_over = _opened(lambda *arrays: function(*restore(arrays)), arrays)
        return _in_turn(run)(closed_over, *arrays)

    return call


def _opened(function: Callable[..., Any], args: Any) -> tuple[Callable[..., Any], list[Any]]:
    """`(closed_over, *args) -> function(*args)`, and what it closes over that may be vmapped too.

    Rules for vmap know of arguments only.
    """
    program, like = jax.make_jaxpr(function, return_shape=True)(*args)
    closed_over, refill = split(program.consts, Tracer)

    def run(closed_over, *args):
        whole = ClosedJaxpr(program.jaxpr, refill(closed_over))
        out = jaxpr_as_fun(whole)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(like), out)

    return run, closed_over


def split(tree: Any, kind: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """The leaves of a tree that are of a kind, and what puts others in their place.

    The rest, such as the numbers of an environment's parameters, stay the constants they are.
    """
    leaves, structure = jax.tree.flatten(tree)

    def restore(chosen):
        given = iter(chosen)
        filled = [next(given) if isinstance(x, kind) else x for x in leaves]
        return jax.tree.unflatten(structure, filled)

    return [leaf for leaf in leaves if isinstance(leaf, kind)], restore


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    apply = jax.custom_batching.custom_vmap(function)

    @apply.def_vmap
    def _(axis_size, in_batched, *args):
        if not backends.current().in_turn:
            out = jax.vmap(function, _axes(in_batched), axis_size=axis_size)(*args)
            return out, jax.tree.map(lambda _: True, out)

        def one(index):
            own = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
            one_or_all = lambda x, batched: own(x) if batched else x
            return apply(*jax.tree.map(one_or_all, args, tuple(in_batched)))

        def store(index, out):
            put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, index, 0)
            return jax.tree.map(put, out, one(index))

        blank = lambda x: jnp.zeros((axis_size, *x.shape), x.dtype)
        # Unknown to the compiler, so that it does not fuse a single call with what surrounds it.
        num = jax.lax.optimization_barrier(jnp.int32(axis_size))
        out = jax.lax.fori_loop(0, num, store, jax.tree.map(blank, jax.eval_shape(one, 0)))
        return out, jax.tree.map(lambda _: True, out)

    return apply


def merge_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(whole, rows)`, whose vmapped calls are made as one.

    `whole` is what all rows share; `rows` has, and so do the results, an entry for each row, which
    does not depend on the others. If vmapped calls have the same `whole`, one call has the rows of
    all of them. Otherwise they are vmapped as ever: also where `function` closes over what may be
    vmapped too. It must not sum over vmapped calls (`psum`).
    """

    def call(whole, rows):
        program, like = jax.make_jaxpr(function, return_shape=True)(whole, rows)
        if checks.is_traced(program.consts):
            return function(whole, rows)

        def run(whole, rows):
            out = jaxpr_as_fun(program)(*jax.tree.leaves((whole, rows)))
            return jax.tree.unflatten(jax.tree.structure(like), out)

        apply = jax.custom_batching.custom_vmap(run)

        @apply.def_vmap
        def _(axis_size, in_batched, whole, rows):
            if axis_size == 0 or any(jax.tree.leaves(in_batched[0])):
                out = jax.vmap(run, _axes(in_batched), axis_size=axis_size)(whole, rows)
            else:
                rows = jax.tree.map(_flat(axis_size), rows, in_batched[1])
                out = jax.tree.map(_cut(axis_size), call(whole, rows))
            return out, jax.tree.map(lambda _: True, out)

        # JAX makes one equation of a custom_vmap and its derivative, of which `grad` knows nothing.
        played = jax.custom_jvp(apply)
        played.defjvp(lambda primals, tangents: jax.jvp(run, primals, tangents))
        return played(whole, rows)

    return call


def _axes(in_batched):
    """For `jax.vmap`, of what a rule for vmap is told."""
    return jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))


def _flat(axis_size):
    """`(x, batched) -> [axis_size N, ...]`, of `[axis_size, N, ...]` or of `[N, ...]` for all."""

    def flat(x, batched):
        x = x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        return x.reshape(axis_size * x.shape[1], *x.shape[2:])

    return flat


def _cut(axis_size):
    """`[axis_size N, ...] -> [axis_size, N, ...]`."""
    return lambda x: x.reshape(axis_size, len(x) // axis_size, *x.shape[1:])


def lazy_select(function: Callable[..., Any]) -> Callable[..., Any]:
    """`(condition, otherwise, *args) -> function(*args)` where a condition holds, else `otherwise`.

    For work that few of many vmapped calls need: on a CPU only those do it, some at a time;
    elsewhere all do it side by side, and the results are selected.
    """

    def call(condition, otherwise, *args):
        run, closed_over = _opened(function, args)
        return _lazy_select(run)(condition, otherwise, (closed_over, *args))

    return call


def _lazy_select(function: Callable[..., Any]) -> Callable[..., Any]:
    @jax.custom_batching.custom_vmap
    def apply(condition, otherwise, args):
        return choose(condition, function(*args), otherwise)

    @apply.def_vmap
    def _(axis_size, in_batched, condition, otherwise, args):
        batched, old_batched, args_batched = in_batched
        fill = lambda x, has: x if has else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))
        otherwise = jax.tree.map(fill, otherwise, old_batched)
        args = jax.tree.map(lambda x, has: x if has else jnp.expand_dims(x, 0), args, args_batched)
        out = many(fill(condition, batched), otherwise, args)
        return out, jax.tree.map(lambda _: True, out)

    # Leaves of `args` have one entry per call, or fewer that each serve an equal share of calls.
    @jax.custom_batching.custom_vmap
    def many(condition, otherwise, args):
        (num,), at_once = condition.shape, backends.current().lazy_calls
        side_by_side = jax.vmap(lambda args: function(*args))
        if at_once is None or num <= at_once:
            spread = lambda x: x if len(x) == num else jnp.repeat(x, num // len(x), axis=0)
            new = side_by_side(jax.tree.map(spread, args))
            return jax.vmap(choose)(condition, new, otherwise)

        def some(loop):
            left, out = loop
            index, count = _true_first(left, 0)
            share = lambda x: x[index[:at_once] // (num // len(x))]
            new = side_by_side(jax.tree.map(share, args))

            def put(number, loop):
                (left, out), at = loop, index[number]
                own = lambda x, new: x.at[at].set(new[number].astype(x.dtype))
                return left.at[at].set(False), jax.tree.map(own, out, new)

            return jax.lax.fori_loop(0, jnp.minimum(count, at_once), put, (left, out))

        return jax.lax.while_loop(lambda loop: jnp.any(loop[0]), some, (condition, otherwise))[1]

    @many.def_vmap
    def _(axis_size, in_batched, condition, otherwise, args):
        flat = _flat(axis_size)
        batched, old_batched, args_batched = in_batched
        shares = lambda x, has: flat(x, has) if has or len(x) > 1 else x
        out = many(
            flat(condition, batched),
            jax.tree.map(flat, otherwise, old_batched),
            jax.tree.map(shares, args, args_batched),
        )
        out = jax.tree.map(_cut(axis_size), out)
        return out, jax.tree.map(lambda _: True, out)

    return apply


def true_first(mask: jax.Array, more: int) -> tuple[jax.Array, jax.Array]:
    """Indices of the true entries, the rest of `[M + more]` the first of them, and their number.

    Where none is true, all are the same arbitrary entry. One mask after the other on a CPU:
    vmapped, its loop would scatter, and XLA does not fuse scatters.
    """
    return sequential_vmap(_true_first)(mask, more)


def _true_first(mask, more):
    blank = jnp.zeros(len(mask) + more, jnp.int32)
    if backends.current().fused_loops:

        def note(entry, found):
            index, count = found
            noted = jax.lax.dynamic_update_index_in_dim(index, jnp.int32(entry), count, 0)
            return noted, count + mask[entry]

        found = (blank, jnp.int32(0))
        index, count = jax.lax.fori_loop(0, len(mask), note, found, unroll=4)
    else:
        rank = jnp.cumsum(mask)  # for a CPU, XLA would make a dozen programs of it, no faster
        place = jnp.where(mask, rank - 1, len(blank))  # past the end, so dropped, where not true
        entries = jnp.arange(len(mask), dtype=jnp.int32)
        index, count = blank.at[place].set(entries, mode="drop"), rank[-1]
    return jnp.where(jnp.arange(len(blank)) < count, index, index[0]), count


def once(
    function: Callable[[Any, Any], Any], index: jax.Array, carry: Any
) -> tuple[jax.Array, Any]:
    """The next index and `function(index, carry)`, of small operations, as one turn of a loop.

    Where loops are one function (`backends.Backend.fused_loops`), this makes one of the operations,
    which take less time than calling them. What depends neither on the index nor on the carry stays
    outside. A loop around it continues from the index returned: with a count of its own, it would
    copy that at every turn.
    """
    end = index + 1
    go_on = lambda loop: loop[0] < end
    turn = lambda loop: (loop[0] + 1, function(*loop))
    return jax.lax.while_loop(go_on, turn, (index, carry))


def choose(flag: jax.Array, new: Any, old: Any) -> Any:
    """New leaves where a flag is set, else old ones, in the dtypes of the old."""
    pick = lambda new, old: jnp.where(flag, jnp.asarray(new).astype(old.dtype), old)
    return jax.tree.map(pick, new, old)


def expand(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x [B]` or `[B, C]` with trailing axes of one, to broadcast against `like [B, C, ...]`."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def vmap_in_blocks(function: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """`jax.vmap(function)`, of at most `size` calls at a time; None makes all of them at once.

    Blocks have equal size; the last one is filled up by repeating its last call.
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
