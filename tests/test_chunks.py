"""Chunks of the live entries of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import chunks

MASKS = {
    "all": np.ones((3, 4)),
    "some": np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]),
    "one": np.eye(1, 12, 7).reshape(3, 4),
}


@pytest.mark.parametrize("size", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_chunks_hold_every_live_entry_once_and_in_order(mask, size):
    index, valid, num = jax.jit(chunks.live_chunks, static_argnums=1)(jnp.asarray(mask), size)
    (expected,) = np.nonzero(mask.ravel())
    np.testing.assert_array_equal(index[valid], expected)
    assert num == -(-len(expected) // min(size, 12))
    assert not valid[num:].any()
    assert set(np.unique(index[~valid])) <= {expected[0]}


def test_nothing_live_makes_no_chunk():
    found = chunks.live_chunks(jnp.zeros(5), 2)
    assert found.num == 0 and not found.valid.any()


def test_vmapped_chunks_share_their_number():
    masks = jnp.array([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    found = jax.vmap(lambda mask: chunks.live_chunks(mask, 2))(masks)
    np.testing.assert_array_equal(found.num, [3, 3])
    np.testing.assert_array_equal(found.valid.sum((1, 2)), [1, 5])


@pytest.mark.parametrize("slab", [1, 2, 3, 512])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_fold_sees_every_live_entry_once_and_in_order(mask, size, slab, monkeypatch):
    monkeypatch.setattr(chunks, "SLAB", slab)

    def note(index, valid, carry):
        seen, num = carry
        place = jnp.where(valid, num + jnp.cumsum(valid) - 1, mask.size)
        return seen.at[place].set(index, mode="drop"), num + jnp.sum(valid)

    fold = jax.jit(lambda mask: chunks.fold(note, (jnp.zeros(mask.size, int), 0), mask, size))
    seen, num = fold(jnp.asarray(mask))
    np.testing.assert_array_equal(seen[:num], np.nonzero(mask.ravel())[0])


@pytest.mark.parametrize(
    "index", [[2, 3, 4], [0, 1, 2], [5, 6, 7], [0, 2, 4], [1, 2, 1], [4, 3, 2], [7, 7, 7], [6]]
)
def test_what_is_taken_are_the_entries(index):
    keys = jax.random.split(jax.random.key(0), 8)
    tree = {"x": jnp.arange(8.0), "y": (jnp.arange(16).reshape(8, 2), keys)}
    index = jnp.array(index, jnp.int32)
    found = jax.jit(chunks.take)(tree, index)
    together = jax.jit(jax.vmap(chunks.take, (None, 0)))(tree, jnp.stack([index, index[::-1]]))
    for x, one, two in zip(*map(jax.tree.leaves, (tree, found, together)), strict=True):
        assert (one == x[index]).all() and one.dtype == x.dtype
        assert (two[1] == x[index[::-1]]).all()
