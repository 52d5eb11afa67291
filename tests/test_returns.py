"""Returns against rlax, against their definitions as sums, and against what they must never do."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pgjax import returns

T = 12


def arguments(kernel, seed, shape=(T,), **changes):
    """Random float64 arguments of a kernel by name, with ends inside the rows."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, *shape)) < 0.15
    drawn = {
        "x": rng.normal(size=shape),
        "rate": rng.uniform(0.5, 1.1, shape),
        "reward": rng.normal(size=shape),
        "value": rng.normal(size=shape),
        "next_value": rng.normal(size=shape),
        "discount": rng.uniform(0.8, 1.0, shape) * ~terminated,
        "lambda_": rng.uniform(0.0, 1.0, shape),
        "rho": rng.lognormal(size=shape),
        "boundary": terminated | truncated,
        "n": 3,
        **changes,
    }
    return {name: drawn[name] for name in inspect.signature(kernel).parameters if name in drawn}


@pytest.mark.parametrize("num", [1, 31, 32, 33, 64, 100])
def test_a_series_of_any_length_is_summed_whole(num):
    rng = np.random.default_rng(num)
    x, rate = rng.normal(size=(2, 3, num))
    following, expected = np.zeros(3), np.empty_like(x)
    for t in reversed(range(num)):
        expected[:, t] = following = x[:, t] + rate[:, t] * following
    with jax.enable_x64():
        np.testing.assert_allclose(returns.discounted_sum(x, rate), expected, rtol=1e-12)
        check_grads(returns.discounted_sum, (x[:, :70], rate[:, :70]), order=1, modes=["rev"])


# Definitions, written as sums over one row. None of them recurses.


def sum_discounted_sum(x, rate):
    return [sum(x[k] * np.prod(rate[t:k]) for k in range(t, T)) for t in range(T)]


def sum_td_residual(reward, value, next_value, discount):
    return [reward[t] + discount[t] * next_value[t] - value[t] for t in range(T)]


def episode_end(t, boundary):
    """The last step of the episode that step t belongs to."""
    return next(k for k in range(t, T) if boundary[k] or k == T - 1)


def sum_gae(reward, value, next_value, discount, lambda_, boundary):
    delta = sum_td_residual(reward, value, next_value, discount)
    rate = discount * lambda_
    return [
        sum(delta[k] * np.prod(rate[t:k]) for k in range(t, episode_end(t, boundary) + 1))
        for t in range(T)
    ]


def sum_n_step_return(reward, next_value, discount, n, boundary):
    y = np.zeros(T)
    for t in range(T):
        last = min(t + n - 1, episode_end(t, boundary))
        y[t] = sum(reward[k] * np.prod(discount[t:k]) for k in range(t, last + 1))
        y[t] += np.prod(discount[t : last + 1]) * next_value[last]
    return y


def sum_lambda_return(reward, next_value, discount, lambda_, boundary):
    n_step = {
        n: sum_n_step_return(reward, next_value, discount, n, boundary) for n in range(1, T + 1)
    }
    y = np.zeros(T)
    for t in range(T):
        steps_left = episode_end(t, boundary) - t + 1
        for n in range(1, steps_left + 1):
            stop = 1.0 if n == steps_left else 1 - lambda_[t + n - 1]
            y[t] += np.prod(lambda_[t : t + n - 1]) * stop * n_step[n][t]
    return y


def sum_vtrace(
    reward, value, next_value, discount, rho, boundary, lambda_=1.0, clip_rho=1.0, clip_c=1.0
):
    delta = np.minimum(clip_rho, rho) * sum_td_residual(reward, value, next_value, discount)
    rate = discount * lambda_ * np.minimum(clip_c, rho)
    y = np.array(value)
    for t in range(T):
        for k in range(t, episode_end(t, boundary) + 1):
            y[t] += np.prod(rate[t:k]) * delta[k]
    return y


DEFINITIONS = {
    returns.discounted_sum: sum_discounted_sum,
    returns.td_residual: sum_td_residual,
    returns.gae: sum_gae,
    returns.lambda_return: sum_lambda_return,
    returns.n_step_return: sum_n_step_return,
    returns.vtrace: sum_vtrace,
}
KERNELS = list(DEFINITIONS)
WITH_ENDS = [returns.gae, returns.lambda_return, returns.n_step_return, returns.vtrace]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
every_kernel_with_ends = pytest.mark.parametrize("kernel", WITH_ENDS, ids=lambda k: k.__name__)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@every_kernel
def test_equals_its_definition_as_a_sum(kernel, x64, transform):
    tolerance = 1e-12 if x64 else 2e-5
    with jax.enable_x64(x64):
        run = transform(kernel)
        for seed in range(4):
            inputs = arguments(kernel, seed)
            result = run(**inputs)
            assert result.dtype == (jnp.float64 if x64 else jnp.float32)
            np.testing.assert_allclose(
                result, DEFINITIONS[kernel](**inputs), rtol=tolerance, atol=tolerance
            )


