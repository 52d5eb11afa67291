"""The audit: against numpy on materialised gradients, against known laws, and its calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pgjax import audit, environments, estimators, exact, gradients, policies
from pgjax.audit import bias, replicates
from pgjax.audit.bias import UNDECIDED
from pgjax.audit.moments import moments, squared_length
from pgjax.environments.short_corridor import short_corridor
from pgjax.estimators import Hyper
from pgjax.score import StatefulGradientFn

KEY = jax.random.key(0)
MIXING = np.random.default_rng(0).normal(size=(6, 6)) / np.sqrt(6)
COVARIANCE = MIXING @ MIXING.T
MEAN = np.linspace(-0.5, 1.0, 6)
PARAMS = {"a": np.zeros(2), "b": np.zeros((2, 2))}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def shaped(flat):
    return {"a": flat[:2], "b": flat[2:].reshape(2, 2)}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def gaussian(key, params):
    """Mean and covariance known; three to six environment steps."""
    gradient = MEAN + MIXING @ jax.random.normal(key, (6,))
    return shaped(gradient), {"env_steps": jax.random.randint(key, (), 3, 7)}


def materialised(gradient_fn, num_replicates, params=PARAMS):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(num_replicates))
    gradient, metrics = jax.jit(jax.vmap(gradient_fn, (0, None)))(keys, params)
    rows = np.concatenate(
        [np.reshape(leaf, (num_replicates, -1)) for leaf in jax.tree.leaves(gradient)], axis=1
    )
    return rows, metrics


def values(result):
    """All estimates of an audit but those of time."""
    found = {
        name: value
        for name, value in result._asdict().items()
        if isinstance(value, audit.Estimate) and "seconds" not in name
    }
    return np.array([found[name] for name in sorted(found)])


def jackknife(statistic, rows):
    """Delete-one-block influences, by the definition."""
    size = len(rows)
    block = np.arange(size) * min(size, 64) // size
    left = np.array([statistic(rows[block != b]) for b in np.unique(block)])
    return np.sqrt(1 - 1 / len(left)) * (left - left.mean(0))


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [(333, 50), (2, 5), pytest.param(67, 1, marks=pytest.mark.slow)],
)
def test_the_audit_is_numpy_on_materialised_gradients(size, chunk_size):
    result = audit.audit(
        KEY, PARAMS, gaussian, reference=shaped(MEAN), num_replicates=size, chunk_size=chunk_size
    )
    rows, metrics = materialised(gaussian, size)
    mean, trace = rows.mean(0), np.trace(np.cov(rows.T))
    deviations = np.sum((rows - mean) ** 2, axis=1)
    same = lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    same(flat(result.mean), mean)
    same(flat(result.standard_error), rows.std(0, ddof=1) / np.sqrt(size))
    same(flat(result.bias), mean - MEAN)
    same(float(result.trace), trace)
    same(float(result.squared_norm), mean @ mean - trace / size)
    same(float(result.squared_bias), np.sum((mean - MEAN) ** 2) - trace / size)
    same(float(result.mse), trace + float(result.squared_bias))
    same(float(result.snr), float(result.squared_norm) / trace)
    same(float(result.env_steps), np.mean(metrics["env_steps"]))
    same(float(result.work_env_steps), trace * np.mean(metrics["env_steps"]))
    same(float(result.cv2), deviations.var() / deviations.mean() ** 2)
    same(float(result.effective_sample_size), size / (1 + float(result.cv2)))
    if size > 2:
        found = moments(result.blocks)
        same(found.influences, jackknife(lambda x: x.mean(0), rows))
        same(found.log_trace, jackknife(lambda x: np.log(np.trace(np.cov(x.T))), rows))


@pytest.mark.slow
def test_chunks_change_nothing():
    audits = [
        audit.audit(
            KEY, PARAMS, gaussian, reference=shaped(MEAN), num_replicates=301, chunk_size=size
        )
        for size in (64, 1000)
    ]
    np.testing.assert_allclose(values(audits[0]), values(audits[1]), rtol=1e-9)


def test_two_replicates_leave_intervals_without_bounds():
    result = audit.summarise(np.zeros(6), summed(MEAN + np.eye(6)[:2]))
    assert result.trace.low == 0 and result.trace.high == np.inf


def test_a_large_mean_does_not_cancel_in_float32():
    def far(key, params):
        return 1e4 + 0.1 * jax.random.normal(key, (3,), jnp.float32), {}

    with jax.enable_x64(False):
        result = audit.audit(KEY, np.zeros(3), far, num_replicates=4000, chunk_size=500)
        rows, _ = materialised(far, 4000, np.zeros(3))
    assert rows.dtype == np.float32
    rows = rows.astype(np.float64)
    np.testing.assert_allclose(float(result.trace), rows.var(0, ddof=1).sum(), rtol=1e-4)
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-15, 1e15, 1e19, 1e30])
def test_any_unit_will_do_in_float32(scale):
    def scaled(key, params):
        return scale * jax.random.normal(key, (3,), jnp.float32), {}

    with jax.enable_x64(False):
        result = audit.audit(
            KEY, np.zeros(3), scaled, reference=np.zeros(3), num_replicates=500, chunk_size=100
        )
        off = audit.audit(
            KEY,
            np.zeros(3),
            scaled,
            reference=np.full(3, scale),
            num_replicates=500,
            chunk_size=100,
        )
    np.testing.assert_allclose(float(result.trace) / scale**2, 3, rtol=0.2)
    np.testing.assert_allclose(float(result.cv2), 2 / 3, rtol=0.4)
    assert result.bias_test.p_value > 1e-3 > 1e-9 > off.bias_test.p_value


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e10])
def test_gradients_that_are_mostly_zero_need_no_unit_of_their_own(scale):
    """None of the first replicates says how large the others are."""

    def rare(key, params):
        some = jax.random.uniform(key) < 5e-3
        return scale * jnp.where(some, 1 + jax.random.normal(key, (2,), jnp.float32), 0), {}

    with jax.enable_x64(False):
        rows = jax.vmap(lambda i: rare(jax.random.fold_in(KEY, i), None)[0])(jnp.arange(4000))
        assert not np.any(rows[: replicates.pilots(4000)])
        result = audit.audit(
            KEY, np.zeros(2), rare, reference=np.zeros(2), num_replicates=4000, chunk_size=1000
        )
    rows = np.asarray(rows, np.float64) / scale
    squares = np.sum((rows - rows.mean(0)) ** 2, axis=1)
    np.testing.assert_allclose(float(result.trace) / scale**2, squares.sum() / 3999, rtol=1e-5)
    np.testing.assert_allclose(float(result.cv2), squares.var() / squares.mean() ** 2, rtol=1e-4)
    assert result.bias_test.p_value < 1e-3


def test_a_variance_that_overflows_is_not_judged():
    def seldom_huge(key, params):
        noise, chance = jax.random.normal(key, (2,), jnp.float32), jax.random.uniform(key)
        return jnp.where(chance < 5e-3, 1e25, 1.0) * noise, {}

    with jax.enable_x64(False):
        result = audit.audit(
            KEY,
            np.zeros(2),
            seldom_huge,
            reference=np.zeros(2),
            num_replicates=4000,
            chunk_size=1000,
        )
    assert np.all(np.isfinite(result.mean)) and not np.isfinite(float(result.trace))
    assert np.isnan(result.bias_test.p_value)
    assert result.bias_test.name == "none: no finite variance"


def test_a_large_part_of_a_gradient_hides_no_bias_of_a_small_one():
    def parts(key, params):
        policy, value = jax.random.normal(key, (2,), jnp.float32)
        return {"policy": 0.5 + policy, "value": 1e5 * value}, {}

    with jax.enable_x64(False):
        measure = audit.auditor(parts, num_replicates=2000, chunk_size=1000)
        right, wrong = (measure(KEY, None, {"policy": x, "value": 0.0}) for x in (0.5, 0.0))
    assert right.bias_test.p_value > 1e-3
    assert wrong.bias_test.p_value < 1e-9


@pytest.mark.slow
def test_many_parameters_keep_only_the_diagonal():
    size = replicates.WHOLE_COVARIANCE + 20

    def many(key, params):
        return jnp.exp(jax.random.normal(key, ())) * jax.random.normal(key, (size,)), {}

    params = np.zeros(size)
    result = audit.audit(KEY, params, many, num_replicates=2000, chunk_size=500, reference=params)
    rows, _ = materialised(many, 2000, params)
    deviations = np.sum((rows - rows.mean(0)) ** 2, axis=1)
    assert result.blocks.scatter.shape == (size,)
    np.testing.assert_allclose(float(result.trace), rows.var(0, ddof=1).sum(), rtol=1e-10)
    np.testing.assert_allclose(
        result.standard_error, rows.std(0, ddof=1) / np.sqrt(2000), rtol=1e-10
    )
    # Only the spread along the pilot's own error is estimated.
    np.testing.assert_allclose(
        float(result.cv2), deviations.var() / deviations.mean() ** 2, rtol=1e-2
    )
    assert result.bias_test is not None and result.bias_test.name == "Holm"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_replicates():
    chunk, zero = replicates.chunks(gaussian, 32), jnp.int32(0)

    def held(num_replicates):
        state = replicates.blank(num_replicates, 6)
        program = replicates.adding(chunk, num_replicates)
        lowered = program.lower(state, KEY, PARAMS, zero, zero, replicates.nowhere(6))
        memory = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.argument_size_in_bytes

    assert held(10**4) == held(10**8)  # blocks of more than a chunk


def test_an_auditor_compiles_once_and_may_look_at_a_part_of_the_gradient():
    traced = []

    def policy_part(key, params):
        traced.append(None)
        gradient, metrics = gaussian(key, params)
        return jax.tree.map(jnp.add, gradient["b"], params["b"]), metrics

    measure = audit.auditor(policy_part, num_replicates=100, chunk_size=50)
    zero = measure(KEY, PARAMS)
    times = len(traced)
    one = measure(KEY, jax.tree.map(lambda x: x + 1, PARAMS), zero.mean)
    np.testing.assert_allclose(one.bias, np.ones((2, 2)))
    # Its shape is asked for again, the program is not traced again.
    assert len(traced) - times <= 3


def test_flops_count_every_replicate_once():
    matrix = jnp.ones((32, 32))

    def products(key, params):
        # What does not depend on the key is computed once a chunk.
        start = jax.random.uniform(key) * matrix
        return jnp.sum(jax.lax.fori_loop(0, 5, lambda _, x: x @ matrix, start)) + params, {}

    result = audit.audit(
        KEY, np.zeros(1), products, num_replicates=6, chunk_size=3, count_flops=True
    )
    assert 5 * 2 * 32**3 <= result.flops < 5.2 * 2 * 32**3


def test_gradients_that_are_not_finite_are_counted_and_left_out():
    def sometimes(key, params):
        gradient, metrics = gaussian(key, params)
        bad = jax.random.uniform(key) < 0.1
        return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), gradient), metrics

    with pytest.warns(UserWarning, match="gradients were not finite"):
        result = audit.audit(KEY, PARAMS, sometimes, num_replicates=300, chunk_size=100)
    rows, _ = materialised(sometimes, 300)
    finite = np.all(np.isfinite(rows), axis=1)
    assert result.nonfinite == 300 - finite.sum() > 10
    np.testing.assert_allclose(float(result.trace), rows[finite].var(0, ddof=1).sum(), rtol=1e-10)
    np.testing.assert_allclose(flat(result.mean), rows[finite].mean(0), rtol=1e-10)


def test_an_audit_of_nothing_finite_says_so():
    broken = lambda key, params: (np.nan * params, {})
    with pytest.warns(UserWarning, match="10 of 10 gradients were not finite"):
        result = audit.audit(
            KEY, np.ones(2), broken, reference=np.ones(2), num_replicates=10, chunk_size=10
        )
    assert result.nonfinite == 10 and np.all(np.isnan(result.mean))
    assert np.isnan(result.trace.value) and np.isnan(result.bias_test.p_value)


BAD = {
    "at least two replicates": {"num_replicates": 1},
    "num_replicates=0": {"num_replicates": 0},
    "chunk_size=0": {"chunk_size": 0},
    "level=1": {"level": 1},
    "level='95'": {"level": "95"},
    r"reference has shapes {'a': \(2,\), 'b': \(4,\)}": {
        "reference": {"a": np.zeros(2), "b": np.zeros(4)}
    },
    "reference is not finite": {
        "reference": jax.tree.map(lambda x: np.full(np.shape(x), np.nan), PARAMS)
    },
}


@pytest.mark.parametrize("message", BAD)
def test_what_no_audit_can_be_is_refused(message):
    choices = {"num_replicates": 10, "chunk_size": 5} | BAD[message]
    with pytest.raises(ValueError, match=message):
        audit.audit(KEY, PARAMS, gaussian, **choices)


def test_a_level_that_is_none_is_refused_everywhere():
    with pytest.raises(ValueError, match="level=95"):
        audit.summarise(np.zeros(6), summed(MEAN + np.eye(6)), level=95)
    env = short_corridor()
    with pytest.raises(ValueError, match="level=95"):
        audit.variance_decomposition(
            KEY,
            jnp.zeros((1, 2)),
            env,
            env.default_params,
            policies.tabular(1, 2),
            Hyper(),
            num_episodes=10,
            horizon=5,
            level=95,
        )


def corridor(baseline, num_episodes, horizon=60):
    """The corridor's estimator, its exact moments and what it is a gradient of."""
    env = short_corridor()
    policy = policies.tabular(1, 2)
    params = jnp.array([[0.1, 0.3]])
    estimator = estimators.estimator("reward_to_go", baseline)
    hyper = Hyper(discount=0.9)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        policy,
        estimator,
        hyper,
        num_episodes=num_episodes,
        horizon=horizon,
    )
    with_truth = jax.jit(
        lambda params: exact.exact_moments(
            env.mdp, policy, params, estimator, hyper, horizon=horizon, num_episodes=num_episodes
        )
    )
    truth = with_truth(params)
    reference = jax.tree.map(jnp.subtract, truth.mean, truth.bias)
    return params, gradient_fn, truth, reference


