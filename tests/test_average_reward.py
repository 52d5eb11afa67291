"""Gradients of the average reward against a numpy witness: stationary law, h, and grad eta."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from pgjax import environments, gradients, policies, rollout, train
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator, psi, reward_to_go
from pgjax.gradients import make_steps, trajectory_gradient
from pgjax.gradients.average_reward import WindowState
from pgjax.rollout import Trajectory
from pgjax.score import StatefulGradientFn

from .enumeration import softmax
from .test_segments import remembers

KEY = jax.random.key(0)
NUM_STATES, NUM_ACTIONS, HORIZON, NUM_ROWS = 3, 3, 8, 20_000
FAMILY_ERROR = 1e-4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# --- the witness: numpy, and nothing of pgjax -----------------------------------------------------

RANDOM = np.random.default_rng(0)
TRANSITION = RANDOM.dirichlet(0.4 * np.ones(NUM_STATES), size=(NUM_STATES, NUM_ACTIONS))
REWARD = RANDOM.normal(size=(NUM_STATES, NUM_ACTIONS, NUM_STATES))
LOGITS = RANDOM.normal(size=(NUM_STATES, NUM_ACTIONS))


def chain(logits):
    """Transition matrix and mean reward of each state under a softmax policy."""
    policy = softmax(logits)
    mean = np.einsum("sak,sak->sa", TRANSITION, REWARD)
    return np.einsum("sa,sak->sk", policy, TRANSITION), np.sum(policy * mean, axis=1)


def stationary(logits):
    """mu P = mu, normalised: one of the equations is replaced by sum mu = 1."""
    transition, _ = chain(logits)
    equations = transition.T - np.eye(NUM_STATES)
    equations[-1] = 1
    return np.linalg.solve(equations, np.eye(NUM_STATES)[-1])


def eta(logits):
    return stationary(logits) @ chain(logits)[1]


def differential_values(logits):
    """h = r - eta + P h, with mu h = 0."""
    transition, reward = chain(logits)
    law = stationary(logits)
    rank_one = np.outer(np.ones(NUM_STATES), law)
    return np.linalg.solve(np.eye(NUM_STATES) - transition + rank_one, reward - law @ reward)


def grad_eta(logits):
    """By complex steps through the linear solve."""
    gradient = np.zeros(logits.shape)
    for index in np.ndindex(*logits.shape):
        shifted = logits.astype(complex)
        shifted[index] += 1e-30j
        gradient[index] = np.imag(eta(shifted)) / 1e-30
    return gradient


def mean_credit(following):
    """E_mu[u (r + following[s'])] of the softmax policy, u its score, `[S, A]`."""
    policy = softmax(LOGITS)
    q = np.einsum("sak,sak->sa", TRANSITION, REWARD + following[None, None])
    centred = q - np.sum(policy * q, axis=1, keepdims=True)
    return stationary(LOGITS)[:, None] * policy * centred


def gpomdp_limit(beta):
    """Mean of GPOMDP(beta) with a window without end: credit by the values of discount beta."""
    transition, reward = chain(LOGITS)
    return mean_credit(beta * np.linalg.solve(np.eye(NUM_STATES) - beta * transition, reward))


def gpomdp_mean(beta, horizon):
    """Mean of GPOMDP(beta) with a window of `horizon` steps that starts in mu."""
    transition, reward = chain(LOGITS)
    value, total = np.zeros(NUM_STATES), 0.0
    for _ in range(horizon):
        total = total + mean_credit(beta * value) / horizon
        value = reward + beta * transition @ value
    return total


def test_the_witness_agrees_with_itself():
    """The policy gradient theorem, eta as the limit of powers, and beta -> 1."""
    h, truth = differential_values(LOGITS), grad_eta(LOGITS)
    np.testing.assert_allclose(mean_credit(h), truth, atol=1e-12)
    transition, reward = chain(LOGITS)
    long_run = np.linalg.matrix_power(transition, 10_000) @ reward
    np.testing.assert_allclose(long_run, eta(LOGITS), atol=1e-10)
    assert np.abs(truth).max() > 0.01
    biases = [np.abs(gpomdp_limit(beta) - truth).max() for beta in (0, 0.5, 0.9, 0.99, 0.999)]
    assert np.all(np.diff(biases) < 0) and biases[0] > 0.02 and biases[-1] < 1e-3


# --- the estimators -------------------------------------------------------------------------------


def continuing():
    """The witness's chain as an environment that starts in the stationary law of `LOGITS`."""
    nothing = np.zeros(NUM_STATES, bool)
    return environments.tabular_mdp(MDP(TRANSITION, REWARD, stationary(LOGITS), nothing))


def largest_z(gradient_fn, part=lambda gradient: gradient):
    """`(params, truth) -> z`: the worst error in standard errors, of windows that start in mu.

    Each window has a single row and a state of its own; after the first window, which `init`
    plays, the row is in mu still.
    """

    @jax.jit
    def sample(params):
        def one(key):
            init_key, step_key = jax.random.split(key)
            state = gradient_fn.init(init_key, params)
            return part(gradient_fn.step(step_key, params, state)[0])

        return jax.vmap(one)(jax.random.split(KEY, NUM_ROWS))

    def z(params, truth):
        samples = np.asarray(sample(params))
        spread = np.std(samples, axis=0, ddof=1) / np.sqrt(NUM_ROWS)
        return np.abs((np.mean(samples, axis=0) - truth) / spread).max()

    return z


BOUND = scipy.stats.norm.isf(FAMILY_ERROR / (2 * NUM_STATES * NUM_ACTIONS * 10))


def window_gradient(
    form="gae", baseline="none", lambda_=0.7, num_rows=1, horizon=HORIZON, **arguments
):
    env = continuing()
    return gradients.average_reward_gradient(
        env,
        env.default_params,
        policies.tabular(NUM_STATES, NUM_ACTIONS),
        estimator(form, baseline),
        Hyper(discount=1.0, lambda_=lambda_, n=2),
        num_rows=num_rows,
        horizon=horizon,
        value_function=policies.tabular_value(NUM_STATES),
        **arguments,
    )


WRONG = np.array([2.0, -1.0, 0.5])


@pytest.mark.parametrize(
    ("form", "baseline", "lambda_"),
    [("td_residual", "none", 0), ("gae", "none", 0.7), ("gae", "none", 1), ("n_step", "value", 0)],
)
def test_unbiased_with_exact_values_and_not_with_others(form, baseline, lambda_):
    """Whatever eta is subtracted; the end of the window bootstraps, so lambda = 1 needs h too."""
    gradient_fn = window_gradient(form, baseline, lambda_, horizon=3)
    z = largest_z(gradient_fn, lambda gradient: gradient["policy"])
    h = differential_values(LOGITS)
    for value, honest in ((h + 5.0, True), (h + WRONG, False)):
        params = {"policy": jnp.asarray(LOGITS), "value": jnp.asarray(value)}
        assert (z(params, grad_eta(LOGITS)) < BOUND) == honest


def test_the_values_are_a_fixed_point_of_their_own_gradient():
    """At exact h and eta the mean of the value's part is zero; a wrong h is moved towards it."""
    h = jnp.asarray(differential_values(LOGITS))
    gradient_fn = window_gradient("gae", lambda_=0.7)
    exact = StatefulGradientFn(
        lambda key, params: gradient_fn.init(key, params)._replace(eta=jnp.asarray(eta(LOGITS))),
        gradient_fn.step,
    )
    z = largest_z(exact, lambda gradient: gradient["value"])
    params = {"policy": jnp.asarray(LOGITS), "value": h}
    assert z(params, 0.0) < BOUND < z(params | {"value": h + WRONG}, 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_gpomdp_has_the_mean_of_its_bias(beta):
    """Exactly that of a window of T steps, which is neither grad eta nor that of another beta."""
    env = continuing()
    gradient_fn = gradients.gpomdp(
        env,
        env.default_params,
        policies.tabular(NUM_STATES, NUM_ACTIONS),
        beta=beta,
        num_rows=1,
        horizon=HORIZON,
    )
    z, params = largest_z(gradient_fn), jnp.asarray(LOGITS)
    assert z(params, gpomdp_mean(beta, HORIZON)) < BOUND < z(params, grad_eta(LOGITS))
    far, near = (np.abs(gpomdp_mean(beta, n) - gpomdp_limit(beta)).max() for n in (8, 800))
    assert near <= 0.02 * far + 1e-12


def test_the_trace_is_the_reward_to_go_at_rate_beta():
    """z_t = beta z_{t-1} + u_t and sum_t z_t r_t, row for row, and cut where an episode ends."""
    random, beta = np.random.default_rng(3), 0.8
    policy = policies.tabular(NUM_STATES, NUM_ACTIONS)
    ends = random.random((4, HORIZON)) < 0.2
    window = Trajectory(
        obs=jnp.asarray(random.integers(NUM_STATES, size=(4, HORIZON))),
        action=jnp.asarray(random.integers(NUM_ACTIONS, size=(4, HORIZON))),
        log_prob=jnp.zeros((4, HORIZON)),
        reward=jnp.asarray(random.normal(size=(4, HORIZON))),
        terminated=jnp.asarray(ends),
        truncated=jnp.zeros((4, HORIZON), bool).at[:, -1].set(True),
        mask=jnp.ones((4, HORIZON)),
    )
    choice = estimator("reward_to_go", "none", "uniform")
    gradient = jax.jit(
        functools.partial(
            trajectory_gradient, policy=policy, estimator=choice, hyper=Hyper(discount=beta)
        )
    )
    chance = softmax(LOGITS)
    for row in range(4):
        trace, expected = np.zeros(LOGITS.shape), np.zeros(LOGITS.shape)
        for t in range(HORIZON):
            state, action = int(window.obs[row, t]), int(window.action[row, t])
            trace *= beta
            trace[state] += np.eye(NUM_ACTIONS)[action] - chance[state]
            expected += trace * float(window.reward[row, t])
            trace *= not ends[row, t]
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], window)
        np.testing.assert_allclose(gradient(jnp.asarray(LOGITS), alone), expected, atol=1e-12)
    steps = make_steps(choice, window)
    np.testing.assert_array_equal(
        psi(choice, steps, Hyper(discount=beta)), reward_to_go(steps, Hyper(discount=beta))
    )


def test_eta_is_of_earlier_windows():
    gradient_fn = window_gradient(num_rows=4, eta_step_size=0.25)
    params = {"policy": jnp.asarray(LOGITS), "value": jnp.zeros(NUM_STATES)}
    step = jax.jit(gradient_fn.step)
    state = jax.jit(gradient_fn.init)(KEY, params)
    before = state.eta
    _, state, metrics = step(KEY, params, state)
    assert metrics["eta"] == before
    np.testing.assert_allclose(state.eta, before + 0.25 * (metrics["reward"] - before), rtol=1e-12)
    assert metrics["ends"] == 0 and metrics["env_steps"] == 4 * HORIZON
    assert state.rows.time == 2 * HORIZON
    step(KEY, params, state)
    assert step._cache_size() == 1


def restarting():
    """One step to the right pays; the goal ends the episode, which starts again at the left."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, 0, 0] = transition[1, 1, 2] = 1
    transition[2, :, 2] = 1
    reward = np.zeros((3, 2, 3))
    reward[1, 1] = 1.0
    return MDP(transition, reward, np.eye(3)[0], np.arange(3) == 2)


def test_an_end_is_a_transition_only_if_the_user_says_so():
    """Two states that restart are a chain of two states: with renewal, the same gradient."""
    mdp = restarting()
    closed = np.zeros((2, 2, 2))
    closed[0, 0, 0] = closed[0, 1, 1] = closed[1, 0, 0] = closed[1, 1, 0] = 1
    reward = np.zeros((2, 2, 2))
    reward[1, 1] = 1.0
    chain_of_two = MDP(closed, reward, np.eye(2)[0], np.zeros(2, bool))

    def run(mdp, num_states, renewal):
        env = environments.tabular_mdp(mdp)
        gradient_fn = gradients.average_reward_gradient(
            env,
            env.default_params,
            policies.tabular(num_states, 2),
            estimator("gae", "none"),
            Hyper(discount=1.0, lambda_=0.9),
            num_rows=16,
            horizon=9,
            value_function=policies.tabular_value(num_states),
            renewal=renewal,
        )
        table = jnp.array([[0.3, -0.2], [0.1, 0.5], [0.0, 0.0]])
        params = {"policy": table[:num_states], "value": jnp.array([7.0, -1.1, 30.0])[:num_states]}
        rows = rollout.start(
            KEY, env, env.default_params, policies.tabular(num_states, 2), num_rows=16
        )
        state = WindowState(rows, eta=jnp.asarray(0.3))
        gradient, _, metrics = jax.jit(gradient_fn.step)(KEY, params, state)
        return jax.tree.map(lambda x: x[:2], gradient), metrics

    renewed, metrics = run(mdp, 3, renewal=True)
    expected, none = run(chain_of_two, 2, renewal=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), renewed, expected)
    assert metrics["ends"] > 10 and none["ends"] == 0
    # Every end pays one, and nothing else does.
    np.testing.assert_allclose(metrics["ends"], metrics["reward"] * metrics["env_steps"])
    cut, _ = run(mdp, 3, renewal=False)
    assert np.abs(cut["policy"] - expected["policy"]).max() > 1e-2


def best_eta():
    """The best average reward over all deterministic policies."""
    return max(
        eta(np.where(np.arange(NUM_ACTIONS) == np.array(choice)[:, None], 500.0, 0.0))
        for choice in itertools.product(range(NUM_ACTIONS), repeat=NUM_STATES)
    )


def trained(gradient_fn, params, num_steps, learning_rate=0.1):
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def run(key):
        state = train.init(key, params, optimizer, gradient_fn)
        return train.train(key, state, gradient_fn, optimizer, num_steps=num_steps)

    return run(KEY)


@pytest.mark.parametrize("which", ["average_reward", "gpomdp"])
def test_learns_nearly_the_best_policy(which):
    env, policy = continuing(), policies.tabular(NUM_STATES, NUM_ACTIONS)
    start = jnp.zeros((NUM_STATES, NUM_ACTIONS))
    if which == "gpomdp":
        params = start
        gradient_fn = gradients.gpomdp(
            env, env.default_params, policy, beta=0.9, num_rows=32, horizon=32
        )
    else:
        params = {"policy": start, "value": jnp.zeros(NUM_STATES)}
        gradient_fn = window_gradient("gae", num_rows=32, horizon=32)
    state, metrics = trained(gradient_fn, params, num_steps=400)
    learned = state.params if which == "gpomdp" else state.params["policy"]
    best, first = best_eta(), eta(np.zeros((NUM_STATES, NUM_ACTIONS)))
    assert eta(np.asarray(learned)) > best - 0.05 * (best - first)
    np.testing.assert_allclose(metrics["eta"][-1], eta(np.asarray(learned)), atol=0.1)
    assert state.gradient_state.rows.time > 400 * 8 and state.skipped == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "num_rows=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_rows": 2**20, "horizon": 2**11}, "must be below 2\\*\\*31 steps"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"eta_step_size": 1.5}, "eta_step_size=1.5"),
        ({"value_function": None}, "needs a value function"),
        ({"hyper": Hyper(discount=0.99)}, "discount=0.99 must be 1"),
        ({"hyper": Hyper(discount=1.0, lambda_=2.0)}, "lambda=2.0"),
        ({"estimator": estimator("reward_to_go", "value")}, "form='reward_to_go'"),
        ({"estimator": estimator("gae", "leave_one_out"), "num_rows": 1}, "num_rows=1"),
        ({"policy": remembers(), "renewal": True}, "memory"),
    ],
)
def test_bad_input(arguments, message):
    env = continuing()
    defaults = {
        "policy": policies.tabular(NUM_STATES, NUM_ACTIONS),
        "estimator": estimator("gae", "none"),
        "hyper": Hyper(discount=1.0),
        "num_rows": 2,
        "horizon": 4,
        "value_function": policies.tabular_value(NUM_STATES),
    }
    with pytest.raises(ValueError, match=message):
        gradients.average_reward_gradient(env, env.default_params, **defaults | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.0}, "beta=1.0 must be below 1"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"baseline": "leave_one_ou"}, "did you mean 'leave_one_out'"),
        ({"baseline": "value"}, "needs a value function"),
        ({"baseline": "constant"}, "baseline='constant' has no number"),
        ({"baseline": "leave_one_out", "num_rows": 1}, "num_rows=1"),
        ({"num_rows": 0}, "num_rows=0"),
    ],
)
def test_gpomdp_refuses_bad_input(arguments, message):
    env, policy = continuing(), policies.tabular(NUM_STATES, NUM_ACTIONS)
    defaults = {"beta": 0.9, "num_rows": 2, "horizon": 4}
    with pytest.raises(ValueError, match=message):
        gradients.gpomdp(env, env.default_params, policy, **defaults | arguments)


def test_seeds_can_be_vmapped():
    gradient_fn = window_gradient(num_rows=4)
    params = {"policy": jnp.asarray(LOGITS), "value": jnp.zeros(NUM_STATES)}

    def run(key):
        return gradient_fn.step(key, params, gradient_fn.init(key, params))[0]["policy"]

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_allclose(together[1], jax.jit(run)(keys[1]), atol=1e-12)