@every_kernel
def test_leading_axes_are_rows(kernel):
    inputs = arguments(kernel, 0, shape=(2, 3, T))
    n = {"n": inputs.pop("n")} if "n" in inputs else {}
    result = kernel(**inputs, **n)
    assert result.shape == (2, 3, T)
    for index in np.ndindex(2, 3):
        row = kernel(**{name: x[index] for name, x in inputs.items()}, **n)
        np.testing.assert_allclose(result[index], row, rtol=1e-6)
    mapped = jax.vmap(jax.vmap(lambda arrays: kernel(**arrays, **n)))(inputs)
    np.testing.assert_allclose(result, mapped, rtol=1e-5, atol=1e-6)


@every_kernel
def test_scalars_and_rows_broadcast(kernel):
    changes = {"rate": 0.9, "discount": 0.9, "lambda_": 0.7}
    scalar = arguments(kernel, 0, shape=(2, T), **changes)
    row = {name: np.full(T, x) if name in changes else x for name, x in scalar.items()}
    np.testing.assert_array_equal(kernel(**scalar), kernel(**row))


@every_kernel
def test_gradients_are_finite_and_match_differences(kernel):
    with jax.enable_x64(True):
        inputs = arguments(kernel, 1)
        name = "x" if "x" in inputs else "next_value"
        x = jnp.asarray(inputs.pop(name))
        check_grads(lambda x: kernel(**inputs, **{name: x}), (x,), order=1)


@every_kernel
def test_rejects_misshapen_series(kernel):
    inputs = arguments(kernel, 0)
    name = "rate" if "rate" in inputs else "reward"
    inputs[name] = inputs[name][:-1]
    with pytest.raises((AssertionError, ValueError)):
        kernel(**inputs)


def test_integer_rewards_become_floats():
    np.testing.assert_allclose(returns.discounted_sum(jnp.array([1, 0, 2]), 0.5), [1.5, 1.0, 2.0])


# Against rlax, which has no boundaries: its time t + 1 is our step t.


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_rlax(seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        r, d, lambda_, rho = (jnp.asarray(rng.random(T)) for _ in range(4))
        values = jnp.asarray(rng.normal(size=T + 1))
        v, next_v = values[:-1], values[1:]

        def agree(ours, theirs):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)

        agree(returns.discounted_sum(r, d), rlax.discounted_returns(r, d, jnp.zeros(T)))
        agree(
            returns.lambda_return(r, next_v, d, lambda_), rlax.lambda_returns(r, d, next_v, lambda_)
        )
        agree(
            returns.gae(r, v, next_v, d, lambda_),
            rlax.truncated_generalized_advantage_estimation(r, d, lambda_, values),
        )
        for n in (1, 2, 5, T):
            agree(
                returns.n_step_return(r, next_v, d, n),
                rlax.n_step_bootstrapped_returns(r, d, next_v, n),
            )
        rho = 2 * rho
        agree(
            returns.vtrace(r, v, next_v, d, rho, lambda_=lambda_, clip_rho=1.5) - v,
            rlax.vtrace(v, next_v, r, d, rho, lambda_, clip_rho_threshold=1.5),
        )
        agree(
            rlax.vtrace_td_error_and_advantage(v, next_v, r, d, rho).errors,
            returns.vtrace(r, v, next_v, d, rho) - v,
        )


# Identities.


def consistent(seed):
    """Values of a row without resets: the next value is the value of the next step."""
    values = np.random.default_rng(seed).normal(size=T + 1)
    return {"value": values[:-1], "next_value": values[1:]}