@pytest.mark.slow
def test_a_batch_is_one_replicate_of_a_coupled_estimator():
    params, gradient_fn, truth, reference = corridor("leave_one_out", num_episodes=4)
    result = audit.audit(
        KEY, params, gradient_fn, reference=reference, num_replicates=3000, chunk_size=1000
    )
    score = np.log(float(result.trace) / float(truth.trace))
    score /= np.linalg.norm(moments(result.blocks).log_trace)
    assert abs(score) < 4
    assert result.env_steps.low > 4 * 3
    assert result.bias_test.name == "Hotelling" and result.bias_test.p_value > 1e-3
    # Negative control: one episode is not what the replicate is.
    assert not result.trace.low < 4 * float(truth.trace) < result.trace.high


def test_a_biased_estimator_is_found_out():
    params, gradient_fn, truth, reference = corridor("batch_mean", num_episodes=2)
    result = audit.audit(
        KEY, params, gradient_fn, reference=reference, num_replicates=3000, chunk_size=1000
    )
    assert result.bias_test.p_value < 1e-3
    exact_bias = np.sum(flat(truth.bias) ** 2)
    assert result.squared_bias.low < exact_bias < result.squared_bias.high
    assert result.squared_bias.low > 0
    score = np.log(float(result.trace) / float(truth.trace))
    assert abs(score) < 4 * np.linalg.norm(moments(result.blocks).log_trace)


