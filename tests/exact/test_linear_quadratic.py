"""The linear-quadratic oracle against moments carried forward, tensor quadrature and sampling."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from pgjax import distributions, environments, estimators, gradients, heads, policies
from pgjax.environments import LQG
from pgjax.estimators import Hyper
from pgjax.exact import linear_quadratic as exact

KEY = jax.random.key(0)
HYPER = Hyper(0.9)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Problem(NamedTuple):
    """A system, and a linear-Gaussian policy in it."""

    system: LQG
    gain: np.ndarray  # [A, S]
    offset: np.ndarray  # [A]
    log_std: np.ndarray  # [A]

    @property
    def policy(self):
        return policies.linear(heads.normal((len(self.offset),)))

    @property
    def params(self):
        dense = {"kernel": jnp.asarray(self.gain.T), "bias": jnp.asarray(self.offset)}
        return {"params": {"Dense_0": dense, "free": jnp.asarray(self.log_std)}}


def covariance(rng, size, scale):
    factor = rng.normal(size=(size, size))
    return scale * (factor @ factor.T + 0.2 * np.eye(size))


def problem(num_states, num_actions, seed=0):
    """A random one, stable in closed loop, with correlated noise and costs."""
    rng = np.random.default_rng([seed, num_states, num_actions])
    dynamics = rng.normal(size=(num_states, num_states))
    control = rng.normal(size=(num_states, num_actions))
    gain = 0.3 * rng.normal(size=(num_actions, num_states))
    radius = np.max(np.abs(np.linalg.eigvals(dynamics + control @ gain)))
    dynamics = 0.8 / radius * (dynamics + control @ gain) - control @ gain
    system = LQG(
        dynamics=dynamics,
        control=control,
        noise=covariance(rng, num_states, 0.1),
        state_cost=covariance(rng, num_states, 0.5),
        action_cost=covariance(rng, num_actions, 0.2),
        initial_mean=rng.normal(size=num_states),
        initial_covariance=covariance(rng, num_states, 0.2),
    )
    offset = 0.3 * rng.normal(size=num_actions)
    return Problem(system, gain, offset, rng.normal(size=num_actions) - 1)


# The seed gives parts that differ from step to step, for the negative control on samples.
SMALL, LARGE = problem(1, 1, seed=2), problem(3, 2)


def mean_rewards(case, num_steps, mean=None, spread=None):
    """E[r_t] for all t, from the moments of s_t carried forward; analytic in complex policies."""
    system, gain, noise = case.system, case.gain, np.diag(np.exp(2 * case.log_std))
    mean = system.initial_mean if mean is None else mean
    spread = system.initial_covariance if spread is None else spread
    rewards = []
    for _ in range(num_steps):
        action = gain @ mean + case.offset
        action_spread = gain @ spread @ gain.T + noise
        cost = mean @ system.state_cost @ mean + np.trace(system.state_cost @ spread)
        cost = cost + action @ system.action_cost @ action
        rewards.append(-cost - np.trace(system.action_cost @ action_spread))
        closed = system.dynamics + system.control @ gain
        mean = system.dynamics @ mean + system.control @ action
        spread = closed @ spread @ closed.T + system.noise
        spread = spread + system.control @ noise @ system.control.T
    return np.array(rewards)


def discounted(rewards, discount=HYPER.discount):
    return rewards @ discount ** np.arange(len(rewards))


def complex_step(case, function):
    """Gradient of a function of the case in its policy, as a tree like its params."""

    def part(field):
        gradient = np.zeros_like(getattr(case, field))
        for index in np.ndindex(*gradient.shape):
            shifted = getattr(case, field).astype(complex)
            shifted[index] += 1e-30j
            gradient[index] = np.imag(function(case._replace(**{field: shifted}))) / 1e-30
        return gradient

    return Problem(case.system, *map(part, Problem._fields[1:])).params


def assert_trees_close(found, expected, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), found, expected)


def gradient_and_metrics(gradient_fn, params):
    return jax.jit(lambda params: gradient_fn(None, params))(params)


@pytest.mark.parametrize("case", [SMALL, LARGE])
@pytest.mark.parametrize("horizon", [1, 7])
def test_return_and_gradient_over_a_finite_horizon(case, horizon):
    witness = lambda case: discounted(mean_rewards(case, horizon))
    gradient_fn = exact.exact_gradient(case.system, case.policy, HYPER, horizon=horizon)
    gradient, metrics = gradient_and_metrics(gradient_fn, case.params)
    np.testing.assert_allclose(metrics["expected_return"], witness(case), rtol=1e-12)
    assert_trees_close(gradient, complex_step(case, witness), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_infinite_horizon_is_the_limit_of_finite_ones(case):
    witness = lambda case: discounted(mean_rewards(case, 400))
    gradient_fn = exact.exact_gradient(case.system, case.policy, HYPER, horizon=None)
    gradient, metrics = gradient_and_metrics(gradient_fn, case.params)
    np.testing.assert_allclose(metrics["expected_return"], witness(case), rtol=1e-12)
    assert_trees_close(gradient, complex_step(case, witness), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_average_reward_is_that_of_a_late_step(case):
    witness = lambda case: mean_rewards(case, 300)[-1]
    gradient_fn = exact.average_reward_gradient(case.system, case.policy)
    gradient, metrics = gradient_and_metrics(gradient_fn, case.params)
    np.testing.assert_allclose(metrics["average_reward"], witness(case), rtol=1e-12)
    assert_trees_close(gradient, complex_step(case, witness), rtol=1e-9, atol=1e-12)


def test_average_reward_is_the_limit_of_discounted_returns():
    arguments = (LARGE.system, LARGE.policy, LARGE.params)

    def error(discount):
        value = exact.expected_return(*arguments, Hyper(discount), horizon=None)
        return (1 - discount) * value - exact.average_reward(*arguments)

    error = jax.jit(jax.vmap(error))(1 - 10.0 ** -jnp.arange(3, 6))
    np.testing.assert_allclose(error[1:] / error[:-1], 0.1, rtol=1e-2)


def value_functions(case, horizon):
    run = lambda params: exact.values(case.system, case.policy, params, HYPER, horizon=horizon)
    return jax.tree.map(np.asarray, jax.jit(run)(case.params))


@pytest.mark.parametrize("horizon", [4, None])
def test_values_are_returns_from_where_one_stands(horizon):
    case, system = LARGE, LARGE.system
    steps = 400 if horizon is None else horizon
    found = value_functions(case, horizon)
    if horizon is None:
        found = jax.tree.map(lambda x: x[None], found)
    rng = np.random.default_rng(1)
    for t in range(len(found.action.constant)):
        state, action = rng.normal(size=3), rng.normal(size=2)
        value, q = jax.tree.map(lambda x, t=t: x[t], found)
        expected = discounted(mean_rewards(case, steps - t, state, np.zeros((3, 3))))
        np.testing.assert_allclose(value(state), expected, rtol=1e-10)
        moved = system.dynamics @ state + system.control @ action
        later = discounted(mean_rewards(case, steps - t - 1, moved, system.noise))
        reward = -(state @ system.state_cost @ state + action @ system.action_cost @ action)
        expected = reward + HYPER.discount * later
        np.testing.assert_allclose(q(np.append(state, action)), expected, rtol=1e-10)
    if horizon is not None:
        assert all(np.all(x[-1] == 0) for x in found.state)


def test_gradient_vanishes_at_the_riccati_gain():
    """And there alone, in the gain and the offset: noise of the actions only costs."""
    system, discount = LARGE.system, HYPER.discount
    dynamics, control = discount**0.5 * system.dynamics, discount**0.5 * system.control
    cost = linalg.solve_discrete_are(dynamics, control, system.state_cost, system.action_cost)
    curvature = system.action_cost + control.T @ cost @ control
    gain = -np.linalg.solve(curvature, control.T @ cost @ dynamics)
    gradient_fn = exact.exact_gradient(system, LARGE.policy, HYPER, horizon=None)

    def slopes(case):
        return gradient_and_metrics(gradient_fn, case.params)[0]["params"]

    best = slopes(LARGE._replace(gain=gain, offset=np.zeros(2)))
    assert all(np.max(np.abs(x)) < 1e-10 for x in best["Dense_0"].values())
    assert np.all(best["free"] < -1e-3)
    assert all(np.max(np.abs(x)) > 1e-3 for x in slopes(LARGE)["Dense_0"].values())


def test_divergence_is_nan_where_parameters_are_traced():
    """Both objectives exist exactly where the spectral radius says so."""
    case = LARGE
    scales = jnp.linspace(-6, 6, 41)
    closed = lambda scale: case.system.dynamics + case.system.control @ (scale * case.gain)
    radius = np.array([np.max(np.abs(np.linalg.eigvals(closed(float(x))))) for x in scales])

    def objectives(scale):
        params = case._replace(gain=scale * jnp.asarray(case.gain)).params
        arguments = (case.system, case.policy, params)
        discounted = exact.expected_return(*arguments, HYPER, horizon=None)
        return jnp.stack([discounted, exact.average_reward(*arguments)])

    # Forward, lest the NaN of one objective reach the slope of the other.
    with_slope = lambda scale: (objectives(scale), jax.jacfwd(objectives)(scale))
    for found in jax.jit(jax.vmap(with_slope))(scales):
        exists = np.isfinite(found)
        np.testing.assert_array_equal(exists[:, 0], radius * HYPER.discount**0.5 < 1)
        np.testing.assert_array_equal(exists[:, 1], radius < 1)
    assert 0 < (radius < 1).sum() < (radius * HYPER.discount**0.5 < 1).sum() < len(radius)


def test_in_float32():
    with jax.enable_x64(False):
        run = lambda params: exact.expected_return(
            LARGE.system, LARGE.policy, params, HYPER, horizon=None
        )
        found = jax.jit(run)(LARGE.params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, discounted(mean_rewards(LARGE, 400)), rtol=1e-5)


def sampled(case, horizon, num_replicates=4000, num_episodes=8):
    """Returns and gradients of the library's own episodes: means over small batches, [M, 1 + D]."""
    env = environments.linear_quadratic(case.system)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        case.policy,
        estimators.estimator("reward_to_go", "leave_one_out"),
        HYPER,
        num_episodes=num_episodes,
        horizon=horizon,
    )

    def replicate(key):
        gradient, metrics = gradient_fn(key, case.params)
        return jnp.append(flatten(gradient), metrics["discounted_return"])

    return np.asarray(jax.jit(jax.vmap(replicate))(jax.random.split(KEY, num_replicates)))