def test_gae_without_a_trace_is_the_td_residual():
    residual = returns.td_residual(**arguments(returns.td_residual, 0))
    advantage = returns.gae(**arguments(returns.gae, 0, lambda_=0.0))
    np.testing.assert_allclose(advantage, residual, rtol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_gae_is_the_lambda_return_minus_the_value(lambda_):
    changes = {**consistent(0), "lambda_": lambda_}
    target = returns.lambda_return(**arguments(returns.lambda_return, 0, **changes))
    advantage = returns.gae(**arguments(returns.gae, 0, **changes))
    np.testing.assert_allclose(advantage, target - changes["value"], atol=1e-5)


def test_gae_of_a_whole_episode_is_the_return_minus_the_value():
    changes = {**consistent(0), "lambda_": 1.0, "boundary": None}
    changes["discount"] = np.where(np.arange(T) == T - 1, 0.0, 0.9)
    inputs = arguments(returns.gae, 0, **changes)
    expected = returns.discounted_sum(inputs["reward"], 0.9) - inputs["value"]
    np.testing.assert_allclose(returns.gae(**inputs), expected, atol=1e-5)


def test_lambda_return_ends_are_n_step_returns():
    inputs = arguments(returns.n_step_return, 0)
    n_step = lambda n: returns.n_step_return(**{**inputs, "n": n})
    del inputs["n"]
    np.testing.assert_allclose(returns.lambda_return(**inputs, lambda_=0.0), n_step(1), atol=1e-6)
    np.testing.assert_allclose(returns.lambda_return(**inputs, lambda_=1.0), n_step(T), atol=1e-5)


def test_vtrace_on_policy_is_the_lambda_return():
    changes = {**consistent(0), "rho": np.ones(T)}
    target = returns.vtrace(**arguments(returns.vtrace, 0, **changes))
    expected = returns.lambda_return(**arguments(returns.lambda_return, 0, **changes))
    np.testing.assert_allclose(target, expected, atol=1e-5)


def test_vtrace_clips_residual_and_trace_apart():
    inputs = arguments(returns.vtrace, 2)
    with jax.enable_x64(True):
        for clips in ({"clip_rho": 2.0, "clip_c": 0.5}, {"clip_rho": np.inf, "clip_c": np.inf}):
            result = returns.vtrace(**inputs, **clips)
            np.testing.assert_allclose(result, sum_vtrace(**inputs, **clips), rtol=1e-12)


# What must never happen.


@every_kernel_with_ends
def test_two_episodes_in_one_row_equal_two_rows(kernel):
    rows = arguments(kernel, 0, shape=(2, T))
    join = lambda x: x.reshape(2 * T) if np.ndim(x) else x
    rows["discount"][0, -1], rows["boundary"][0, -1] = 0.9, True
    one_row = kernel(**{name: join(x) for name, x in rows.items()})
    np.testing.assert_array_equal(one_row.reshape(2, T), kernel(**rows))

    rows["boundary"][0, -1] = False
    leaking = kernel(**{name: join(x) for name, x in rows.items()})
    assert not np.allclose(leaking[:T], one_row[:T])


@every_kernel_with_ends
def test_what_follows_a_boundary_is_not_seen(kernel):
    inputs = arguments(kernel, 0, boundary=np.arange(T) == 5)
    before = kernel(**inputs)
    for name in ("reward", "value", "next_value"):
        if name in inputs:
            inputs[name][6:] = 1e6
    np.testing.assert_array_equal(kernel(**inputs)[:6], before[:6])


@every_kernel_with_ends
def test_terminated_wins_over_truncated(kernel):
    """At a step that is both, the value of the next observation is not used."""
    both = np.arange(T) == 5
    inputs = arguments(kernel, 0, boundary=both)
    inputs["discount"] = np.where(both, 0.0, 0.9)
    before = kernel(**inputs)
    inputs["next_value"][5] = 1e6
    np.testing.assert_array_equal(kernel(**inputs), before)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_truncation_is_no_surprise_to_an_exact_value(lambda_):
    """V = c and r = (1 - gamma) c: no advantage anywhere, and every return is c."""
    c, gamma = 7.0, 0.9
    reward, value = np.full(T, (1 - gamma) * c), np.full(T, c)
    truncated = np.arange(T) % 5 == 4
    advantage = returns.gae(reward, value, value, gamma, lambda_, truncated)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-5)
    target = returns.lambda_return(reward, value, gamma, lambda_, truncated)
    np.testing.assert_allclose(target, c, rtol=1e-6)
    np.testing.assert_allclose(
        returns.n_step_return(reward, value, gamma, 3, truncated), c, rtol=1e-6
    )
    terminated = gamma * ~truncated
    assert np.all(returns.gae(reward, value, value, terminated, lambda_, truncated)[truncated] < -1)


def test_long_horizons_stay_finite():
    y = returns.discounted_sum(jnp.ones(100_000), 0.9)
    np.testing.assert_allclose(y[:-200], 10.0, rtol=1e-5)
    np.testing.assert_allclose(y[-3:], [2.71, 1.9, 1.0], rtol=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.99999, 0.9999, 0.99, 0.3])
def test_rounding_does_not_grow_with_the_horizon(rate):
    """A plain sum from the back is off by a percent: most tenths are rounded the same way."""
    horizon, x, rate = 2**20 + 5, np.float32(0.1), np.float32(rate)
    y = returns.discounted_sum(jnp.full((1, horizon), x), rate)[0]
    left, slope = np.arange(horizon, 0, -1), np.float64(rate)
    exact = np.float64(x) * (left if rate == 1 else (1 - slope**left) / (1 - slope))
    np.testing.assert_allclose(y, exact, rtol=3e-7)
    plain = jax.lax.scan(lambda y, _: (x + rate * y, None), np.float32(0), length=horizon)[0]
    if rate > 0.9999:
        assert abs(plain / exact[0] - 1) > 1e-4


