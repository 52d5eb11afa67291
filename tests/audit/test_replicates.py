"""Sums over blocks of replicates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.audit import replicates

SIZES = [(2, 1), (2, 2), (3, 2), (3, 8), (65, 3), (64, 64), (100, 130), (130, 7), (1000, 333)]


@pytest.mark.parametrize(("num_replicates", "chunk_size"), SIZES)
def test_replicates_are_summed_in_their_blocks(num_replicates, chunk_size):
    """Against sums of all of them, chunk by chunk; one past the last counts for nothing."""
    x = np.random.default_rng(0).integers(-9, 9, (num_replicates, 3)).astype(np.float32)
    first = replicates.starts(num_replicates)
    block = np.arange(num_replicates) * len(first) // num_replicates
    expected = np.zeros((len(first), 3), np.float32)
    np.add.at(expected, block, x)
    assert (np.bincount(block) > 0).all()

    sums = jnp.zeros_like(expected)
    add = jax.jit(lambda *args: replicates._to_blocks(*args, first))
    for start in range(0, num_replicates, chunk_size):
        index = start + jnp.arange(chunk_size, dtype=jnp.int32)
        inside = np.asarray(index) < num_replicates
        own = np.where(inside[:, None], x[np.minimum(index, num_replicates - 1)], 0)
        sums = add(sums, jnp.asarray(own), index)
    np.testing.assert_array_equal(sums, expected)