def flatten(tree):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def worst_z(samples, truth):
    return np.max(np.abs(samples.mean(0) - truth) / (samples.std(0) / len(samples) ** 0.5))


@pytest.mark.slow
def test_sampled_gradients_and_returns_agree():
    case, horizon = problem(2, 2), 5
    samples = sampled(case, horizon)

    def truth(horizon):
        gradient_fn = exact.exact_gradient(case.system, case.policy, HYPER, horizon=horizon)
        gradient, metrics = gradient_and_metrics(gradient_fn, case.params)
        return np.append(flatten(gradient), metrics["expected_return"])

    limit = stats.norm.isf(1e-5 / 2 / samples.shape[1])
    assert worst_z(samples, truth(horizon)) < limit
    wrong = truth(horizon - 1)
    assert worst_z(samples[:, :-1], wrong[:-1]) > limit
    assert worst_z(samples[:, -1], wrong[-1]) > limit


class Rolled(NamedTuple):
    """Numpy trajectories; a leading axis of runs, or one axis a noise variable."""

    states: list  # T of [..., S]
    noises: list  # T of [..., A], standardised
    rewards: list  # T of [...]


def roll(case, state, noise_at, shock_at, num_steps):
    """Plays the system from states, with given standard normals of the actions and the moves."""
    system, std = case.system, np.exp(case.log_std)
    root = np.linalg.cholesky(system.noise)
    quadratic = lambda x, form: np.einsum("...i,ij,...j->...", x, form, x)
    states, noises, rewards = [], [], []
    for t in range(num_steps):
        noise = noise_at(t)
        action = state @ case.gain.T + case.offset + std * noise
        states.append(state)
        noises.append(noise)
        rewards.append(-quadratic(state, system.state_cost) - quadratic(action, system.action_cost))
        state = state @ system.dynamics.T + action @ system.control.T + shock_at(t) @ root.T
    return Rolled(states, noises, rewards)