def test_an_exact_gradient_has_neither_variance_nor_bias():
    reference = params = shaped(MEAN)
    oracle = lambda key, params: (params, {})
    measure = audit.auditor(oracle, num_replicates=20, chunk_size=20)
    result = measure(KEY, params, reference)
    assert float(result.trace) < 1e-25 and result.bias_test.p_value == 1
    off = jax.tree.map(lambda x: 1.001 * x, reference)
    tested = measure(KEY, params, off).bias_test
    assert np.isnan(tested.p_value) and tested.name == UNDECIDED


def test_bias_outside_the_range_of_the_covariance_is_named_not_judged():
    def flat_noise(key, params):
        return jax.random.normal(key, ()) * jnp.array([1.0, -1.0, 0.0]), {}

    measure = audit.auditor(flat_noise, num_replicates=500, chunk_size=500)
    tested = lambda truth: measure(KEY, np.zeros(3), np.array(truth)).bias_test
    right = tested([0.0, 0.0, 0.0])
    assert right.p_value > 1e-3 and right.name == "Hotelling"
    assert tested([0.5, -0.5, 0.0]).p_value < 1e-6
    for truth in ([1e-4, 1e-4, 0.0], [0.0, 0.0, 1e-4]):
        named = tested(truth)
        assert named.p_value > 1e-3 and named.name == f"Hotelling, {UNDECIDED}"
    assert tested([0.5, -0.5, 1e-4]).p_value < 1e-6