# The step count.


@pytest.mark.parametrize("n", [0, -1, 0.5, 2.5, np.float32(0)])
def test_n_step_rejects_a_concrete_bad_n(n):
    with pytest.raises(ValueError, match="n="):
        returns.n_step_return(jnp.ones(T), jnp.ones(T), 0.9, n)


@pytest.mark.parametrize("n", [2.0, np.float64(2), jnp.float32(2), jnp.int32(2)])
def test_a_concrete_n_may_be_of_any_dtype(n):
    inputs = arguments(returns.n_step_return, 0)
    expected = returns.n_step_return(**inputs | {"n": 2})
    np.testing.assert_array_equal(returns.n_step_return(**inputs | {"n": n}), expected)


def test_n_may_be_a_traced_float():
    inputs = arguments(returns.n_step_return, 0)
    del inputs["n"]
    counts = jnp.array([1.0, 2.0, 5.0, 1e9])
    swept = jax.jit(jax.vmap(lambda n: returns.n_step_return(**inputs, n=n)))(counts)
    single = [returns.n_step_return(**inputs, n=int(n)) for n in counts]
    np.testing.assert_allclose(swept, jnp.stack(single), rtol=1e-5, atol=1e-6)


def test_a_traced_n_may_sit_inside_a_surrogate():
    """The return is held constant there, so that its loop is never run backwards."""

    def surrogate(parameter, n):
        y = returns.n_step_return(jnp.ones(T), parameter * jnp.ones(T), 0.9, n)
        return jnp.sum(jax.lax.stop_gradient(y) * parameter)

    gradient = jax.jit(jax.grad(surrogate))(2.0, 3.0)
    expected = jnp.sum(returns.n_step_return(jnp.ones(T), 2.0 * jnp.ones(T), 0.9, 3))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


# Properties of any input.

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
compiled = {kernel: jax.jit(kernel) for kernel in KERNELS}


@some
@given(seed=seeds, scale=st.floats(-100, 100), horizon=st.sampled_from([1, 2, T]))
def test_discounted_sum_is_linear(seed, scale, horizon):
    x, y, rate = np.random.default_rng(seed).uniform(-1, 1, (3, horizon))
    combined = returns.discounted_sum(x + scale * y, rate)
    apart = returns.discounted_sum(x, rate) + scale * returns.discounted_sum(y, rate)
    np.testing.assert_allclose(combined, apart, rtol=1e-4, atol=1e-4 * (1 + abs(scale)))


@some
@given(seed=seeds)
def test_dropping_the_first_step_changes_nothing_else(seed):
    for kernel in KERNELS:
        inputs = arguments(kernel, seed)
        later = {name: x[1:] if np.ndim(x) else x for name, x in inputs.items()}
        np.testing.assert_array_equal(compiled[kernel](**inputs)[1:], compiled[kernel](**later))


@some
@given(seed=seeds, shift=st.floats(-10, 10))
def test_shaping_by_a_constant_shifts_returns_and_leaves_advantages(seed, shift):
    """Add c to values and (1 - discount) c to rewards: returns gain c, advantages nothing."""

    def shifted(kernel):
        inputs = arguments(kernel, seed)
        inputs["reward"] = inputs["reward"] + (1 - inputs["discount"]) * shift
        for name in {"value", "next_value"} & inputs.keys():
            inputs[name] = inputs[name] + shift
        return compiled[kernel](**inputs) - compiled[kernel](**arguments(kernel, seed))

    np.testing.assert_allclose(shifted(returns.gae), 0.0, atol=1e-4)
    for kernel in (returns.lambda_return, returns.n_step_return, returns.vtrace):
        np.testing.assert_allclose(shifted(kernel), shift, atol=1e-4)


@some
@given(seed=seeds, lambda_=st.floats(0, 1))
def test_lambda_return_lies_between_its_n_step_returns(seed, lambda_):
    inputs = arguments(returns.lambda_return, seed, lambda_=lambda_)
    mixture = compiled[returns.lambda_return](**inputs)
    del inputs["lambda_"]
    n_step = compiled[returns.n_step_return]
    n_step = np.stack([n_step(**inputs, n=n) for n in range(1, T + 1)])
    assert np.all(mixture >= n_step.min(axis=0) - 1e-5)
    assert np.all(mixture <= n_step.max(axis=0) + 1e-5)
