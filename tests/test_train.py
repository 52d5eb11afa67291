"""Training: optax's ascent, skipped updates, resuming, state, and one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax import train

KEY = jax.random.key(0)


def uphill(key, params):
    """Gradient of -(x - 3)^2 / 2, with a little noise."""
    noise = 0.1 * jax.random.normal(key, params.shape)
    return 3.0 - params + noise, {"distance": jnp.abs(params - 3.0)}


def run(state, num_steps, gradient_fn=uphill, optimizer=None, key=KEY):
    optimizer = optimizer or optax.adam(0.1)
    return jax.jit(
        lambda key, state: train.train(key, state, gradient_fn, optimizer, num_steps=num_steps)
    )(key, state)


def start(gradient_fn=None):
    return train.init(KEY, jnp.float32(0.0), optax.adam(0.1), gradient_fn)


def test_ascends_and_stacks_metrics():
    state, metrics = run(start(), 200)
    np.testing.assert_allclose(state.params, 3.0, atol=0.2)
    assert metrics["distance"].shape == metrics["gradient_norm"].shape == (200,)
    assert state.step == 200 and state.skipped == 0


def test_plain_sgd_is_theta_plus_alpha_g():
    gradient_fn = lambda key, params: (jnp.float32(2.0), {})
    state = train.init(KEY, jnp.float32(1.0), optax.sgd(0.5))
    state, _ = train.step(KEY, state, gradient_fn, optax.sgd(0.5))
    assert state.params == 2.0


def test_going_on_is_bitwise_the_same_as_never_stopping():
    whole, metrics = run(start(), 6)
    half, first = run(start(), 3)
    rest, second = run(half, 3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(a, b)
    joined = jnp.concatenate([first["distance"], second["distance"]])
    np.testing.assert_array_equal(metrics["distance"], joined)


def test_steps_use_different_keys():
    noise = lambda key, params: (jnp.zeros(()), {"noise": jax.random.normal(key)})
    _, metrics = run(start(), 50, noise)
    assert len(np.unique(metrics["noise"])) == 50


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_gradients_are_skipped_and_counted(bad):
    def sometimes(key, params):
        gradient, metrics = uphill(key, params)
        return jnp.where(jax.random.bernoulli(key), bad, gradient), metrics

    state, metrics = run(start(), 300, sometimes)
    assert state.skipped == jnp.sum(~metrics["finite"])
    assert 100 < state.skipped < 200
    np.testing.assert_allclose(state.params, 3.0, atol=0.2)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_norms_and_finiteness_are_of_all_leaves(bad):
    gradient = {"a": jnp.array([[3.0, bad or 0.0]]), "b": jnp.float32(4.0)}
    state = train.init(KEY, jax.tree.map(jnp.zeros_like, gradient), optax.sgd(1.0))
    state, metrics = train.step(KEY, state, lambda key, params: (gradient, {}), optax.sgd(1.0))
    assert metrics["finite"] == (bad is None) and state.skipped == (bad is not None)
    np.testing.assert_allclose(metrics["gradient_norm"], bad or 5, rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], 0 if bad else 5, rtol=1e-6)


def test_updates_that_overflow_are_skipped():
    gradient_fn = lambda key, params: (jnp.float32(1e30), {})
    optimizer = optax.sgd(1e30)
    state = train.init(KEY, jnp.float32(1.0), optimizer)
    state, metrics = train.step(KEY, state, gradient_fn, optimizer)
    assert state.params == 1.0 and state.skipped == 1 and not metrics["finite"]


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.rmsprop(0.1)], ids=["adam", "rms"])
def test_a_gradient_whose_squares_overflow_does_not_stop_the_optimiser_for_good(optimizer):
    def once(key, params, time):
        return {"x": jnp.where(time == 0, 1e25, 3.0 - params["x"])}, time + 1, {}

    gradient_fn = train.StatefulGradientFn(lambda key, params: jnp.int32(-1), once)
    state = train.init(KEY, {"x": jnp.float32(0.0)}, optimizer, gradient_fn)
    state, _ = run(state, 1, gradient_fn, optimizer)  # at time -1
    state, metrics = run(state, 1, gradient_fn, optimizer)
    assert state.skipped == 1 and not metrics["finite"][0]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    state, _ = run(state._replace(gradient_state=jnp.int32(1)), 300, gradient_fn, optimizer)
    np.testing.assert_allclose(state.params["x"], 3.0, atol=0.2)


def test_a_number_of_steps_is_whole_and_not_negative():
    for num in (-1, 2.0, True):
        with pytest.raises(ValueError, match=f"num_steps={num}"):
            run(start(), num)
    state, metrics = run(start(), 0)
    assert state.step == 0 and metrics["finite"].shape == (0,)


def test_state_is_carried():
    running_mean = train.StatefulGradientFn(
        init=lambda key, params: jnp.float32(0.0),
        step=lambda key, params, state: (params * 0, state + 1, {"count": state}),
    )
    state, metrics = run(start(running_mean), 4, running_mean)
    np.testing.assert_array_equal(metrics["count"], [0, 1, 2, 3])
    assert state.gradient_state == 4


def test_a_state_made_without_the_gradient_is_refused():
    counting = train.StatefulGradientFn(
        init=lambda key, params: jnp.float32(0.0),
        step=lambda key, params, state: (params, state + 1, {}),
    )
    with pytest.raises(ValueError, match="train.init.*gradient_fn"):
        run(start(), 1, counting)
    empty = train.StatefulGradientFn(
        init=lambda key, params: (), step=lambda key, params, state: (params, state, {})
    )
    assert run(start(), 1, empty)[0].step == 1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (jnp.ones(3), "must return .gradient, metrics."),
        ((jnp.ones(3), jnp.ones(3)), "must return .gradient, metrics."),
        ((jnp.float32(1), {}), r"gradient has shapes \(\); params, \(3,\)"),
        ((jnp.ones(2), {}), r"gradient has shapes \(2,\); params, \(3,\)"),
        (({"a": jnp.ones(3)}, {}), r"gradient has shapes {'a': \(3,\)}; params, \(3,\)"),
    ],
)
def test_what_is_no_gradient_of_the_params_is_refused(returned, message):
    optimizer = optax.sgd(0.1)
    state = train.init(KEY, jnp.zeros(3), optimizer)
    assert train.step(KEY, state, lambda *_: (jnp.ones(3), {}), optimizer)[0].step == 1
    with pytest.raises(ValueError, match=message):
        train.step(KEY, state, lambda *_: returned, optimizer)


def test_weakly_typed_params_do_not_compile_again():
    """Python's numbers, and what `jnp.full` makes of them."""
    optimizer = optax.adam(0.1)
    gradient_fn = lambda key, params: (jax.tree.map(lambda x: 3.0 - x, params), {})
    step = jax.jit(lambda key, state: train.step(key, state, gradient_fn, optimizer))
    state = train.init(KEY, {"loc": 0.0, "scale": jnp.full(3, -1.0)}, optimizer)
    for _ in range(3):
        state, _ = step(KEY, state)
    assert step._cache_size() == 1


def test_second_call_does_not_compile_again():
    traced = []

    def counted(key, params):
        traced.append(1)
        return uphill(key, params)

    optimizer = optax.adam(0.1)
    step = jax.jit(lambda key, state: train.step(key, state, counted, optimizer))
    state, _ = step(KEY, start())
    for seed in range(3):
        state, _ = step(jax.random.key(seed), state)
    assert len(traced) == step._cache_size() == 1


def test_training_on_an_exact_gradient_can_be_differentiated():
    """With respect to the learning rate, in reverse mode, against forward mode and by hand."""

    def trained(rate):
        state = train.init(KEY, jnp.float32(1.0), optax.sgd(rate))
        gradient_fn = lambda key, params: (3 - params, {})
        state, metrics = train.train(KEY, state, gradient_fn, optax.sgd(rate), num_steps=5)
        return state.params + 0 * jnp.sum(metrics["gradient_norm"])

    by_hand = 2 * 5 * (1 - 0.1) ** 4  # the distance is 2 (1 - rate)^5
    np.testing.assert_allclose(jax.jit(jax.grad(trained))(0.1), by_hand, rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(trained)(0.1), by_hand, rtol=1e-5)