def test_holm_names_what_it_cannot_judge():
    deviation, error = np.array([0.01, 1e-3, 0.0]), np.array([0.01, 0.0, 0.0])
    holm = lambda deviation, error: bias.holm(deviation, error, degrees=50, rounding=1e-9)
    judged = holm(deviation, error)
    assert 0.9 < judged.p_value <= 1 and judged.name == f"Holm, {UNDECIDED}"
    np.testing.assert_allclose(holm(20 * deviation, error).p_value, 6 * stats.t.sf(20, 50))
    assert np.isnan(holm(deviation, 0 * error).p_value)
    assert holm(0 * deviation, 0 * error).p_value == 1


def test_a_state_that_is_seldom_visited_does_not_look_biased():
    # Most audits see state 1 never or once: its logits are off by what a visit would have added.
    transition = np.zeros((3, 3, 3))
    transition[0, :, 1], transition[0, :, 2], transition[1:, :, 2] = 5e-3, 0.995, 1
    reward = np.zeros((3, 3, 3))
    reward[0, 1], reward[1, 1, 2], reward[1, 2, 2] = 1, 1, -1
    mdp = environments.MDP(transition, reward, np.eye(3)[0], np.array([False, False, True]))
    env, policy, hyper = environments.tabular_mdp(mdp), policies.tabular(3, 3), Hyper(discount=1.0)
    params = jnp.zeros((3, 3))
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        policy,
        estimators.estimator("reward_to_go", "none"),
        hyper,
        num_episodes=1,
        horizon=2,
    )
    reference, _ = jax.jit(exact.exact_gradient(mdp, policy, hyper, horizon=2))(KEY, params)
    measure = audit.auditor(gradient_fn, num_replicates=256, chunk_size=256)
    tests = [measure(jax.random.key(k), params, reference).bias_test for k in range(20)]
    assert sum(UNDECIDED in test.name for test in tests) > 5
    assert all(test.p_value > 1e-4 for test in tests)
    wrong = reference + jnp.array([[0.4, -0.2, -0.2], [0, 0, 0], [0, 0, 0]])
    assert measure(KEY, params, wrong).bias_test.p_value < 1e-3