def to_go(rewards, start):
    return sum(HYPER.discount ** (k - start) * rewards[k] for k in range(start, len(rewards)))


def score(case, state, noise):
    """grad log pi in the kernel, the bias and the log standard deviations, [..., D]."""
    slope = noise / np.exp(case.log_std)
    kernel = state[..., :, None] * slope[..., None, :]
    return np.concatenate([kernel.reshape(*kernel.shape[:-2], -1), slope, noise**2 - 1], axis=-1)


def chances(horizon, state_weighting):
    """How likely the step is drawn from each time, [T]."""
    weights = HYPER.discount ** np.arange(horizon)
    weights = weights if state_weighting == "discounted" else np.ones(horizon)
    return weights / weights.sum()


def quadrature_decomposition(case, horizon, state_weighting, values=None):
    """The three parts, and the whole, from one tensor of all noise variables of an episode.

    Exact to rounding. Nothing is conditioned on s_t: the variables before a_t say no more about
    what follows than s_t does.
    """
    num_actions, num_states = case.gain.shape
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    num = horizon * (num_states + num_actions)  # s_0, a_0, w_0, a_1, ...: the last w has no effect
    shape = (5,) * num

    def variables(first, size):
        axes = [np.broadcast_to(nodes.reshape(-1, *[1] * (num - i - 1)), shape) for i in first]
        return np.stack(axes[:size], axis=-1)

    def noise_at(t):
        first = (t + 1) * num_states + t * num_actions
        return variables(range(first, first + num_actions), num_actions)

    def shock_at(t):
        if t == horizon - 1:
            return np.zeros((*shape, num_states))
        first = (t + 1) * (num_states + num_actions)
        return variables(range(first, first + num_states), num_states)

    def mean_over_last(x, number):
        """Means over the last `number` of the variables that are left."""
        for _ in range(number):
            x = np.einsum("...id,i->...d", x, weights)
        return x

    initial = np.linalg.cholesky(case.system.initial_covariance)
    state = case.system.initial_mean + variables(range(num_states), num_states) @ initial.T
    rolled = roll(case, state, noise_at, shock_at, horizon)
    square = lambda x: mean_over_last(np.sum(x**2, -1, keepdims=True), x.ndim - 1)[0]
    sizes, overall = np.zeros(3), 0.0
    for t, chance in enumerate(chances(horizon, state_weighting)):
        scores = score(case, rolled.states[t], rolled.noises[t])
        baseline = 0.0 if values is None else values(t, rolled.states[t])
        estimate = (to_go(rolled.rewards, t) - baseline)[..., None] * scores
        before = (t + 1) * num_states + t * num_actions
        given_action = mean_over_last(estimate, num - before - num_actions)
        given_state = mean_over_last(given_action, num_actions)
        sizes += chance * np.array([square(x) for x in (estimate, given_action, given_state)])
        overall = overall + chance * mean_over_last(given_state, before)
    squares = np.append(sizes, np.sum(overall**2))
    return -np.diff(squares), squares[0] - squares[-1]


