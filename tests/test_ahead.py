"""What can be computed ahead is, and nothing changes by it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import subjaxprs

from pgjax import ahead

SCALE = jnp.arange(1.0, 4.0)


def draw_and_walk(place, keys):
    """Noise from keys, what is made of nothing, and what is passed on as it came."""
    noise_key, coin_key = keys
    noise = SCALE * jax.random.normal(noise_key, (3,)) + jnp.ones(3)
    heads = jax.random.bernoulli(coin_key)
    moved = jnp.where(heads, place + noise, place - jnp.ones(3))
    return moved, {"noise": noise, "key": coin_key, "two": jnp.full(2, 2.0), "place": place}


def halves(function, later, now):
    """Primitives of the two parts of a function."""
    first, rest = ahead.split(function, later, now)
    before = jax.make_jaxpr(first)(now).jaxpr
    after = jax.make_jaxpr(rest)(later, jax.eval_shape(first, now)).jaxpr
    return primitives(before), primitives(after)


def primitives(jaxpr):
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    return found.union(*(primitives(inner) for inner in subjaxprs(jaxpr)))


def args():
    return jnp.array([0.5, -1.0, 2.0]), list(jax.random.split(jax.random.key(0)))


def test_the_parts_make_the_whole():
    place, keys = args()
    with jax.enable_checks(True):  # that both are well-formed, too
        first, rest = ahead.split(draw_and_walk, place, keys)
        found, expected = rest(place, first(keys)), draw_and_walk(place, keys)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, expected)


def test_all_drawing_is_done_ahead():
    before, after = halves(draw_and_walk, *args())
    assert "random_bits" in before
    assert "random_bits" not in after


def test_what_depends_on_the_rest_is_not():
    """The negative control: a key that is folded with what comes later."""
    function = lambda time, key: jax.random.normal(jax.random.fold_in(key, time))
    before, after = halves(function, jnp.int32(3), jax.random.key(0))
    assert "random_bits" not in before
    assert "random_bits" in after


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: args())
    first, rest = ahead.split(draw_and_walk, *shapes)
    place, keys = args()
    chex.assert_trees_all_equal(rest(place, first(keys)), draw_and_walk(place, keys))


def test_effects_stay_where_they_were():
    seen = []

    def function(later, now):
        jax.debug.callback(lambda x: seen.append(float(x)), 2 * now)
        return later + now

    first, rest = ahead.split(function, jnp.float32(1), jnp.float32(2))
    values = first(jnp.float32(5))
    jax.effects_barrier()
    assert seen == []
    assert rest(jnp.float32(1), values) == 6
    jax.effects_barrier()
    assert seen == [10]


@pytest.mark.parametrize("num", [1, 4])
def test_what_the_function_closes_over_may_be_traced(num):
    place, keys = args()
    places = jnp.stack([place] * num)

    @jax.jit
    @jax.vmap
    def run(place, scale):
        function = lambda later, now: scale * draw_and_walk(later, now)[0]
        first, rest = ahead.split(function, place, keys)
        return jax.grad(lambda place: jnp.sum(rest(place, first(keys))))(place)

    scale = jnp.arange(1.0, num + 1)
    np.testing.assert_array_equal(run(places, scale), np.repeat(scale[:, None], 3, axis=1))