def test_a_reference_may_be_an_audit_and_carries_its_error():
    measure = audit.auditor(gaussian, num_replicates=400, chunk_size=400)
    long = measure(jax.random.key(1), PARAMS)
    result = measure(KEY, PARAMS, long)
    against = measure(KEY, PARAMS, long.mean)
    own = float(against.squared_bias) - float(result.squared_bias)
    np.testing.assert_allclose(own, float(long.trace) / 400, rtol=1e-10)
    width = lambda estimate: estimate.high - estimate.low
    assert width(result.squared_bias) > width(against.squared_bias)
    assert result.bias_test.p_value > against.bias_test.p_value
    with pytest.raises(ValueError, match="not independent"):
        measure(jax.random.key(1), PARAMS, long)


def test_averaging_divides_the_variance_and_leaves_the_bias():
    measure = audit.auditor(gaussian, num_replicates=400, chunk_size=400)
    result = measure(KEY, PARAMS, shaped(MEAN + 1))
    many = audit.mean_squared_error(result, 100)
    np.testing.assert_allclose(
        float(many), float(result.trace) / 100 + float(result.squared_bias), rtol=1e-12
    )
    assert audit.mean_squared_error(result) == result.mse
    assert many.low < np.trace(COVARIANCE) / 100 + 6 < many.high
    with pytest.raises(ValueError, match="num_averaged=0"):
        audit.mean_squared_error(result, 0)
    with pytest.raises(ValueError, match="reference"):
        audit.mean_squared_error(measure(KEY, PARAMS))