def state_values(case, horizon):
    """V_t(s) at `[..., S]` states, in numpy."""
    forms = value_functions(case, horizon).state

    def value(t, state):
        square = np.einsum("...i,ij,...j->...", state, forms.quadratic[t], state)
        return -(square + state @ forms.linear[t] + forms.constant[t])

    return value


@pytest.mark.parametrize(("case", "horizon"), [(SMALL, 3), (problem(2, 1), 2)])
def test_decomposition_is_that_of_tensor_quadrature(case, horizon):
    given = {"none": None, "value": state_values(case, horizon)}
    found = decompose(case, horizon)
    for (baseline, state_weighting), parts in found.items():
        expected = quadrature_decomposition(case, horizon, state_weighting, given[baseline])
        np.testing.assert_allclose(np.stack(parts), expected[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sum(parts), expected[1], rtol=1e-9)
    for state_weighting in estimators.STATE_WEIGHTINGS:
        # The baseline makes a difference, and to the action's part alone.
        with_value, without = found["value", state_weighting], found["none", state_weighting]
        assert np.abs(with_value.action / without.action - 1) > 1e-3
        assert_trees_close(with_value[::2], without[::2], rtol=1e-9, atol=1e-12)
    for baseline in exact.BASELINES:
        discounted, uniform = (np.stack(found[baseline, w]) for w in estimators.STATE_WEIGHTINGS)
        assert np.all(np.abs(discounted / uniform - 1) > 1e-3)


def decompose(case, horizon, **kwargs):
    """With each baseline and state weighting, by their names."""
    names = list(itertools.product(exact.BASELINES, estimators.STATE_WEIGHTINGS))

    def run(params):
        arguments = (case.system, case.policy, params, HYPER)
        return [
            exact.variance_decomposition(
                *arguments, horizon=horizon, baseline=baseline, state_weighting=weighting, **kwargs
            )
            for baseline, weighting in names
        ]

    return dict(zip(names, jax.tree.map(np.asarray, jax.jit(run)(case.params)), strict=True))


def decompose_once(case, horizon, chunk_size=16384):
    """With the value as baseline, discounted."""
    run = lambda params: exact.variance_decomposition(
        case.system,
        case.policy,
        params,
        HYPER,
        horizon=horizon,
        baseline="value",
        chunk_size=chunk_size,
    )
    return np.stack(jax.jit(run)(case.params))


def test_decomposition_does_not_depend_on_chunks():
    found = decompose_once(SMALL, 2, chunk_size=7)
    expected = quadrature_decomposition(SMALL, 2, "discounted", state_values(SMALL, 2))
    np.testing.assert_allclose(found, expected[0], rtol=1e-9, atol=1e-12)


def nested_samples(case, horizon, num_samples):
    """Unbiased samples of the three parts, with the value as baseline, discounted, `[M, 3]`.

    At every time, from each state two actions, from the first of them two futures; products of
    independent draws have the products of conditional means for their mean.
    """
    rng = np.random.default_rng(0)
    num_actions, num_states = case.gain.shape
    normals = lambda size: rng.normal(size=(num_samples, size))
    act, shock = lambda t: normals(num_actions), lambda t: normals(num_states)
    initial = np.linalg.cholesky(case.system.initial_covariance)
    values = state_values(case, horizon)

    def at_step(step):
        """The first two parts, and two estimates of E[Q u | s] that share the state."""
        start = case.system.initial_mean + normals(num_states) @ initial.T
        state = roll(case, start, act, shock, step + 1).states[step]
        noise, other = normals(num_actions), normals(num_actions)

        def future(noise):
            noise_at = lambda t: noise if t == 0 else normals(num_actions)
            return to_go(roll(case, state, noise_at, shock, horizon - step).rewards, 0)

        first, second, third = (future(x) - values(step, state) for x in (noise, noise, other))
        own, others = score(case, state, noise), score(case, state, other)
        size = np.sum(own**2, -1)
        drifts = first[:, None] * own, third[:, None] * others
        between = np.sum(drifts[0] * drifts[1], -1)
        return (first - second) ** 2 / 2 * size, first * second * size - between, between, drifts[0]

    steps = [at_step(step) for step in range(horizon)]
    chance = chances(horizon, "discounted")
    mean = lambda part: sum(p * step[part] for p, step in zip(chance, steps, strict=True))
    drift = mean(3)
    apart = np.sum(drift * np.roll(drift, 1, axis=0), -1)
    # Products with a neighbour correlate; means over blocks hardly do.
    return np.stack([mean(0), mean(1), mean(2) - apart], -1).reshape(-1, 100, 3).mean(1)


@pytest.mark.parametrize("case", [SMALL, pytest.param(problem(2, 2), marks=pytest.mark.slow)])
def test_decomposition_is_that_of_nested_samples(case):
    horizon = 3
    samples = nested_samples(case, horizon, num_samples=100_000)
    wrong = nested_samples(case, horizon + 1, num_samples=100_000)
    truth = decompose_once(case, horizon)
    limit = stats.norm.isf(1e-4 / 2 / 3)
    assert worst_z(samples, truth) < limit
    for part in range(3):
        assert worst_z(wrong[:, part], truth[part]) > limit


def policy_of(apply, carry=()):
    """A policy of two actions whose only parameter is a number."""
    memoryless = policies.memoryless(init=lambda key, obs: jnp.ones(()), apply=apply)
    return memoryless._replace(initial_state=lambda: carry)


def gaussian(loc, scale):
    return distributions.independent(distributions.normal(loc, scale))


TWO = problem(2, 2)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (policy_of(lambda p, x: gaussian(p * jnp.tanh(x), 1.0)), "not linear-Gaussian"),
        (policy_of(lambda p, x: gaussian((p - 1) * jnp.tanh(x), 1.0)), "not linear-Gaussian"),
        (policy_of(lambda p, x: gaussian(p * x, jnp.exp(x))), "not linear-Gaussian"),
        (policy_of(lambda p, x: gaussian(p * jax.nn.relu(x), 1.0)), "not linear-Gaussian"),
        (
            policy_of(lambda p, x: distributions.independent(distributions.tanh_normal(x, p))),
            "gives TanhNormal",
        ),
        (policy_of(lambda p, x: distributions.categorical(x)), "gives Categorical"),
        (policy_of(lambda p, x: distributions.normal(x, p)), r"log-probabilities of shape \(2,\)"),
        (policy_of(lambda p, x: gaussian(x[:1], p)), r"actions of shape \(1,\)"),
        (policy_of(lambda p, x: gaussian(x, p), carry=jnp.zeros(1)), "has a memory"),
    ],
)
def test_other_policies_are_refused(policy, message):
    params = jnp.ones(())
    gradient_fn = lambda: exact.exact_gradient(TWO.system, policy, HYPER, horizon=2)
    for call in (
        lambda: exact.expected_return(TWO.system, policy, params, HYPER, horizon=2),
        lambda: gradient_fn()(None, params),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("hyper", "horizon", "message"),
    [
        (Hyper(1.0), None, "use average_reward"),
        (Hyper(1.1), 3, "discount=1.1"),
        (HYPER, 0, "horizon=0"),
        (HYPER, 2.5, "horizon=2.5"),
    ],
)
def test_bad_objectives_are_refused(hyper, horizon, message):
    for function in (exact.expected_return, exact.values):
        with pytest.raises(ValueError, match=message):
            function(SMALL.system, SMALL.policy, SMALL.params, hyper, horizon=horizon)
    with pytest.raises(ValueError, match=message):
        exact.exact_gradient(SMALL.system, SMALL.policy, hyper, horizon=horizon)


