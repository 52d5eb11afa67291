"""Replicates of a gradient, streamed through one compiled program into sums over blocks."""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pgjax import backends
from pgjax.batching import expand
from pgjax.score import GradientFn, Params

BLOCKS = 64
"""Number of blocks into which replicates, or episodes, are cut for the jackknife."""

PILOT = 64
"""Replicates from which the origin and the unit of the sums are chosen, at most."""

SAFE = 1e-30
"""Sums of squares are digits and no remnants from here to one over it, even in float32."""

WHOLE_COVARIANCE = 100
"""Largest number of parameters for which the whole covariance is kept, not only its diagonal."""


class Sums(NamedTuple):
    """Sums over the finite replicates of each block, of x = (gradient - pilot) / unit."""

    count: Any  # [B]
    x: Any  # [B, D]
    square: Any  # [B] |x|^2
    fourth: Any  # [B] |x|^4
    weighted: Any  # [B, D] |x|^2 x
    env_steps: Any  # [B]; None where the metrics do not say


class Blocks(NamedTuple):
    """All that is kept of the replicates, on the host."""

    sums: Sums
    scatter: np.ndarray  # [D, D] sum of x x^T, or its diagonal [D]
    pilot: np.ndarray  # [D]
    unit: float
    precision: float  # machine epsilon of the gradients
    num_replicates: int  # those asked for
    nonfinite: int  # those left out
    key: tuple[int, ...]


class Replicates(NamedTuple):
    """What running the replicates gave."""

    blocks: Blocks
    seconds: np.ndarray  # per replicate, one measurement per chunk
    like: Params  # shapes of one gradient


def streamer(
    gradient_fn: GradientFn, *, num_replicates: int, chunk_size: int
) -> Callable[[jax.Array, Params], Replicates]:
    """`(key, params) -> Replicates`: calls with the keys fold_in(key, i), i = 0 ... N - 1.

    A first pass over a few replicates finds their mean and their typical length: about that mean
    and in that unit, sums of fourth powers neither cancel nor overflow, even in float32. Where all
    of the few are zero, it goes over all replicates. It also compiles the program, so that only its
    run is timed afterwards.

    Args:
      gradient_fn: compiled once, at the first call.
      num_replicates: N.
      chunk_size: replicates side by side, C.
    """
    chunk = chunks(gradient_fn, chunk_size)
    program = adding(chunk, num_replicates)

    def run(key, params, limit, size, origin):
        args = (blank(num_replicates, size), key, params, np.int32(0), np.int32(limit), origin)
        compiled = program.lower(*args).compile()
        # Placed as the program wants them, so that no call moves them or compiles anew.
        state, key, params, _, end, origin = jax.device_put(args, compiled.input_shardings[0])

        def call(start):
            nonlocal state
            state, left_out = compiled(state, key, params, np.int32(start), end, origin)
            return left_out

        calls = map(call, range(0, limit, chunk_size))
        nonfinite, ends = 0, [time.perf_counter()]
        # The next call is dispatched before the last is awaited: devices never wait for the host.
        for left_out, _ in itertools.pairwise(itertools.chain(calls, [0])):
            nonfinite += int(left_out)
            ends.append(time.perf_counter())
        return state, nonfinite, np.diff(ends) / chunk_size

    def stream(key, params):
        params = jax.tree.map(jnp.asarray, params)
        _, rows, metrics = jax.eval_shape(chunk, key, params, jnp.int32(0))
        like, _ = jax.eval_shape(gradient_fn, key, params)
        size = rows.shape[1]
        sums_of = lambda limit, unit: run(key, params, limit, size, nowhere(size, unit))[0][0]
        pilot, unit = origin = jax.device_get(_origin(sums_of, num_replicates))
        state, nonfinite, seconds = run(key, params, num_replicates, size, origin)
        sums, scatter = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        blocks = Blocks(
            sums=sums if "env_steps" in metrics else sums._replace(env_steps=None),
            scatter=scatter,
            pilot=np.asarray(pilot, np.float64),
            unit=float(unit),
            precision=float(jnp.finfo(rows.dtype).eps),
            num_replicates=num_replicates,
            nonfinite=nonfinite,
            key=identity(key),
        )
        return Replicates(blocks, seconds, like)

    return stream