def test_common_random_numbers_sharpen_a_comparison():
    def louder(key, params):
        gradient, metrics = gaussian(key, params)
        gradient = jax.tree.map(lambda g, m: m + 1.1 * (g - m), gradient, shaped(MEAN))
        return gradient, metrics

    choices = {"num_replicates": 500, "chunk_size": 500, "reference": shaped(MEAN)}
    plain = audit.audit(KEY, PARAMS, gaussian, **choices)
    loud = audit.audit(KEY, PARAMS, louder, **choices)
    paired = audit.compare(loud, plain)
    np.testing.assert_allclose(paired.trace, 1.21, rtol=1e-10)
    np.testing.assert_allclose(paired.work_env_steps, 1.21, rtol=1e-10)
    assert paired.mse.low < 1.21 < paired.mse.high
    assert audit.compare(plain, plain).trace == (1, 1, 1)
    for what, value in (("key", (0, 2)), ("num_replicates", 499)):
        other = plain._replace(blocks=plain.blocks._replace(**{what: value}))
        with pytest.raises(ValueError, match=f"same {what}"):
            audit.compare(plain, other)


def test_audits_are_compared_against_one_reference_only():
    rows = np.random.default_rng(0).normal(size=(3, 100, 6))
    one, two = summed(rows[1], key=(1,)), summed(rows[2], key=(2,))
    against = lambda reference: audit.summarise(np.zeros(6), summed(rows[0]), reference)
    for same in (MEAN, one):
        assert audit.compare(against(same), against(same)).mse == (1, 1, 1)
    assert audit.compare(against(MEAN), against(None)).mse is None
    for first, second in ((MEAN, MEAN + 1), (one, two), (one, MEAN), (MEAN, one)):
        with pytest.raises(ValueError, match="same reference"):
            audit.compare(against(first), against(second))


def test_a_gradient_that_is_its_reference_can_be_compared():
    truth = np.arange(6.0)
    noise = np.random.default_rng(0).normal(size=(100, 6))
    plain = audit.summarise(truth, summed(truth[None] + noise, np.ones(100)), truth)
    still = audit.summarise(truth, summed(truth[None] + 0 * noise, np.zeros(100)), truth)
    assert still.mse == still.env_steps == (0, 0, 0)
    ratios = audit.compare(plain, still)
    assert ratios.mse[0] == ratios.trace[0] == ratios.work_env_steps[0] == np.inf
    assert audit.compare(still, plain).mse.value == 0
    assert np.isnan(audit.compare(still, still).mse.value)


# Calibration. Intervals are arithmetic on sums over blocks, so that thousands of audits are made
# from numpy's random numbers, without a compiled program.

SIZE = 1000


def summed(rows, env_steps=None, key=(0,)):
    """The block sums of materialised gradients, by the definition."""
    first = replicates.starts(len(rows))
    pilot = rows[: replicates.pilots(len(rows))].mean(0)
    unit = np.sqrt(np.mean(np.sum(rows[: replicates.pilots(len(rows))] ** 2, axis=1)))
    x = (rows - pilot) / unit
    square = np.sum(x**2, axis=1)
    each = [np.ones(len(x)), x, square, square**2, square[:, None] * x]
    sums = [np.add.reduceat(values, first) for values in each]
    steps = None if env_steps is None else np.add.reduceat(env_steps, first)
    whole = x.shape[1] <= replicates.WHOLE_COVARIANCE
    scatter = x.T @ x if whole else np.sum(x**2, axis=0)
    return audit.Blocks(audit.Sums(*sums, steps), scatter, pilot, unit, 2.2e-16, len(rows), 0, key)


def test_sums_of_the_calibration_are_those_of_the_audit():
    rows, metrics = materialised(gaussian, 301)
    found = audit.audit(KEY, PARAMS, gaussian, num_replicates=301, chunk_size=100)
    made = audit.summarise(PARAMS, summed(rows, np.asarray(metrics["env_steps"], float)))
    np.testing.assert_allclose(values(made), values(found), rtol=1e-9)


class Law:
    """A law of gradients to draw from, and its truths."""

    def __init__(self, draw, mean, covariance, cv2=None, env_steps=None):
        self.draw, self.mean, self.covariance = draw, mean, covariance
        self.cv2, self.env_steps = cv2, env_steps


def gaussian_law(mean, mixing):
    size, covariance = len(mean), mixing @ mixing.T
    draw = lambda rng: (mean + rng.normal(size=(SIZE, size)) @ mixing.T, rng.poisson(9, SIZE) + 1.0)
    cv2 = 2 * np.sum(covariance**2) / np.trace(covariance) ** 2
    return Law(draw, mean, covariance, cv2, 10)


