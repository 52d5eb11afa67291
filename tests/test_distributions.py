"""Distributions against scipy, against their own samples, and at the edges of float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.integrate import quad

from pgjax import distributions

# name: (factory, parameters, other parameters that a test with power tells apart)
CASES = {
    "categorical": (distributions.categorical, ([0.3, -1.2, 1.0],), ([0.3, -1.2, 1.2],)),
    "bernoulli": (distributions.bernoulli, (0.7,), (0.5,)),
    "normal": (distributions.normal, (0.5, 1.5), (0.6, 1.4)),
    "tanh_normal": (distributions.tanh_normal, (0.4, 1.2), (0.3, 1.3)),
    "beta": (distributions.beta, (1.5, 2.5), (1.5, 2.3)),
}
FINITE = ["categorical", "bernoulli"]
CONTINUOUS = ["normal", "tanh_normal", "beta"]
every = pytest.mark.parametrize("name", CASES)

NUM_SAMPLES = 20_000
FALSE_ALARM = 1e-4  # of each statistical test, had its key been drawn afresh
MAX_Z = scipy.stats.norm.isf(FALSE_ALARM / 2 / 3)  # Bonferroni over at most three parameters


def make(name, which=1):
    factory, parameters = CASES[name][0], CASES[name][which]
    return factory(*(jnp.asarray(x) for x in parameters))


# Distributions are pytrees, so each of these is compiled once per class and shape.
log_prob = jax.jit(lambda distribution, x: distribution.log_prob(x))
entropy = jax.jit(lambda distribution: distribution.entropy())
mode = jax.jit(lambda distribution: distribution.mode())
each_log_prob = jax.jit(jax.vmap(lambda distribution, x: distribution.log_prob(x), (None, 0)))
each_score = jax.jit(jax.vmap(jax.grad(lambda law, x: law.log_prob(x)), (None, 0)))
each_sample = jax.jit(jax.vmap(lambda distribution, key: distribution.sample(key), (None, 0)))


def draw(distribution):
    return each_sample(distribution, jax.random.split(jax.random.key(0), NUM_SAMPLES))


def reference(name):
    """The scipy law of what is sampled."""
    parameters = CASES[name][1]
    if name == "beta":
        return scipy.stats.beta(*parameters)
    return scipy.stats.norm(*parameters)


def reference_probs(name):
    (logits,) = CASES[name][1]
    logits = [0.0, logits] if name == "bernoulli" else logits
    return np.exp(logits) / np.sum(np.exp(logits))


def log_density(name, x):
    """The float64 log-density on the support: the naive formula, away from its weak spots."""
    if name != "tanh_normal":
        return reference(name).logpdf(x)
    return reference(name).logpdf(np.arctanh(x)) - np.log(1 - x**2)


# Against scipy.


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@every
def test_log_prob(name, x64):
    with jax.enable_x64(x64):
        if name in FINITE:
            expected = np.log(reference_probs(name))
            xs = np.arange(expected.size)
        else:
            xs = np.linspace(0.05, 0.95, 7)
            expected = log_density(name, np.tanh(xs) if name == "tanh_normal" else xs)
        result = each_log_prob(make(name), xs)
        assert result.dtype == (jnp.float64 if x64 else jnp.float32)
        tolerance = 1e-12 if x64 else 2e-6
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def test_probs():
    np.testing.assert_allclose(make("categorical").probs, reference_probs("categorical"), rtol=1e-6)
    np.testing.assert_allclose(make("bernoulli").probs, reference_probs("bernoulli")[1], rtol=1e-6)


@every
def test_probabilities_sum_to_one(name):
    with jax.enable_x64(True):
        distribution = make(name)
        if name in FINITE:
            xs = np.arange(reference_probs(name).size)
            total = np.sum(np.exp(each_log_prob(distribution, xs)))
        else:
            unsquash = np.arctanh if name == "tanh_normal" else lambda x: x
            density = jax.jit(lambda x: jnp.exp(distribution.log_prob(x)))
            total, _ = quad(lambda x: float(density(unsquash(x))), *distribution.support)
        np.testing.assert_allclose(total, 1.0, rtol=1e-7)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "normal", "beta"])
def test_entropy(name):
    with jax.enable_x64(True):
        expected = (
            scipy.stats.entropy(reference_probs(name))
            if name in FINITE
            else reference(name).entropy()
        )
        np.testing.assert_allclose(make(name).entropy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scale, tolerance", [(0.05, 1e-10), (0.5, 1e-10), (2, 1e-10), (5, 1e-6)])
@pytest.mark.parametrize("loc", [0.0, -1.0, 4.0])
def test_entropy_of_tanh_normal(loc, scale, tolerance):
    """The integral of -p log p, in terms of u where nothing is singular."""
    law = scipy.stats.norm(loc, scale)
    log_slope = lambda u: -2 * np.log(np.cosh(u))
    integrand = lambda u: -law.pdf(u) * (law.logpdf(u) - log_slope(u))
    expected, _ = quad(
        integrand, loc - 12 * scale, loc + 12 * scale, points=[0.0, loc], epsabs=1e-12, limit=400
    )
    with jax.enable_x64(True):
        double = entropy(distributions.tanh_normal(loc, scale))
        np.testing.assert_allclose(double, expected, atol=tolerance)
    single = entropy(distributions.tanh_normal(loc, scale))
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)


@every
def test_entropy_gradient_matches_differences(name):
    factory, parameters, _ = CASES[name]
    with jax.enable_x64(True):
        parameters = tuple(jnp.asarray(x) for x in parameters)
        f = jax.jit(lambda *parameters: factory(*parameters).entropy())
        check_grads(f, parameters, order=1, rtol=1e-6, atol=1e-7)


def test_mode_of_finite_and_normal():
    assert make("categorical").mode() == 2
    assert make("bernoulli").mode() == 1
    assert distributions.bernoulli(-0.1).mode() == 0
    assert make("normal").mode() == 0.5


def test_mode_of_tanh_normal_is_the_median():
    distribution = make("tanh_normal")
    below = jnp.mean(distribution.squash(draw(distribution)) < jnp.tanh(distribution.mode()))
    assert abs(below - 0.5) < MAX_Z / 2 / math.sqrt(NUM_SAMPLES)


@pytest.mark.parametrize(
    "alpha, beta, expected",
    [
        (3.0, 2.0, 2 / 3),
        (2.0, 2.0, 0.5),
        (1.0, 2.0, 0.0),
        (2.0, 1.0, 1.0),
        (1.0, 1.0, 0.5),
        (0.5, 2.0, 0.0),
        (2.0, 0.5, 1.0),
        (1.0, 0.5, 1.0),
        (0.5, 1.0, 0.0),
        (0.3, 0.5, 0.0),
        (0.5, 0.3, 1.0),
        (0.5, 0.5, 0.0),
    ],
)
def test_mode_of_beta(alpha, beta, expected):
    distribution = distributions.beta(alpha, beta)
    peak = mode(distribution)
    assert 0 < peak < 1
    np.testing.assert_allclose(peak, expected, atol=1e-6)
    elsewhere = each_log_prob(distribution, np.linspace(1e-3, 1 - 1e-3, 99))
    assert np.all(log_prob(distribution, peak) >= elsewhere - 1e-5)


# Against their own samples. Keys are fixed, and every test has a control that must fail.


def frequency_p_value(name, xs):
    """Of samples `xs` under the true parameters: chi-square or Kolmogorov-Smirnov."""
    if name not in FINITE:
        return scipy.stats.kstest(np.asarray(xs, float), reference(name).cdf).pvalue
    probs = reference_probs(name)
    counts = np.bincount(xs, minlength=probs.size)
    return scipy.stats.chisquare(counts, counts.sum() * probs).pvalue


@every
def test_samples_follow_the_law(name):
    xs = draw(make(name))
    assert xs.dtype == (jnp.int32 if name in FINITE else jnp.float32)
    assert frequency_p_value(name, xs) > FALSE_ALARM
    assert frequency_p_value(name, draw(make(name, which=2))) < FALSE_ALARM


def z_scores(xs):
    xs = np.asarray(xs, float).reshape(NUM_SAMPLES, -1)
    return np.abs(xs.mean(axis=0)) / (xs.std(axis=0, ddof=1) / math.sqrt(NUM_SAMPLES))


@every
def test_score_has_zero_mean(name):
    """E grad log p(x) = 0: the identity that makes baselines free."""

    def largest_z(xs):
        scores = each_score(make(name), xs)
        return np.max(np.concatenate([z_scores(leaf) for leaf in scores]))

    assert largest_z(draw(make(name))) < MAX_Z
    assert largest_z(draw(make(name, which=2))) > MAX_Z


@every
def test_entropy_is_the_mean_surprise(name):
    distribution = make(name)
    surprise = -each_log_prob(distribution, draw(distribution))
    assert z_scores(surprise - entropy(distribution)) < MAX_Z
    assert z_scores(surprise - entropy(distribution) - 0.05) > MAX_Z


def test_entropy_of_tanh_normal_is_not_that_of_the_normal():
    distribution = make("tanh_normal")
    surprise = -each_log_prob(distribution, draw(distribution))
    assert z_scores(surprise - entropy(distributions.Normal(*distribution))) > MAX_Z


# The contract.


@every
def test_offers_the_contract(name):
    """In a batch `[4, 3]`, alone and as components of independent events."""
    factory, parameters, _ = CASES[name]
    parameters = [np.broadcast_to(x, (4, 3, *np.shape(x))) for x in parameters]
    distribution = factory(*parameters)
    assert distribution.batch_shape == (4, 3)
    x = distribution.sample(jax.random.key(0))
    assert x.shape == mode(distribution).shape == distribution.squash(x).shape == (4, 3)
    assert x.dtype == mode(distribution).dtype
    log_probs, entropies = log_prob(distribution, x), entropy(distribution)
    assert log_probs.shape == entropies.shape == (4, 3)
    single = factory(*(p[1, 2] for p in parameters))
    np.testing.assert_allclose(log_probs[1, 2], log_prob(single, x[1, 2]), rtol=1e-5)

    event = distributions.independent(distribution)
    assert event.batch_shape == (4,)
    assert event.support == distribution.support
    np.testing.assert_array_equal(event.sample(jax.random.key(0)), x)
    np.testing.assert_array_equal(mode(event), mode(distribution))
    np.testing.assert_array_equal(event.squash(x), distribution.squash(x))
    np.testing.assert_allclose(log_prob(event, x), log_probs.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(entropy(event), entropies.sum(-1), rtol=1e-6)


@every
def test_is_a_pytree(name):
    """A policy returns one from vmap, scan and jit."""
    factory, parameters, _ = CASES[name]
    rows = [jnp.stack([jnp.asarray(x)] * 5) for x in parameters]
    expected = factory(*rows)
    scanned = jax.lax.scan(lambda carry, row: (carry, factory(*row)), None, rows)[1]
    mapped = jax.vmap(factory)(*rows)
    compiled = jax.jit(lambda distribution: distribution)(expected)
    xs = mode(expected)
    for result in (scanned, mapped, compiled):
        assert type(result) is type(expected)
        assert result.batch_shape == (5,)
        np.testing.assert_allclose(log_prob(result, xs), log_prob(expected, xs), rtol=1e-6)
    nested = jax.vmap(distributions.independent)(factory(*(x[None] for x in rows)))
    assert nested.batch_shape == (1,)


@every
def test_scalars_broadcast_and_dtypes_follow(name):
    factory, parameters, _ = CASES[name]
    first, *rest = parameters
    batch = factory(jnp.stack([jnp.asarray(first)] * 2), *rest)
    assert batch.batch_shape == (2,)
    assert entropy(batch).dtype == jnp.float32
    dtypes = {jnp.bfloat16: jnp.bfloat16, jnp.float32: jnp.float32, jnp.int32: jnp.float32}
    for dtype, expected in dtypes.items():
        distribution = factory(*(jnp.asarray(x).astype(dtype) for x in parameters))
        assert all(leaf.dtype == expected for leaf in distribution)
    with jax.enable_x64(True):
        distribution = factory(*(jnp.asarray(x) for x in parameters))
        assert all(leaf.dtype == jnp.float64 for leaf in distribution)
        assert entropy(distribution).dtype == jnp.float64


def test_independent_needs_a_batch_axis():
    with pytest.raises(ValueError, match="batch_shape"):
        distributions.independent(distributions.normal(0.0, 1.0))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_squashed_samples_lie_in_the_support(name):
    distribution = make(name)
    low, high = distribution.support
    assert isinstance(low, float) and isinstance(high, float)
    squashed = distribution.squash(draw(distribution))
    assert np.all((low <= squashed) & (squashed <= high))


@pytest.mark.parametrize("name", FINITE)
def test_indices_have_no_support(name):
    assert make(name).support is None


# The edges of float32.


@jax.jit
def values_and_gradients(distribution, x):
    return (
        jax.value_and_grad(lambda distribution: distribution.log_prob(x))(distribution),
        jax.value_and_grad(lambda distribution: distribution.entropy())(distribution),
    )


def all_finite(distribution, x):
    """Whether the log-probability of x, the entropy and all their gradients are finite."""
    return all(
        np.all(np.isfinite(y)) for y in jax.tree.leaves(values_and_gradients(distribution, x))
    )


@pytest.mark.parametrize("low", [-jnp.inf, -1e30, -200.0])
def test_categorical_survives_impossible_indices(low):
    logits = jnp.array([0.0, low, 1.0])
    possible = jnp.array([0.0, 1.0])
    distribution = distributions.categorical(logits)
    assert all_finite(distribution, jnp.int32(2))
    assert distribution.log_prob(jnp.int32(1)) == low - jax.nn.logsumexp(possible)
    assert np.all(draw(distribution) != 1)

    value, gradient = values_and_gradients(distribution, jnp.int32(2))[1]
    expected = values_and_gradients(distributions.categorical(possible), jnp.int32(1))[1]
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient.logits[::2], expected[1].logits, rtol=1e-5)
    assert gradient.logits[1] == 0


@pytest.mark.parametrize("logit", [1e30, -1e30, 100.0, -100.0, 0.0])
def test_bernoulli_survives_large_logits(logit):
    distribution = distributions.bernoulli(logit)
    assert all_finite(distribution, jnp.int32(0)) and all_finite(distribution, jnp.int32(1))
    expected = -abs(logit) if logit else -math.log(2)
    np.testing.assert_allclose(distribution.log_prob(jnp.int32(logit < 0)), expected, rtol=1e-6)


@pytest.mark.parametrize("u, expected", [(9.5, -17.613706), (12.0, -22.613706), (50.0, -98.613706)])
def test_tanh_log_determinant_is_exact_in_the_tails(u, expected):
    normal, tanh_normal = distributions.normal(0.0, 5.0), distributions.tanh_normal(0.0, 5.0)
    for x in (u, -u):
        log_slope = log_prob(normal, x) - log_prob(tanh_normal, x)
        np.testing.assert_allclose(log_slope, expected, rtol=1e-6)
        assert all_finite(tanh_normal, x)
    with np.errstate(divide="ignore"):
        naive = np.log(1 - np.tanh(np.float32(u)) ** 2)
    assert not np.isclose(naive, expected, rtol=1e-2)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e10])
@pytest.mark.parametrize("loc", [0.0, 100.0, -1e10])
def test_normals_survive_extreme_parameters(loc, scale):
    for factory in (distributions.normal, distributions.tanh_normal):
        distribution = factory(loc, scale)
        assert np.all(np.isfinite(each_log_prob(distribution, draw(distribution))))
        assert all_finite(distribution, distribution.sample(jax.random.key(0)))


@pytest.mark.parametrize("alpha, beta", [(1e-3, 1e-3), (1e-2, 1.0), (1.0, 1.0), (1e3, 1.0)])
def test_beta_samples_stay_inside(alpha, beta):
    for distribution in (distributions.beta(alpha, beta), distributions.beta(beta, alpha)):
        xs = draw(distribution)
        assert np.all((xs > 0) & (xs < 1))
        assert all_finite(distribution, jnp.min(xs)) and all_finite(distribution, jnp.max(xs))


# Properties of any parameters.

some = settings(max_examples=30, deadline=None, derandomize=True)
reals = st.floats(-5, 5, width=32)
positives = st.floats(0.125, 8, width=32)
logits = st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3)


@some
@given(logits=logits, shift=reals)
def test_categorical_ignores_a_shift_of_its_logits(logits, shift):
    distribution = distributions.categorical(jnp.asarray(logits))
    shifted = distributions.categorical(jnp.asarray(logits) + shift)
    np.testing.assert_allclose(np.sum(distribution.probs), 1.0, rtol=1e-5)
    np.testing.assert_allclose(distribution.probs, shifted.probs, rtol=1e-4, atol=1e-7)
    assert -1e-6 <= entropy(distribution) <= math.log(3) + 1e-6
    assert distribution.probs[mode(distribution)] == np.max(distribution.probs)


@some
@given(logit=st.floats(-20, 20, width=32))
def test_bernoulli_is_a_categorical_of_two(logit):
    one, two = distributions.bernoulli(logit), distributions.categorical(jnp.array([0.0, logit]))
    for x in (jnp.int32(0), jnp.int32(1)):
        np.testing.assert_allclose(log_prob(one, x), log_prob(two, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy(one), entropy(two), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one.probs, two.probs[1], rtol=1e-5)


@some
@given(loc=reals, scale=positives, u=reals)
def test_normals_are_symmetric_under_reflection(loc, scale, u):
    for factory in (distributions.normal, distributions.tanh_normal):
        law, mirrored = factory(loc, scale), factory(-loc, scale)
        np.testing.assert_allclose(log_prob(law, u), log_prob(mirrored, -u), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(entropy(law), entropy(mirrored), rtol=1e-4, atol=1e-5)


@some
@given(loc=reals, scale=positives)
def test_squashing_can_only_lose_entropy(loc, scale):
    """tanh is a contraction; and nothing on (-1, 1) has more entropy than the uniform law."""
    normal, squashed = distributions.normal(loc, scale), distributions.tanh_normal(loc, scale)
    assert entropy(squashed) <= min(entropy(normal), math.log(2)) + 1e-5


@some
@given(alpha=positives, beta=positives, x=st.floats(0.0625, 0.9375, width=32))
def test_beta_is_symmetric_under_reflection(alpha, beta, x):
    law, mirrored = distributions.beta(alpha, beta), distributions.beta(beta, alpha)
    np.testing.assert_allclose(log_prob(law, x), log_prob(mirrored, 1 - x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(entropy(law), entropy(mirrored), rtol=1e-3, atol=1e-4)
    assert entropy(law) <= 1e-5


def test_categorical_scores_more_values_than_it_has_batch():
    logits = jnp.array([0.1, -0.4, 1.0])
    scores = distributions.categorical(logits).log_prob(jnp.arange(3))
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits), rtol=1e-6)
    batch = distributions.categorical(jnp.stack([logits, -logits])).log_prob(1)
    expected = [jax.nn.log_softmax(logits)[1], jax.nn.log_softmax(-logits)[1]]
    np.testing.assert_allclose(batch, expected, rtol=1e-6)


@pytest.mark.parametrize("x", [-1, 3])
def test_an_index_that_there_is_not_scores_nan(x):
    log_prob = distributions.categorical(jnp.array([0.3, -1.2, 1.0])).log_prob
    assert jnp.isnan(log_prob(x))
    np.testing.assert_array_equal(jnp.isnan(log_prob(jnp.array([0, x, 2]))), [False, True, False])


@pytest.mark.parametrize("x", [-1, 2, 0.5])
def test_a_coin_that_shows_no_side_scores_nan(x):
    log_prob = lambda logits: distributions.bernoulli(logits).log_prob(jnp.array([0, x, 1]))
    found = log_prob(jnp.array([0.3, 0.3, 1.0]))
    np.testing.assert_array_equal(jnp.isnan(found), [False, True, False])
    slope = jax.grad(lambda logits: jnp.nansum(log_prob(logits)))(jnp.zeros(3))
    np.testing.assert_allclose(slope, [-0.5, 0, 0.5])
