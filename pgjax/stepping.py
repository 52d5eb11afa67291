"""How rows are stepped: how many side by side, in what blocks, and where their records go."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import ahead, backends, batching, chunks
from pgjax.batching import choose, expand

SMALL_RECORD = 128
"""Most bytes of a step's record for which the records of a block are gathered, in one fused
function, and stored together; larger ones, such as images, are stored at every step."""
LEAST_PART = 8
"""Stepping fewer rows than this saves no time."""


class Step(NamedTuple):
    """A step of one row: what a network computes, and the small operations that follow."""

    act: Callable[[Any], Any]  # row -> acted
    follow: Callable[[Any, Any, jax.Array, Any], Any]  # (row, acted, time, keys) -> (row, record)


def widths(num_rows: int, alone: bool = True) -> tuple[int, ...]:
    """How many of `num_rows` that may end are stepped side by side, and of those left over.

    Args:
      num_rows: all of them.
      alone: whether they are the rows of one call, not of several made as one.
    """
    backend = backends.current()
    width = min(num_rows, backend.live_rows or num_rows)
    part = width // backend.live_parts
    # Where exactly all rows fit, as in the default run on two devices, parts would only add to the
    # time that compilation takes.
    fits = num_rows == backend.live_rows and alone
    return (width, part) if LEAST_PART <= part < width and not fits else (width,)


def while_live(
    step: Step, rows: Any, keys: Any, horizon: int, sizes: Sequence[int]
) -> tuple[Any, Any]:
    """Rows over at most `horizon` steps, in blocks, until none is live.

    Rows are stepped some at a time, and only those that are live when a block begins. Rows that are
    no longer live may be stepped on; nothing is recorded.

    Args:
      step: of one row.
      rows: where they stand, `[N, ...]`, with `live [N]`.
      keys: `[N]` each, typed.
      horizon: T.
      sizes: how many are stepped side by side, and of those left over (`widths`).

    Returns:
      The rows after it, and records `[N, T, ...]`, zero where a row was not live.
    """
    num_rows = len(rows.live)
    width, *parts = sizes
    # Vmapped batches may need both widths in one block: a part costs little beside all rows.
    spare = parts[0] if parts and width == num_rows else None
    num_blocks = -(-horizon // backends.current().block)
    block = -(-horizon // num_blocks)
    rows, records = _blank(step, rows, keys, horizon)

    def follow(row, acted, time, keys):
        after, record = step.follow(row, acted, time, keys)
        return after, (row.live, record)

    noting = Step(step.act, follow)

    def store_all(time, records, noted):
        live, new = noted
        times = time + jnp.arange(len(live))

        def put(x, new):
            new = jnp.where(expand(live, new), new, jnp.zeros_like(new))
            return x.at[:, times].set(jnp.moveaxis(new, 0, 1), mode="drop")

        return jax.tree.map(put, records, new)

    def store_some(place, time, records, noted):
        live, new = noted
        times = time + jnp.arange(len(live))
        place = jnp.where(live, place, num_rows).T  # past the end, so dropped
        put = lambda x, new: x.at[place, times].set(jnp.moveaxis(new, 0, 1), mode="drop")
        return jax.tree.map(put, records, new)

    def play_block(loop):
        index, rows, records = loop
        start = index * block

        def play_all(rows, records):
            return _play(noting, rows, records, keys, start, block, store_all)

        if width == num_rows and not parts:
            return index + 1, *play_all(rows, records)

        def play_chunk(chosen, valid, loop):
            rows, records = loop
            if len(chosen) == num_rows:
                new, records = play_all(rows, records)
                # Where nothing is valid, parts of the rows will write the same records again.
                return choose(valid[0], new, rows), records
            place = jnp.where(valid, chosen, num_rows)  # past the end, so dropped
            own, own_keys = jax.tree.map(lambda x: x[chosen], (rows, keys))
            store = partial(store_some, place)
            own, records = _play(noting, own, records, own_keys, start, block, store)
            keep = lambda x, own: x.at[place].set(own, mode="drop")
            return jax.tree.map(keep, rows, own), records

        loop = (rows, records)
        return index + 1, *chunks.fold(play_chunk, loop, rows.live, [width, *parts], spare)

    def go_on(loop):
        index, rows, _ = loop
        return (index < num_blocks) & batching.any_across_vmap(rows.live)

    _, rows, records = jax.lax.while_loop(go_on, play_block, (jnp.int32(0), rows, records))
    return rows, records


def window(step: Step, rows: Any, keys: Any, origin: jax.Array, horizon: int) -> tuple[Any, Any]:
    """Rows over `horizon` steps, some rows at a time where that suits the device.

    Args:
      step: of one row.
      rows: where they stand, `[N, ...]`.
      keys: `[N]` each, typed.
      origin: `[]` where the keys' own time has its zero.
      horizon: T.

    Returns:
      The rows after it, and records `[N, T, ...]`.
    """
    num_rows = len(keys[0])
    num_shares = -(-num_rows // (backends.current().rows or num_rows))
    width = -(-num_rows // num_shares)
    most = min(backends.current().block, horizon)
    even = max(size for size in range(1, most + 1) if horizon % size == 0)
    block = even if even >= max(4, most // 4) else most
    left_over = horizon % block  # compiles the step a second time
    rows, records = _blank(step, rows, keys, horizon)

    def play_share(number, loop):
        after, records = loop
        # The last share overlaps the one before it if it has too few rows of its own.
        first = jnp.minimum(number * width, num_rows - width)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, width)
        own, own_keys = jax.tree.map(cut, (rows, keys))

        def store(time, records, new):
            def put(x, new):
                place = first, time, *(x.ndim - 2) * [0]
                return jax.lax.dynamic_update_slice(x, jnp.moveaxis(new, 0, 1), place)

            return jax.tree.map(put, records, new)

        def play_block(index, loop):
            own, records = loop
            return _play(step, own, records, own_keys, index * block, block, store, origin)

        own, records = jax.lax.fori_loop(0, horizon // block, play_block, (own, records))
        if left_over:
            start = horizon - left_over
            own, records = _play(step, own, records, own_keys, start, left_over, store, origin)
        put = lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, first, 0)
        return jax.tree.map(put, after, own), records

    return jax.lax.fori_loop(0, num_shares, play_share, (rows, records))


def _play(step, rows, records, keys, start, num_steps, store, origin: Any = 0):
    """Some steps of some rows.

    What depends on keys alone, noise above all, is made for all steps at once: step by step,
    hashing takes longer than what it is for.

    Args:
      step: a `Step`.
      rows: where they stand, `[n, ...]`.
      records: of all rows, `[N, T, ...]`.
      keys: keys `[n]` of the rows.
      start: time of the first step.
      num_steps: how many there are.
      store: `(time, records, new [k, n, ...]) -> records` with the k steps from `time` on.
      origin: where the keys' own time has its zero.
    """
    times = start + jnp.arange(num_steps)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    row, time, own_keys = jax.eval_shape(first, (rows, times, keys))
    acted = jax.eval_shape(step.act, row)
    follow = lambda later, keys: step.follow(*later, keys)
    draw, follow = ahead.split(follow, (row, acted, time), own_keys)

    def draw_all(time):
        return jax.vmap(lambda *keys: draw([jax.random.fold_in(key, time) for key in keys]))(*keys)

    backend = backends.current()
    # A loop saves memory, and passes over it, where the loop itself costs nothing.
    in_turn = jax.lax.map if backend.fused_loops else lambda function, xs: jax.vmap(function)(xs)
    noise = in_turn(draw_all, origin + times)

    def follow_all(index, rows, acted):
        time, drawn = jax.tree.map(lambda x: x[index], (times, noise))
        one = lambda row, acted, drawn: follow((row, acted, time), drawn)
        return jax.vmap(one)(rows, acted, drawn)

    def step_and_store(index, loop):
        rows, records = loop
        rows, record = follow_all(index, rows, jax.vmap(step.act)(rows))
        return rows, store(times[index], records, jax.tree.map(lambda x: x[None], record))

    def step_and_note(loop):
        index, (rows, block) = loop
        acted = jax.vmap(step.act)(rows)

        def note(index, noted):
            rows, block = noted
            rows, record = follow_all(index, rows, acted)
            put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, index, 0)
            return rows, jax.tree.map(put, block, record)

        return batching.once(note, index, (rows, block))

    num_bytes = sum(x.dtype.itemsize * math.prod(x.shape[2:]) for x in jax.tree.leaves(records))
    if not backend.fused_loops or num_bytes > SMALL_RECORD:
        unroll = min(backend.unroll, num_steps)
        return jax.lax.fori_loop(0, num_steps, step_and_store, (rows, records), unroll=unroll)
    _, record = jax.eval_shape(lambda rows: follow_all(0, rows, jax.vmap(step.act)(rows)), rows)
    blank = lambda x: jnp.zeros((num_steps, *x.shape), x.dtype)
    loop = (jnp.int32(0), (rows, jax.tree.map(blank, record)))
    go_on = lambda loop: loop[0] < num_steps
    _, (rows, block) = jax.lax.while_loop(go_on, step_and_note, loop)
    return rows, store(start, records, block)


def _blank(step, rows, keys, num_steps):
    """Rows in the dtypes that a step leaves them in, and records `[N, T, ...]` of zeros."""
    one = lambda row, keys: step.follow(row, step.act(row), jnp.int32(0), keys)
    after, record = jax.eval_shape(jax.vmap(one), rows, keys)
    rows = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), rows, after)
    zeros = lambda x: jnp.zeros((x.shape[0], num_steps, *x.shape[1:]), x.dtype)
    return rows, jax.tree.map(zeros, record)