def laplace_law():
    draw = lambda rng: (MEAN + rng.laplace(size=(SIZE, 6)), rng.geometric(0.1, SIZE) + 0.0)
    return Law(draw, MEAN, 2 * np.eye(6), None, 10)


def corridor_law():
    """REINFORCE on the short corridor: a large pool of its gradients, drawn from."""
    env = short_corridor(400)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        policies.tabular(1, 2),
        estimators.estimator("total_return", "none"),
        Hyper(discount=1.0),
        num_episodes=1,
        horizon=400,
    )
    params = jnp.array([[0.0, 0.2]])
    keys = jax.random.split(KEY, (20, 10_000))
    pool, metrics = jax.jit(
        lambda keys, params: jax.lax.map(jax.vmap(lambda key: gradient_fn(key, params)), keys)
    )(keys, params)
    pool = np.asarray(pool).reshape(-1, 2)
    steps = np.asarray(metrics["env_steps"], float).ravel()

    def draw(rng):
        chosen = rng.integers(len(pool), size=SIZE)
        return pool[chosen], steps[chosen]

    return Law(draw, pool.mean(0), np.cov(pool.T, ddof=0), None, steps.mean())


def coverages(law, repetitions, shift):
    """How often each interval holds its truth, and how often the bias tests cry out at 5%."""
    rng = np.random.default_rng(1)
    params, mean, trace = np.zeros_like(law.mean), law.mean, np.trace(law.covariance)
    wrong = mean + shift
    hits, alarms = {}, {"exact": 0, "audit": 0}

    def check(name, estimate, truth):
        hits[name] = hits.get(name, 0) + (estimate.low <= truth <= estimate.high)

    for _ in range(repetitions):
        rows, steps = law.draw(rng)
        other, _ = law.draw(rng)
        right = audit.summarise(params, summed(rows, steps), mean)
        off = audit.summarise(params, summed(rows, steps), wrong)
        two = audit.summarise(params, summed(rows, steps), summed(other, key=(1,)))
        louder = audit.summarise(params, summed(rows + 0.5 * (other - mean), steps), mean)
        check("trace", right.trace, trace)
        check("squared_norm", right.squared_norm, mean @ mean)
        check("snr", right.snr, mean @ mean / trace)
        check("env_steps", right.env_steps, law.env_steps)
        check("work_env_steps", right.work_env_steps, trace * law.env_steps)
        check("no bias", right.squared_bias, 0)
        check("no bias, two samples", two.squared_bias, 0)
        check("bias", off.squared_bias, shift @ shift)
        check("mse", off.mse, trace + shift @ shift)
        check("mse of 1000", audit.mean_squared_error(off, 1000), trace / 1000 + shift @ shift)
        check("ratio of traces", audit.compare(louder, right).trace, 1.25)
        if law.cv2 is not None:
            check("cv2", right.cv2, law.cv2)
            size = SIZE / (1 + law.cv2)
            check("effective_sample_size", right.effective_sample_size, size)
        alarms["exact"] += right.bias_test.p_value < 0.05
        alarms["audit"] += two.bias_test.p_value < 0.05
        # Negative control: an interval two thirds as long.
        centre, low, high = np.log(right.trace)
        short = audit.Estimate(*np.exp([centre, (2 * low + centre) / 3, (2 * high + centre) / 3]))
        check("control", short, trace)
    return {name: count / repetitions for name, count in hits.items()}, {
        name: count / repetitions for name, count in alarms.items()
    }


def assert_calibrated(law, repetitions, shift, low=0.92, high=0.97):
    found, alarms = coverages(law, repetitions, shift)
    slack = 3.5 * np.sqrt(0.05 * 0.95 / repetitions)
    control = found.pop("control")
    assert control < low - slack, found
    assert min(found.values()) > low - slack, found
    assert max(found.values()) < high + slack, found
    for share in alarms.values():
        assert abs(share - 0.05) < slack + 0.005, alarms
    return found


def test_intervals_of_gaussian_gradients_hold_the_truth():
    law = gaussian_law(MEAN, MIXING)
    assert_calibrated(law, 400, 0.1 * np.ones(6))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "no signal", "one parameter", "laplace", "corridor"])