def pilots(num_replicates: int) -> int:
    """Replicates of the pilot: few compared with those it is for."""
    return max(2, min(PILOT, num_replicates // 16))


def adding(chunk: Callable[..., Any], num_replicates: int) -> Any:
    """`(state, key, params, start, limit, origin) -> (state, left out)`, the program of an audit.

    An audit measures a compiled program, so it has to compile one.
    """
    first = starts(num_replicates)

    def add(state, key, params, start, limit, origin):
        index, gradient, metrics = chunk(key, params, start)
        return _add(state, index, gradient, metrics, limit, origin, first)

    options = dict(backends.current().compiler_options)
    return jax.jit(add, donate_argnums=0, compiler_options=options)


def starts(num_replicates: int) -> np.ndarray:
    """The first replicate of each block: replicate i belongs to block floor(i B / N)."""
    num_blocks = min(num_replicates, BLOCKS)
    return -(-np.arange(num_blocks) * num_replicates // num_blocks)


def identity(key: jax.Array) -> tuple[int, ...]:
    """The data of a key, equal for equal keys."""
    return tuple(np.ravel(jax.random.key_data(key)).tolist())


def chunks(gradient_fn: GradientFn, chunk_size: int) -> Callable[..., Any]:
    """`(key, params, start) -> (index [C], gradients [C, D], metrics)`."""

    def chunk(key, params, start):
        index = start + jnp.arange(chunk_size, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        gradient, metrics = jax.vmap(gradient_fn, (0, None))(keys, params)
        return index, jax.vmap(lambda x: ravel_pytree(x)[0])(gradient), metrics

    return chunk


def blank(num_replicates: int, size: int) -> tuple[Sums, jax.Array]:
    """Sums before anything is added."""
    zeros = lambda *shape: jnp.zeros(shape, float)
    shapes = Sums((), (size,), (), (), (size,), ())
    sums = Sums(*(zeros(len(starts(num_replicates)), *shape) for shape in shapes))
    scatter = zeros(size, size) if size <= WHOLE_COVARIANCE else zeros(size)
    return sums, scatter


def nowhere(size: int, unit: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The origin before anything is known: zero, and a unit."""
    return jnp.zeros(size, float), jnp.asarray(unit, float)


def _origin(sums_of: Callable[[int, float], Sums], num_replicates: int) -> tuple[Any, Any]:
    """Mean and root mean square of a few replicates, or of all where the few are zero.

    Args:
      sums_of: `(limit, unit) -> Sums` over the first replicates, about zero and in that unit.
      num_replicates: all of them.
    """
    for limit in (pilots(num_replicates), num_replicates):
        sums = sums_of(limit, 1.0)
        largest = float(jnp.max(jnp.abs(sums.x), initial=0))
        if largest > 0:
            break
    count, unit = jnp.maximum(jnp.sum(sums.count), 1), 1.0
    square = jnp.sum(sums.square)
    if largest > 0 and not SAFE < square < 1 / SAFE:  # squares that do not vanish or overflow
        unit, square = largest, jnp.sum(sums_of(limit, largest).square)
    length = unit * jnp.sqrt(square / count)
    return jnp.sum(sums.x, axis=0) / count, jnp.where(length > 0, length, 1)


def _add(state, index, gradient, metrics, limit, origin, first):
    """Adds the gradients `[C, D]` of a chunk whose index is below the limit.

    Those that are not finite are left out, and counted.
    """
    sums, scatter = state
    pilot, unit = origin
    inside = index < limit
    finite = jnp.all(jnp.isfinite(gradient), axis=1)
    kept = (inside & finite).astype(unit.dtype)
    x = (gradient.astype(unit.dtype) - pilot[None, :]) / unit
    x = jnp.where(kept[:, None] > 0, x, 0)
    square = jnp.sum(x**2, axis=1)
    steps = jnp.asarray(metrics.get("env_steps", jnp.zeros(len(index))), unit.dtype)
    new = Sums(kept, x, square, square**2, square[:, None] * x, kept * steps)
    sums = _to_blocks(sums, new, index, first)
    if scatter.ndim == 2:
        scatter += jnp.matmul(x.T, x, precision="highest")
    else:
        scatter += jnp.sum(x**2, axis=0)
    return (sums, scatter), jnp.sum(inside & ~finite, dtype=jnp.int32)


def _to_blocks(sums, new, index, first):
    """Adds `new [C, ...]` of consecutive replicates to the sums of their blocks, block by block.

    From every block those that may be its own are cut out and summed at once, where a CPU would
    scatter one after the other.
    """
    num = len(index)
    block = jnp.searchsorted(first, index, side="right") - 1
    sizes = np.minimum(np.diff(first), num) if len(first) > 1 else np.array([num])
    width = int(np.max(sizes))
    num_blocks = 1 - (1 - num) // int(np.min(sizes))  # that they may lie in, at most

    def add_block(number, sums):
        own = block[0] + number
        begin = jnp.clip(jnp.asarray(first)[own] - index[0], 0, num - width)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, begin, width)
        belongs = cut(block) == own

        def add(total, part):
            share = jnp.sum(jnp.where(expand(belongs, part), cut(part), 0), axis=0)
            before = jax.lax.dynamic_index_in_dim(total, own, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(total, before + share, own, 0)

        return jax.tree.map(add, sums, new)

    return jax.lax.fori_loop(0, min(num_blocks, len(first)), add_block, sums)