def test_divergence_is_refused_where_parameters_are_known():
    case = SMALL._replace(gain=SMALL.gain + 5)
    arguments = (case.system, case.policy, case.params)
    gradient_fn = exact.exact_gradient(case.system, case.policy, HYPER, horizon=None)
    average_gradient_fn = exact.average_reward_gradient(case.system, case.policy)
    for call in (
        lambda: exact.expected_return(*arguments, HYPER, horizon=None),
        lambda: exact.values(*arguments, HYPER, horizon=None),
        lambda: exact.average_reward(*arguments),
        lambda: gradient_fn(None, case.params),
        lambda: average_gradient_fn(None, case.params),
    ):
        with pytest.raises(ValueError, match="the loop is unstable"):
            call()
    assert np.isfinite(exact.expected_return(*arguments, HYPER, horizon=3))


def test_parameters_that_are_not_finite_give_nan():
    params = SMALL._replace(gain=np.full((1, 1), np.nan)).params
    for horizon in (2, None):
        found = exact.expected_return(SMALL.system, SMALL.policy, params, HYPER, horizon=horizon)
        assert np.isnan(found)


def test_bad_systems_are_refused():
    broken = SMALL.system._replace(noise=-np.ones((1, 1)))
    with pytest.raises(ValueError, match="noise must be positive"):
        exact.expected_return(broken, SMALL.policy, SMALL.params, HYPER, horizon=2)


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        (SMALL, {"horizon": 2, "baseline": "values"}, "did you mean 'value'"),
        (SMALL, {"horizon": 2, "state_weighting": "unifrom"}, "did you mean 'uniform'"),
        (SMALL, {"horizon": None}, "horizon=None"),
        (SMALL, {"horizon": 2, "chunk_size": 0}, "chunk_size=0"),
        (problem(8, 4), {"horizon": 2}, "8 state and 4 action dimensions"),
    ],
)
def test_bad_decompositions_are_refused(case, arguments, message):
    with pytest.raises(ValueError, match=message):
        exact.variance_decomposition(case.system, case.policy, case.params, HYPER, **arguments)
