"""Rows shared out over the devices of a mesh, and what becomes of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from pgjax import checks

AXIS = "rows"
"""Name of the axis of a mesh that rows are shared out over."""


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
      mean: what `function` gives is a mean over rows, and the mean over all of them is wanted;
        otherwise rows lead what it gives.
    """
    if mesh is None:
        return function

    def local(whole: Any, *rows: Any) -> Any:
        out = function(whole, *rows)
        if not mean:
            return out
        # As one vector: for each array apart, the devices would wait for each other once more.
        flat, restore = ravel_pytree(out)
        return restore(jax.lax.pmean(flat, AXIS))

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


def check(argument: str, num_rows: int, mesh: Mesh | None) -> None:
    """Raises `ValueError` unless the rows can be shared out evenly."""
    if mesh is None:
        return
    checks.choice("axis", AXIS, mesh.axis_names)
    if num_rows % mesh.shape[AXIS]:
        raise ValueError(
            f"{argument}={num_rows!r} must be a multiple of the {mesh.shape[AXIS]} devices that "
            f"rows are shared out over"
        )
