"""How programs behave when they are vmapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import backends, batching


def halvings(x, limit):
    """How often x can be halved before it is at most the limit, and what is left then."""
    step = lambda carry: (carry[0] + 1, carry[1] / 2)
    count, rest = jax.lax.while_loop(lambda carry: carry[1] > limit, step, (0, x))
    return {"count": count, "rest": rest}


def test_in_turn_is_the_same_as_side_by_side():
    x, limit = jnp.array([1.0, 8.0, 100.0]), jnp.array([2.0, 1.0, 3.0])
    apply = batching.sequential_vmap(halvings)
    for axes, limits in ((0, limit), (None, 1.5)):
        expected = jax.vmap(halvings, (0, axes))(x, limits)
        found = jax.jit(jax.vmap(apply, (0, axes)))(x, limits)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_it_may_be_vmapped_twice_and_not_at_all():
    x = jnp.arange(1.0, 7.0).reshape(2, 3)
    apply = lambda x: batching.sequential_vmap(halvings)(x, 1.0)
    expected = jax.vmap(jax.vmap(lambda x: halvings(x, 1.0)))(x)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(jax.vmap(apply))(x), expected)
    assert apply(8.0) == {"count": 3, "rest": 1.0}


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jitted", "plain"])
def test_what_it_closes_over_may_be_vmapped_too(jit):
    x, limit = jnp.array([1.0, 8.0, 100.0]), jnp.array([2.0, 1.0, 3.0])
    table = jnp.array([0.0, 1.0])

    def run(x, limit):
        apply = batching.sequential_vmap(lambda x: halvings(x + table[0], limit * table[1]))
        return apply(x)

    expected = jax.vmap(halvings)(x, limit)
    jax.tree.map(np.testing.assert_array_equal, jit(jax.vmap(run))(x, limit), expected)
    across = jax.vmap(jax.vmap(run, (0, None)), (None, 0))
    expected = jax.vmap(jax.vmap(halvings, (0, None)), (None, 0))(x, limit)
    jax.tree.map(np.testing.assert_array_equal, jit(across)(x, limit), expected)


def test_plain_numbers_stay_constants():
    def branches(x, power):
        return x if power == 1 else x**power  # a traced power could not be asked

    found = jax.vmap(lambda x: batching.sequential_vmap(branches)(x, 1))(jnp.arange(3.0))
    np.testing.assert_array_equal(found, [0.0, 1.0, 2.0])


@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_call_gives_the_same_bits_however_many_there_are(num):
    weight = jax.random.normal(jax.random.key(0), (64, 64))
    x = jax.random.normal(jax.random.key(1), (8, 300, 64))
    together = jax.jit(
        jax.vmap(batching.sequential_vmap(lambda x: jnp.sum(jnp.tanh(x @ weight), 0)))
    )
    np.testing.assert_array_equal(together(x[:num]), together(x)[:num])


@pytest.mark.parametrize(("num", "size"), [(1, 3), (3, 3), (4, 3), (7, 3), (5, None), (3, 1)])
def test_blocks_are_vmap(num, size):
    x, y = jnp.arange(1.0, num + 1), jnp.ones((num, 2))
    keys = jax.random.split(jax.random.key(0), num)

    def function(x, y, key):
        return {"halvings": halvings(x, 1.0), "sum": x + y, "noise": jax.random.normal(key)}

    found = jax.jit(batching.vmap_in_blocks(function, size))(x, y, keys)
    jax.tree.map(np.testing.assert_array_equal, found, jax.vmap(function)(x, y, keys))


def test_a_block_stops_when_its_own_calls_are_done():
    def steps_of_all(limit):
        go_on = lambda count: batching.any_across_vmap(count < limit)
        return jax.lax.while_loop(go_on, lambda count: count + 1, 0)

    limits = jnp.array([1, 2, 9, 3])
    np.testing.assert_array_equal(batching.vmap_in_blocks(steps_of_all, 2)(limits), [2, 2, 9, 9])
    np.testing.assert_array_equal(batching.vmap_in_blocks(steps_of_all, None)(limits), [9] * 4)


def test_vmapped_calls_are_made_as_one_where_they_share_the_whole():
    calls = []

    def function(whole, rows):
        calls.append(len(rows["x"]))
        return {"y": whole * rows["x"] + rows["z"]}

    apply = batching.merge_vmap(function)
    x, z, whole = jnp.arange(12.0).reshape(3, 4), jnp.ones(4), jnp.array([1.0, 2.0, 3.0])
    run = lambda whole, x: apply(whole, {"x": x, "z": z})["y"]
    np.testing.assert_array_equal(run(2.0, x[0]), 2 * x[0] + 1)
    assert set(calls) == {4}
    np.testing.assert_array_equal(jax.vmap(run, (None, 0))(2.0, x), 2 * x + 1)
    assert 12 in calls
    calls.clear()
    np.testing.assert_array_equal(jax.vmap(run)(whole, x), whole[:, None] * x + 1)
    assert set(calls) == {4}
    calls.clear()
    every = jax.vmap(jax.vmap(run, (0, None)), (None, 0))(whole, x)
    np.testing.assert_array_equal(every, whole[None, :, None] * x[:, None] + 1)
    every = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(whole, x)
    np.testing.assert_array_equal(every, whole[:, None, None] * x[None] + 1)
    assert 12 in calls


def test_calls_that_close_over_what_is_vmapped_are_vmapped():
    calls = []

    def run(scale, x):
        function = lambda _, x: calls.append(len(x)) or scale * x
        return batching.merge_vmap(function)((), x)

    x, scale = jnp.arange(12.0).reshape(3, 4), jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(jax.vmap(run)(scale, x), scale[:, None] * x)
    assert set(calls) == {4}


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 4, 0)])
def test_calls_made_as_one_may_be_empty(shape):
    apply = batching.merge_vmap(lambda _, x: x + 1)
    assert jax.vmap(lambda x: apply((), x))(jnp.zeros(shape)).shape == shape


def test_calls_made_as_one_can_be_differentiated():
    apply = batching.merge_vmap(lambda whole, x: jnp.sin(whole * x))
    x, whole = jnp.arange(12.0).reshape(3, 4), jnp.float32(0.5)
    of_all = lambda whole: jax.vmap(lambda x: apply(whole, x))(x)
    expected = x * jnp.cos(whole * x)
    slope = lambda function: jax.jvp(function, (whole,), (jnp.ones_like(whole),))[1]
    np.testing.assert_allclose(slope(of_all), expected, rtol=1e-6)
    one = lambda x: slope(lambda whole: apply(whole, x))
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(x), expected, rtol=1e-6)
    of_sum = lambda x: jax.grad(lambda whole: jnp.sum(apply(whole, x)))(whole)
    np.testing.assert_allclose(jax.vmap(of_sum)(x), jnp.sum(expected, axis=1), rtol=1e-5)


def test_seldom_needed_work_is_done_where_it_is_needed():
    called = []

    def slow(x, y):
        jax.debug.callback(called.append, x)
        return {"sum": x + y, "index": jnp.int8(y)}

    apply = batching.lazy_select(slow)
    x, otherwise = jnp.arange(200.0), {"sum": -jnp.ones(200), "index": jnp.zeros(200, jnp.int32)}
    needed = x % 5 == 3
    run = jax.vmap(apply, (0, 0, 0, None))
    found = jax.jit(run)(needed, otherwise, x, 7)
    jax.effects_barrier()
    assert len(called) == 64  # forty calls, thirty-two at a time
    np.testing.assert_array_equal(found["sum"], np.where(needed, x + 7, -1))
    np.testing.assert_array_equal(found["index"], np.where(needed, 7, 0))
    assert found["index"].dtype == jnp.int32
    one = apply(True, {"sum": 0.0, "index": 0}, 1.0, 2)
    assert one["sum"] == 3 and one["index"] == 2


@pytest.mark.parametrize("lazy_calls", [2, None])
def test_seldom_needed_work_may_close_over_what_is_vmapped(lazy_calls, laid_out):
    laid_out(backends.CPU._replace(lazy_calls=lazy_calls))

    def run(scale, needed, x):
        apply = batching.lazy_select(lambda x: scale * x)
        return jax.vmap(lambda needed, x: apply(needed, -1.0, x))(needed, x)

    scale, x = jnp.array([1.0, 2.0, 3.0]), jnp.arange(15.0).reshape(3, 5)
    found = jax.jit(jax.vmap(run))(scale, x % 2 == 0, x)
    np.testing.assert_array_equal(found, np.where(x % 2 == 0, scale[:, None] * x, -1))


def test_seldom_needed_work_may_be_vmapped_twice():
    apply = batching.lazy_select(lambda x: x + 1)
    needed, x = jax.random.bernoulli(jax.random.key(0), 0.3, (3, 100)), jnp.ones((3, 100))
    found = jax.jit(jax.vmap(jax.vmap(apply)))(needed, jnp.zeros((3, 100)), x)
    np.testing.assert_array_equal(found, 2 * needed)


@pytest.mark.parametrize("lazy_calls", [7, None])
@pytest.mark.parametrize("rows", [50, 1])
def test_what_seldom_needed_work_shares_is_that_of_its_own_calls(rows, lazy_calls, laid_out):
    """Vmapped over runs, rows and copies: some arguments are of all, of a run, or of a row."""
    laid_out(backends.CPU._replace(lazy_calls=lazy_calls))

    def call(needed, of_all, of_run, of_row, key):
        noise = jax.random.uniform(key)
        work = lambda *args: jnp.stack([*args[:-1], jax.random.uniform(args[-1])])
        return batching.lazy_select(work)(needed, -jnp.ones(4), of_all, of_run, of_row, key), noise

    of_rows, copies = jax.vmap(call, (0, None, None, 0, 0)), (0, None, None, None, 0)
    function = jax.vmap(jax.vmap(of_rows, copies), (0, None, 0, 0, 0))
    shape = (3, 2, rows)  # runs, copies, rows
    needed = jax.random.bernoulli(jax.random.key(0), 0.3, shape)
    keys = jax.random.split(jax.random.key(1), shape)
    of_run, of_row = jnp.arange(3.0), jnp.arange(3.0 * rows).reshape(3, rows)
    found, noise = jax.jit(function)(needed, 9.0, of_run, of_row, keys)
    whole = lambda x: jnp.broadcast_to(x, shape)
    given = [whole(9.0), whole(of_run[:, None, None]), whole(of_row[:, None]), noise]
    expected = jnp.where(needed[..., None], jnp.stack(given, axis=-1), -1)
    np.testing.assert_array_equal(found, expected)


def test_seldom_needed_work_may_have_entries_of_no_size():
    work = batching.lazy_select(lambda x: {"x": 2 * x, "nothing": jnp.zeros((0, 3))})
    otherwise = lambda x: {"x": x, "nothing": jnp.zeros((0, 3))}
    run = lambda x: work(x > 2, otherwise(x), x)
    found = jax.vmap(jax.vmap(run))(jnp.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(found["x"], [[0, 1, 2], [6, 8, 10]])
    assert found["nothing"].shape == (2, 3, 0, 3)


def test_seldom_needed_work_may_be_that_of_very_many():
    """As many as the square root of what an index can hold, and more."""
    num = 50_000
    needed = jnp.arange(num) % 1000 == 7
    apply = jax.vmap(batching.lazy_select(lambda x: x + 1))
    found = jax.jit(apply)(needed, jnp.zeros(num), jnp.arange(num))
    np.testing.assert_array_equal(found, np.where(needed, np.arange(num) + 1, 0))


def note(index, carry):
    """A step of a loop that keeps what it had."""
    x, kept = carry
    return x + index, kept.at[index].set(x)


def test_small_operations_are_done_once():
    def once(index, x):
        return batching.once(note, index, (x, jnp.zeros(3)))

    index, (x, kept) = jax.jit(jax.vmap(once, (None, 0), (None, 0)))(2, jnp.array([5.0, 6.0]))
    assert index == 3
    np.testing.assert_array_equal(x, [7, 8])
    np.testing.assert_array_equal(kept, [[0, 0, 5], [0, 0, 6]])


def test_small_operations_done_once_are_one_function():
    def functions(apply):
        shapes = jax.eval_shape(lambda: (jnp.int32(0), (jnp.zeros(9), jnp.zeros((3, 9)))))
        return jax.jit(apply).lower(*shapes).compile().as_text().count("xla_cpu_small_call")

    assert functions(lambda index, carry: batching.once(note, index, carry)) > 0
    assert functions(note) == 0


def test_loop_that_goes_on_with_the_index_returned_does_not_copy_its_count():
    def copies(turn):
        def go_through(weights, carry):
            def step(loop):
                index, (x, kept) = loop
                after, carry = batching.once(note, index, (jnp.tanh(weights @ x), kept))
                return turn(index, after), carry

            return jax.lax.while_loop(lambda loop: loop[0] < 9, step, (jnp.int32(0), carry))

        shapes = jax.eval_shape(lambda: (jnp.zeros((9, 9)), (jnp.zeros(9), jnp.zeros((9, 9)))))
        return jax.jit(go_through).lower(*shapes).compile().as_text().count("s32[] copy(")

    assert copies(lambda index, after: after) < copies(lambda index, after: index + 1)
