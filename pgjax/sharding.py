"""Rows shared out over the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

AXIS = "rows"
"""Name of the axis of a mesh that rows are shared out over."""
HALF = 12
"""Bits in the lower part of a whole number that travels as two single-precision numbers."""


def mesh(devices: Any) -> Mesh:
    """A mesh of devices for rows to be shared out over, across processes if they are."""
    return Mesh(np.array(devices), (AXIS,))


def over_rows(
    function: Callable[..., Any], mesh: Mesh | None, *, mean: bool = False
) -> Callable[..., Any]:
    """`(whole, *rows) -> function(whole, *rows)`, each device for its own share of the rows.

    Args:
      function: takes one argument whole and the others by rows, which lead every array in them.
      mesh: whose axis `rows` the rows are shared out over; None makes it a plain call.
      mean: whether `function` gives a mean over rows (a sum, of whole numbers below 2^31), and that
        over all of them is wanted; otherwise rows lead every array that it gives.
    """
    if mesh is None:
        return function

    def local(whole: Any, *rows: Any) -> Any:
        out = function(whole, *rows)
        if not mean:
            return out
        # As one vector: with several arrays, the devices would wait for each other at each.
        flat, restore = ravel_pytree(jax.tree.map(_as_floats, out))
        means = restore(jax.lax.pmean(flat, AXIS))
        of_all = lambda x, mean: _summed(mean, mesh.shape[AXIS]) if _whole(x) else mean
        return jax.tree.map(of_all, out, means)

    def call(whole: Any, *rows: Any) -> Any:
        by_row = PartitionSpec(AXIS)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), *(by_row for _ in rows)),
            out_specs=PartitionSpec() if mean else by_row,
            check_vma=False,
        )(whole, *rows)

    return call


def _whole(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def _as_floats(x: jax.Array) -> jax.Array:
    """A whole number in two parts, sums of which over devices are exact in single precision."""
    if not _whole(x):
        return x
    return jnp.stack([x >> HALF, x & (1 << HALF) - 1]).astype(jnp.result_type(float))


def _summed(mean: jax.Array, num: int) -> jax.Array:
    """The sum of whole numbers, from the mean of their parts over `num` devices."""
    high, low = jnp.round(mean * num).astype(jnp.int32)
    return (high << HALF) + low


def check(argument: str, num_rows: int, mesh: Mesh | None) -> None:
    """Raises `ValueError` unless the rows can be shared out evenly."""
    if mesh is None:
        return
    if AXIS not in mesh.axis_names:
        raise ValueError(
            f"mesh has the axes {mesh.axis_names} and none named {AXIS!r}, over which rows are "
            f"shared out; sharding.mesh(devices) makes one"
        )
    if num_rows % mesh.shape[AXIS]:
        raise ValueError(
            f"{argument}={num_rows!r} must be a multiple of the {mesh.shape[AXIS]} devices that "
            f"rows are shared out over"
        )
