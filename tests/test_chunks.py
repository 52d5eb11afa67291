"""Chunks of the live entries of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import backends, batching, chunks

OTHERWISE = backends.CPU._replace(fused_loops=False, lazy_calls=None)
"""Where a loop of small operations costs more than they do."""

MASKS = {
    "all": np.ones((3, 4)),
    "some": np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]),
    "one": np.eye(1, 12, 7).reshape(3, 4),
}


def chunks_of(mask, *sizes):
    """The size of every chunk of a mask, in order, and the entries that are live in it."""
    found = []

    def note(index, valid, carry):
        assert index.shape == valid.shape
        jax.debug.callback(
            lambda *chunk: found.append([*map(np.asarray, chunk)]), index, valid, ordered=True
        )
        return carry + jnp.sum(valid)

    fold = jax.jit(lambda mask: chunks.fold(note, 0, mask, sizes))
    assert fold(jnp.asarray(mask, bool)) == np.sum(mask)
    jax.effects_barrier()
    (live,) = np.nonzero(np.ravel(mask))
    for index, valid in found:
        assert set(index[~valid]) <= set(live)
    return [(len(index), index[valid].tolist()) for index, valid in found]


@pytest.mark.parametrize("slab", [1, 2, 3, 512])
@pytest.mark.parametrize(
    "sizes", [[1], [2], [5], [12], [100], [5, 2], [4, 3, 1], [100, 3], [2, 4]], ids=str
)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_fold_sees_every_live_entry_once_and_in_order(mask, sizes, slab, monkeypatch):
    monkeypatch.setattr(chunks, "SEARCHED", slab)
    seen = sum((live for _, live in chunks_of(mask, *sizes)), [])
    assert seen == np.nonzero(mask.ravel())[0].tolist()


@pytest.mark.parametrize(
    ("num", "sizes", "expected"),
    [
        (8, [4], [4, 4]),
        (9, [4], [4, 4, 4]),
        (9, [4, 1], [4, 4, 1]),
        (10, [4, 1], [4, 4, 1, 1]),
        (11, [4, 1], [4, 4, 4]),  # more than half of it is filled
        (11, [8, 4, 1], [8, 4]),
        (5, [8, 4, 1], [8]),
        (4, [8, 4, 1], [4]),
        (0, [4, 1], []),
    ],
)
def test_what_would_fill_half_a_chunk_goes_into_smaller_ones(num, sizes, expected):
    mask = np.isin(np.arange(20), np.random.default_rng(0).permutation(20)[:num])
    assert [size for size, _ in chunks_of(mask, *sizes)] == expected


@pytest.mark.parametrize(("sizes", "num"), [([2], 3), ([4, 1], 3), ([4, 2], 2), ([3], 2)], ids=str)
def test_vmapped_folds_have_as_many_chunks_of_a_size_as_any_of_them_needs(sizes, num):
    masks = jnp.array([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)

    def see(index, valid, carry):
        seen, num = carry
        return seen.at[index].add(valid.astype(int)), num + 1

    fold = lambda mask: chunks.fold(see, (jnp.zeros(5, int), jnp.zeros((), int)), mask, sizes)
    seen, found = jax.vmap(fold)(masks)
    np.testing.assert_array_equal(seen, masks)
    np.testing.assert_array_equal(found, num)


@pytest.mark.parametrize("backend", [backends.CPU, OTHERWISE], ids=["loop", "scatter"])
@pytest.mark.parametrize("more", [0, 3])
def test_true_entries_come_first_and_then_the_first_of_them(backend, more, laid_out):
    laid_out(backend)
    masks = np.random.default_rng(0).random((6, 10)) < np.array([[0, 0.2, 0.3, 0.6, 0.9, 1]]).T
    find = lambda mask: batching.true_first(mask, more)
    found = jax.vmap(find)(masks)
    for mask, index, count in zip(masks, *found, strict=True):
        (expected,) = np.nonzero(mask)
        first = expected[0] if len(expected) else index[0]  # whichever, if none is true
        assert count == len(expected) and 0 <= first < len(mask)
        fill = [first] * (len(mask) + more - len(expected))
        assert index.tolist() == [*expected, *fill]
        np.testing.assert_array_equal(jax.jit(find)(jnp.array(mask))[0], index)


def test_folds_of_several_functions_look_for_live_entries_once(laid_out):
    laid_out(OTHERWISE)
    mask = jnp.arange(20) % 3 == 1
    total = lambda index, valid, carry: carry + jnp.sum(jnp.where(valid, index, 0))
    count = lambda index, valid, carry: carry + jnp.sum(valid)
    each = lambda mask: chunks.fold_each([total, count], [0, 0], mask, [4])
    assert each(mask) == [chunks.fold(f, 0, mask, [4]) for f in (total, count)] == [70, 7]
    assert str(jax.make_jaxpr(each)(mask)).count("name=cumsum") == 1


@pytest.mark.parametrize(("num", "expected"), [(1, [1]), (2, [1, 1]), (3, [8]), (9, [8, 1])])
def test_no_more_is_left_to_smaller_chunks_than_is_spare(num, expected):
    fold = lambda index, valid, carry: carry.at[jnp.sum(carry > 0)].set(len(index))
    sizes = chunks.fold(fold, jnp.zeros(20, int), jnp.arange(20) < num, [8, 1], spare=2)
    assert sizes[sizes > 0].tolist() == expected


def test_the_size_of_an_entrys_chunk_does_not_depend_on_what_is_vmapped_beside_it():
    masks = jnp.arange(20)[None] < jnp.array([[0], [1], [3], [4], [5], [7], [11], [20]])

    def note(index, valid, sizes):
        return sizes.at[jnp.where(valid, index, 20)].add(len(index), mode="drop")

    fold = lambda mask: chunks.fold(note, jnp.zeros(20, int), mask, [6, 2, 1])
    alone = [fold(mask) for mask in masks]
    np.testing.assert_array_equal(jax.vmap(fold)(masks), jnp.stack(alone))
    assert {size for sizes in alone for size in sizes.tolist()} == {0, 1, 2, 6}


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
