"""The one operator: against closed forms, for variational inference and black-box search."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax import distributions, score, train


def gaussian(params):
    return distributions.normal(params["loc"], jnp.exp(params["log_scale"]))


def sample(key, params):
    return gaussian(params).sample(key)


def log_prob(params, x):
    return gaussian(params).log_prob(x)


PARAMS = {"loc": jnp.float32(0.3), "log_scale": jnp.float32(-0.2)}


def z_scores(gradient_fn, exact, params=PARAMS, replicates=4000, seed=0):
    """Standard scores of the mean of many estimates, one a parameter."""
    keys = jax.random.split(jax.random.key(seed), replicates)
    draws = jax.jit(jax.vmap(lambda key: gradient_fn(key, params)[0]))(keys)
    return {
        name: float((jnp.mean(x) - exact[name]) / (jnp.std(x) / replicates**0.5))
        for name, x in draws.items()
    }


def quadratic(params, x):
    """E[-(x - 2)^2] = -(m - 2)^2 - s^2."""
    return -((x - 2.0) ** 2)


QUADRATIC_GRADIENT = {"loc": 2 * (2 - 0.3), "log_scale": -2 * np.exp(-0.4)}


def elbo_integrand(params, x):
    """log N(x; 1.5, 0.5) - log q(x): the bound is minus a KL divergence between normals."""
    return distributions.normal(1.5, 0.5).log_prob(x) - log_prob(params, x)


ELBO_GRADIENT = {"loc": (1.5 - 0.3) / 0.25, "log_scale": 1 - np.exp(-0.4) / 0.25}


@pytest.mark.parametrize("baseline", ["none", None, "leave_one_out"])
@pytest.mark.parametrize(
    ("objective", "exact"), [(quadratic, QUADRATIC_GRADIENT), (elbo_integrand, ELBO_GRADIENT)]
)
def test_gradient_is_unbiased(objective, exact, baseline):
    gradient_fn = score.score_function_gradient(
        sample, log_prob, objective, num_samples=4, baseline=baseline
    )
    worst = max(abs(z) for z in z_scores(gradient_fn, exact).values())
    assert worst < 4.5  # twelve scores in all: a false alarm below 1e-4


def test_biased_baseline_is_found_out():
    gradient_fn = score.score_function_gradient(
        sample, log_prob, quadratic, num_samples=2, baseline="batch_mean"
    )
    assert abs(z_scores(gradient_fn, QUADRATIC_GRADIENT)["loc"]) > 10
    halved = {name: x / 2 for name, x in QUADRATIC_GRADIENT.items()}
    assert abs(z_scores(gradient_fn, halved)["loc"]) < 4.5


def test_direct_dependence_counts():
    """f = theta x with x ~ N(0, 1) of no parameters: the score is zero, the gradient is E[x]."""
    gradient_fn = score.score_function_gradient(
        sample=lambda key, params: 1.0 + jax.random.normal(key),
        log_prob=lambda params, x: jnp.zeros(()),
        objective=lambda params, x: params * x,
        num_samples=20_000,
    )
    gradient, metrics = gradient_fn(jax.random.key(0), jnp.float32(2.0))
    np.testing.assert_allclose(gradient, 1.0, atol=0.05)
    np.testing.assert_allclose(metrics["objective"], 2 * gradient, rtol=1e-5)


def test_gradient_is_the_formula():
    """Per batch, sum_i (f_i - mean of the others) score_i / N, from samples drawn alike."""
    key, num = jax.random.key(3), 5
    gradient_fn = score.score_function_gradient(sample, log_prob, quadratic, num_samples=num)
    gradient, _ = gradient_fn(key, PARAMS)
    x = np.array([sample(k, PARAMS) for k in jax.random.split(key, num)], np.float64)
    f = -((x - 2) ** 2)
    weight = f - (f.sum() - f) / (num - 1)
    expected = np.mean(weight * (x - 0.3) / np.exp(-0.4))
    np.testing.assert_allclose(gradient["loc"], expected, rtol=1e-4)


def test_follows_a_gaussian_elbo():
    gradient_fn = score.score_function_gradient(sample, log_prob, elbo_integrand, num_samples=64)
    params = ascend(gradient_fn, PARAMS, num_steps=600)
    np.testing.assert_allclose(params["loc"], 1.5, atol=0.05)
    np.testing.assert_allclose(jnp.exp(params["log_scale"]), 0.5, atol=0.05)


def test_follows_a_black_box_quadratic():
    """The objective is opaque: it passes through a host callback that JAX cannot differentiate."""

    def black_box(params, x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        opaque = lambda y: np.asarray(-((y - 2) ** 2), y.dtype)
        return jax.pure_callback(opaque, shape, x, vmap_method="expand_dims")

    fixed = lambda params: {"loc": params, "log_scale": jnp.log(0.1)}
    gradient_fn = score.score_function_gradient(
        sample=lambda key, params: sample(key, fixed(params)),
        log_prob=lambda params, x: log_prob(fixed(params), x),
        objective=black_box,
        num_samples=32,
    )
    np.testing.assert_allclose(ascend(gradient_fn, jnp.float32(0), num_steps=300), 2.0, atol=0.05)


def ascend(gradient_fn, params, num_steps):
    key, optimizer = jax.random.key(0), optax.adam(2e-2)
    state = train.init(key, params, optimizer)
    state, _ = jax.jit(
        lambda key, state: train.train(key, state, gradient_fn, optimizer, num_steps=num_steps)
    )(key, state)
    return state.params


def test_surrogate_sums_over_time_and_means_over_rows():
    log_prob = jnp.arange(6.0).reshape(2, 3)
    weight = jnp.ones((2, 3))
    assert score.surrogate(log_prob, weight) == 15 / 2


def test_surrogate_holds_weights_constant():
    gradient = jax.grad(lambda x: score.surrogate(x[None], 3 * x[None]))(jnp.float32(2.0))
    assert gradient == 6.0


def test_magic_box_has_every_derivative_where_the_surrogate_has_one():
    """E[f] = p for a coin with f = x: dp/dlogit = p(1-p), d2p = p(1-p)(1-2p). Pitfall 19."""
    logit = 0.4
    p = 1 / (1 + np.exp(-logit))

    def expectation(logit, estimate):
        coin = distributions.bernoulli(logit)
        probs = jnp.array([1 - p, p])
        return sum(probs[x] * estimate(coin.log_prob(x), float(x)) for x in (0, 1))

    dice = lambda logp, f: score.magic_box(logp) * f
    plain = lambda logp, f: score.surrogate(logp[None], jnp.array([f]))
    second = lambda estimate: jax.grad(jax.grad(expectation))(logit, estimate)
    np.testing.assert_allclose(expectation(logit, dice), p, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(expectation)(logit, dice), p * (1 - p), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(expectation)(logit, plain), p * (1 - p), rtol=1e-5)
    exact = p * (1 - p) * (1 - 2 * p)
    np.testing.assert_allclose(second(dice), exact, rtol=1e-4)
    assert abs(second(plain) - exact) > 0.05


def test_a_standardised_gradient_is_the_same_at_any_scale_of_the_objective():
    def gradient(scale):
        objective = lambda params, x: jax.lax.stop_gradient(scale * quadratic(params, x))
        gradient_fn = score.score_function_gradient(
            sample, log_prob, objective, num_samples=4, baseline="standardise"
        )
        return gradient_fn(jax.random.key(1), PARAMS)[0]

    assert gradient(1.0) == gradient(2.0**30) and abs(gradient(1.0)["loc"]) > 0.1


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", lambda x: jnp.full_like(x, 0.5)])
@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_an_objective_may_be_an_event_or_a_count(dtype, baseline):
    def gradient(dtype):
        objective = lambda params, x: (x > 0).astype(dtype)
        gradient_fn = score.score_function_gradient(
            sample, log_prob, objective, num_samples=8, baseline=baseline
        )
        return gradient_fn(jax.random.key(1), PARAMS)

    jax.tree.map(np.testing.assert_array_equal, gradient(dtype), gradient(jnp.float32))
    assert abs(gradient(dtype)[0]["loc"]) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"num_samples": 1e3}, r"num_samples=1000.0 must be a whole number \(an int\) >= 1"),
        ({"num_samples": 4, "baseline": "leave_on_out"}, "did you mean 'leave_one_out'"),
        ({"num_samples": 4, "baseline": 0.5}, "baseline=0.5"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        score.score_function_gradient(sample, log_prob, quadratic, **arguments)


@pytest.mark.parametrize("vector", ["objective", "log_prob", "both"])
def test_what_a_sample_gives_must_be_a_number(vector):
    """Means and sums over another axis would not fit each other: the gradient would be wrong."""
    law = lambda params: distributions.normal(params, jnp.ones(3))
    total = {
        "log_prob": lambda params, x: law(params).log_prob(x).sum(),
        "objective": lambda params, x: jnp.sum(2 * params - x**2),
    }
    each = {
        "log_prob": lambda params, x: law(params).log_prob(x),
        "objective": lambda params, x: 2 * params - x**2,
    }
    chosen = each if vector == "both" else total | {vector: each[vector]}
    make = lambda functions: score.score_function_gradient(
        lambda key, params: law(params).sample(key), **functions, num_samples=4
    )
    make(total)(jax.random.key(0), jnp.zeros(3))
    name = "objective" if vector == "both" else vector
    with pytest.raises(ValueError, match=rf"{name} of a sample has shape \(3,\).*independent"):
        make(chosen)(jax.random.key(0), jnp.zeros(3))


def test_a_surrogate_of_two_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and weights \(4,\).*independent"):
        score.surrogate(jnp.zeros((4, 2)), jnp.zeros(4))