def test_intervals_hold_the_truth(name):
    laws = {
        "gaussian": lambda: gaussian_law(MEAN, MIXING),
        "no signal": lambda: gaussian_law(np.zeros(6), MIXING),
        "one parameter": lambda: gaussian_law(np.zeros(1), np.ones((1, 1))),
        "laplace": laplace_law,
        "corridor": corridor_law,
    }
    law = laws[name]()
    # Along a direction in which the gradient varies.
    shift = np.linalg.cholesky(law.covariance + 1e-9 * np.eye(len(law.mean)))[:, 0]
    assert_calibrated(law, 2000, 0.3 * shift)


def test_intervals_of_a_length_hold_it_where_the_noise_is_in_one_direction():
    # Of what is mostly quiet and a little noisy, where the noisy part may have come out small.
    rng, repetitions = np.random.default_rng(0), 500
    mean, error = np.full(5, 0.12), np.sqrt([1, 1e-3, 1e-3, 1e-3, 1e-3])
    held, control = 0, 0
    for _ in range(repetitions):
        found = moments(summed(mean + error * rng.normal(size=(256, 5))))
        t_quantile = stats.t.ppf(0.975, 63)
        estimate = squared_length(found.mean, found, None, t_quantile)
        held += estimate.low <= mean @ mean <= estimate.high
        # Negative control: the variance along the mean that was found.
        half = t_quantile * 2 * np.linalg.norm(found.influences @ found.mean)
        control += abs(estimate.value - mean @ mean) <= half
    slack = 3.5 * np.sqrt(0.05 * 0.95 / repetitions)
    assert abs(held / repetitions - 0.95) < slack
    assert control / repetitions < 0.95 - slack


@pytest.mark.slow
def test_intervals_of_many_parameters_hold_the_truth():
    size = 150
    mixing = np.random.default_rng(3).normal(size=(size, size)) / np.sqrt(size)
    law = gaussian_law(np.full(size, 0.1), mixing)
    law.cv2 = None  # Bounded from the means of blocks only.
    assert_calibrated(law, 1000, np.full(size, 0.1))


def test_naive_intervals_of_a_squared_bias_are_not_calibrated():
    # What test inversion is for: with the plain jackknife error the interval holds zero always.
    rng = np.random.default_rng(0)
    t_quantile, held, inverted = stats.t.ppf(0.975, 63), 0, 0
    for _ in range(600):
        found = moments(summed(rng.normal(size=(SIZE, 1))))
        value = float(found.mean @ found.mean) - found.trace / found.count
        error = np.linalg.norm(2 * found.influences @ found.mean)
        held += abs(value) <= t_quantile * np.hypot(error, np.sqrt(2) * found.trace / found.count)
        estimate = squared_length(found.mean, found, None, t_quantile)
        inverted += estimate.low <= 0 <= estimate.high
    assert held / 600 > 0.99
    assert abs(inverted / 600 - 0.95) < 0.03


def test_bias_test_of_many_parameters_has_its_level_and_power():
    rng, params = np.random.default_rng(5), np.zeros(120)
    alarms, found = 0, 0
    for _ in range(300):
        blocks = summed(rng.laplace(size=(SIZE, 120)))
        tested = audit.summarise(params, blocks, params).bias_test
        assert tested is not None and tested.name == "Holm"
        alarms += tested.p_value < 0.05
        shifted = np.zeros(120)
        shifted[7] = 0.35
        found += audit.summarise(params, blocks, shifted).bias_test.p_value < 0.05
    assert alarms / 300 < 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 300)
    assert found / 300 > 0.95


def test_what_is_no_gradient_function_is_refused():
    stateful = StatefulGradientFn(lambda key, params: (), lambda key, params, state: (params,) * 3)
    bare = lambda key, params: gaussian(key, params)[0]
    pair = lambda key, params: (params["a"], params["b"])
    refused = [(stateful, "carries a state"), (bare, "metrics may be"), (pair, "metrics may be")]
    for gradient_fn, message in refused:
        with pytest.raises(ValueError, match=message):
            audit.audit(KEY, PARAMS, gradient_fn, num_replicates=10, chunk_size=5)
