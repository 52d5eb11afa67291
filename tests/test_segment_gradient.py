"""The actor-critic gradient of windows: its mean by numpy, its metrics by hand, and its joints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from pgjax import environments, gradients, policies, rollout, train
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator
from pgjax.gradients import trajectory_gradient, values

from .enumeration import (
    complex_step,
    endless_values,
    random_problem,
    softmax,
    sum_of_powers,
    under_policy,
)
from .test_segments import remembers, walk

KEY = jax.random.key(0)
PROBLEM = random_problem(0)
NUM_STATES, NUM_ACTIONS = PROBLEM.logits.shape
VALUE = policies.tabular_value(NUM_STATES)
GAE = estimator("gae", "none", "uniform")
EPISODE = ("return", "discounted_return", "episode_length")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# --- the witness: numpy, and nothing of pgjax -----------------------------------------------------


def score_times_advantage(discount):
    """E_a[grad log pi(a | s) A(s, a)] of every state, `[S, A]`."""
    policy, value = softmax(PROBLEM.logits), endless_values(PROBLEM, discount)
    q = np.einsum("sak,sak->sa", PROBLEM.transition, PROBLEM.reward + discount * value)
    advantage = (q - np.sum(policy * q, axis=1, keepdims=True)) * ~PROBLEM.terminal[:, None]
    return policy * advantage


def with_restarts():
    """Moves of persistent rows: where an episode ends, another begins."""
    move, _ = under_policy(PROBLEM)
    leaving = (1 - move.sum(axis=1)) * ~PROBLEM.terminal
    return move + leaving[:, None] * PROBLEM.initial


def visits(first, horizon):
    """Expected visits of a row's steps `first` to `first + horizon`, `[S]`, after `start`."""
    laws = [PROBLEM.initial]
    for _ in range(first + horizon - 1):
        laws.append(laws[-1] @ with_restarts())
    return np.sum(laws[first:], axis=0)


def mean_gradient(discount, first, horizon):
    """Of the window from step `first` on, with exact values: `[S, A]`."""
    return visits(first, horizon)[:, None] * score_times_advantage(discount)


def grad_return():
    """grad J at discount one, by complex steps through the values."""
    return complex_step(
        lambda logits: PROBLEM.initial @ endless_values(PROBLEM, 1.0, logits), PROBLEM.logits
    )


def test_undiscounted_the_mean_is_the_gradient_times_the_episodes_that_pass():
    """T / E[L] grad J in the long run; with a discount it points elsewhere."""
    move, _ = under_policy(PROBLEM)
    length = (PROBLEM.initial @ sum_of_powers(move)).sum()
    expected = 10 / length * grad_return()
    np.testing.assert_allclose(mean_gradient(1.0, 500, 10), expected, atol=1e-10)
    assert np.abs(mean_gradient(1.0, 0, 10) - expected).max() > 1e-2
    true = complex_step(
        lambda logits: PROBLEM.initial @ endless_values(PROBLEM, 0.5, logits), PROBLEM.logits
    )
    cosine = np.sum(true * mean_gradient(0.5, 500, 10)) / (
        np.linalg.norm(true) * np.linalg.norm(mean_gradient(0.5, 500, 10))
    )
    assert cosine < 0.99


# --- the mean -------------------------------------------------------------------------------------


def make(env, num_rows, horizon, *, choice=GAE, hyper=Hyper(discount=0.7, lambda_=0.6), **rest):
    policy = policies.tabular(NUM_STATES, NUM_ACTIONS)
    return gradients.segment_gradient(
        env,
        env.default_params,
        rest.pop("policy", policy),
        choice,
        hyper,
        num_rows=num_rows,
        horizon=horizon,
        value_function=VALUE,
        **rest,
    )


@functools.cache
def second_windows(choice, hyper, num_samples=20_000, horizon=4):
    """`params -> [M, S, A]`: gradients of the second windows of single rows."""
    mdp = MDP(PROBLEM.transition, PROBLEM.reward, PROBLEM.initial, PROBLEM.terminal)
    gradient_fn = make(environments.tabular_mdp(mdp), 1, horizon, choice=choice, hyper=hyper)

    @jax.jit
    def sample(params):
        def one(key):
            keys = jax.random.split(key, 3)
            state = gradient_fn.init(keys[0], params)
            _, state, _ = gradient_fn.step(keys[1], params, state)
            return gradient_fn.step(keys[2], params, state)[0]["policy"]

        return jax.vmap(one)(jax.random.split(KEY, num_samples))

    return sample


def largest_z(samples, truth):
    """The worst error in standard errors, over the entries that vary."""
    samples = np.asarray(samples)
    spread = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    live = spread > 0
    assert live.sum() == 2 * 3 and np.all(truth[~live] == 0)
    return np.abs((np.mean(samples, axis=0) - truth)[live] / spread[live]).max()


BOUND = scipy.stats.norm.isf(1e-4 / (2 * NUM_STATES * NUM_ACTIONS * 10))


@pytest.mark.parametrize(
    ("form", "discount", "lambda_"),
    [("td_residual", 0.7, 0.0), ("gae", 0.7, 0.6), ("gae", 1.0, 1.0), ("n_step", 1.0, 0.0)],
)
def test_unbiased_with_exact_values_and_not_with_others(form, discount, lambda_):
    """In rows that are in the midst of episodes; at lambda = 1 too the window's end needs V."""
    baseline = "value" if form == "n_step" else "none"
    sample = second_windows(
        estimator(form, baseline, "uniform"), Hyper(discount=discount, lambda_=lambda_, n=2)
    )
    exact = endless_values(PROBLEM, discount)
    truth = mean_gradient(discount, first=4, horizon=4)
    for value, honest in ((exact, True), (exact + [2.0, -1.0, 0.5, 0.0], False)):
        samples = sample({"policy": jnp.asarray(PROBLEM.logits), "value": jnp.asarray(value)})
        assert (largest_z(samples, truth) < BOUND) == honest
        if honest:  # neither is it the mean of the first window
            assert largest_z(samples, mean_gradient(discount, 0, 4)) > BOUND


# --- windows of a walk that is cut by a time limit ------------------------------------------------

WALK, NUM_ROWS, HORIZON = walk(), 4, 10
WALK_VALUE = policies.tabular_value(5)
PARAMS = {
    "policy": np.random.default_rng(1).normal(size=(5, 2)),
    "value": np.random.default_rng(2).normal(size=5),
}


def of_walk(horizon=HORIZON, *, choice=GAE, hyper=Hyper(discount=0.7, lambda_=0.6), policy=None):
    return gradients.segment_gradient(
        WALK,
        WALK.default_params,
        policy or policies.tabular(5, 2),
        choice,
        hyper,
        num_rows=NUM_ROWS,
        horizon=horizon,
        value_function=WALK_VALUE,
    )


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


@pytest.mark.parametrize("policy", [policies.tabular(5, 2), remembers()], ids=["none", "memory"])
@pytest.mark.parametrize("baseline", ["none", "standardise"])
def test_is_the_gradient_of_the_window(policy, baseline):
    """Its own window played again, whose memory starts where the window before left it."""
    choice, hyper = estimator("gae", baseline, "uniform"), Hyper(discount=0.7, entropy_cost=0.1)
    gradient_fn = of_walk(choice=choice, hyper=hyper, policy=policy)
    step = jax.jit(gradient_fn.step)
    _, state, _ = step(KEY, params(), gradient_fn.init(KEY, params()))
    key = jax.random.key(1)
    gradient, after, metrics = step(key, params(), state)
    window, rows = jax.jit(
        lambda rows: rollout.segments(
            key, WALK, WALK.default_params, policy, params()["policy"], rows, horizon=HORIZON
        )
    )(state.rows)
    value, next_value = values(WALK_VALUE, params()["value"], window)
    expected = trajectory_gradient(
        params()["policy"],
        window,
        policy=policy,
        estimator=choice,
        hyper=hyper,
        value=value,
        next_value=next_value,
        policy_state=state.rows.policy_state,
    )
    np.testing.assert_allclose(gradient["policy"], expected, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, after.rows, rows)
    assert metrics["env_steps"] == NUM_ROWS * HORIZON and metrics["value_loss"] > 0
    np.testing.assert_allclose(metrics["entropy"], -np.mean(window.log_prob), rtol=1e-12)
    step(key, params(), after)
    assert step._cache_size() == 1


def by_hand(gradient_fn, num_windows, discount):
    """`(return, discounted return, length)` of every episode, by a loop over steps and rows."""
    state = gradient_fn.init(KEY, params())
    rewards, ended = [[] for _ in range(NUM_ROWS)], []
    play = jax.jit(
        lambda rows: rollout.segments(
            KEY,
            WALK,
            WALK.default_params,
            policies.tabular(5, 2),
            params()["policy"],
            rows,
            horizon=num_windows * HORIZON,
        )
    )
    window, rows = play(state.rows)
    ends = np.array(window.terminated | window.truncated)
    ends[:, -1] = rows.elapsed == 0
    for time in range(num_windows * HORIZON):
        if time % HORIZON == 0:
            ended.append([])
        for row, so_far in enumerate(rewards):
            so_far.append(float(window.reward[row, time]))
            if ends[row, time]:
                discounted = sum(r * discount**t for t, r in enumerate(so_far))
                ended[-1].append((sum(so_far), discounted, len(so_far)))
                so_far.clear()
    return ended


def test_metrics_are_of_the_episodes_that_ended():
    """Counted from their true start, windows before this one included."""
    gradient_fn = of_walk()
    step, state = jax.jit(gradient_fn.step), gradient_fn.init(KEY, params())
    for ended in by_hand(gradient_fn, 3, discount=0.7):
        _, state, metrics = step(KEY, params(), state)
        assert metrics["ends"] == len(ended) > NUM_ROWS
        found = [metrics[name] for name in EPISODE]
        np.testing.assert_allclose(found, np.mean(ended, axis=0), atol=1e-12)


def counting(length):
    """Episodes of `length` steps, each of which pays one."""
    transition = np.zeros((length + 1, 1, length + 1))
    transition[np.arange(length), 0, np.arange(length) + 1] = transition[length, 0, length] = 1
    start, terminal = np.eye(length + 1)[0], np.arange(length + 1) == length
    return environments.tabular_mdp(MDP(transition, np.ones(transition.shape), start, terminal))


def test_metrics_before_and_between_ends():
    """Episodes of five steps in windows of two: NaN, NaN, a fifth step, nothing new, a tenth."""
    env = counting(5)
    gradient_fn = gradients.segment_gradient(
        env,
        env.default_params,
        policies.tabular(6, 1),
        GAE,
        Hyper(discount=0.5),
        num_rows=3,
        horizon=2,
        value_function=policies.tabular_value(6),
    )
    start = {"policy": jnp.zeros((6, 1)), "value": jnp.zeros(6)}
    state, found = gradient_fn.init(KEY, start), []
    step = jax.jit(gradient_fn.step)
    for _ in range(5):
        _, state, metrics = step(KEY, start, state)
        found.append([int(metrics["ends"]), *(float(metrics[name]) for name in EPISODE)])
    nothing, whole = [0, np.nan, np.nan, np.nan], [5.0, 1.9375, 5.0]
    np.testing.assert_array_equal(found, [nothing, nothing, [3, *whole], [0, *whole], [3, *whole]])


def test_two_windows_are_one_of_twice_the_length():
    """What is carried is the same; so is the sum of gradients that do not look past a step."""
    choice, hyper = estimator("td_residual", "none", "uniform"), Hyper(discount=0.7)
    half, whole = (of_walk(n, choice=choice, hyper=hyper) for n in (HORIZON, 2 * HORIZON))
    state = half.init(KEY, params())
    together, last, metrics = jax.jit(whole.step)(KEY, params(), state)
    step = jax.jit(half.step)
    first, between, one = step(KEY, params(), state)
    second, after, two = step(KEY, params(), between)
    np.testing.assert_allclose(first["policy"] + second["policy"], together["policy"], atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, after.rows, last.rows)
    for name in EPISODE:
        np.testing.assert_allclose(after.under_way[name], last.under_way[name], atol=1e-12)
        joined = (one[name] * one["ends"] + two[name] * two["ends"]) / metrics["ends"]
        np.testing.assert_allclose(metrics[name], joined, atol=1e-12)


def test_training_goes_on_from_a_saved_state():
    gradient_fn, optimizer = of_walk(), optax.adam(0.1)

    @functools.partial(jax.jit, static_argnums=1)
    def run(state, num_steps):
        return train.train(KEY, state, gradient_fn, optimizer, num_steps=num_steps)

    start = train.init(KEY, params(), optimizer, gradient_fn)
    whole, metrics = run(start, 6)
    kept, _ = run(start, 3)
    resumed, _ = run(jax.tree.map(jnp.asarray, jax.device_get(kept)), 3)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert whole.skipped == 0 and whole.gradient_state.rows.time == 6 * HORIZON
    assert np.all(np.isfinite(metrics["return"])) and run._cache_size() == 2


def test_seeds_and_hyperparameters_can_be_vmapped():
    def run(key, hyper):
        gradient_fn = of_walk(hyper=hyper)
        state = gradient_fn.init(key, params())
        gradient, _, metrics = gradient_fn.step(key, params(), state)
        return gradient, metrics

    keys = jax.random.split(KEY, 3)
    several = Hyper(
        discount=jnp.array([0.5, 0.7, 1.0]),
        lambda_=jnp.array([0.0, 0.6, 1.0]),
        n=jnp.full(3, 5.0),
        constant=jnp.zeros(3),
        entropy_cost=jnp.array([0.0, 0.1, 0.2]),
    )
    together, alone = jax.jit(jax.vmap(run))(keys, several), jax.jit(run)
    close = functools.partial(np.testing.assert_allclose, atol=1e-12)
    for index in range(3):
        take = lambda x, index=index: x[index]
        expected = alone(keys[index], jax.tree.map(take, several))
        jax.tree.map(close, jax.tree.map(take, together), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "num_rows=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_rows": 2**20, "horizon": 2**11}, "must be below 2\\*\\*31 steps"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"value_function": None}, "needs a value function"),
        ({"hyper": Hyper(discount=1.5)}, "discount=1.5"),
        (
            {"estimator": estimator("reward_to_go", "value", "uniform")},
            "the rest of a window",
        ),
        (
            {"estimator": estimator("gae", "none", "discounted")},
            "the start of an episode",
        ),
        ({"estimator": estimator("gae", "standardise", "uniform"), "num_rows": 1}, "num_rows=1"),
    ],
)
def test_bad_input(arguments, message):
    defaults = {
        "policy": policies.tabular(5, 2),
        "estimator": GAE,
        "hyper": Hyper(),
        "num_rows": 2,
        "horizon": 4,
        "value_function": WALK_VALUE,
    }
    with pytest.raises(ValueError, match=message):
        gradients.segment_gradient(WALK, WALK.default_params, **defaults | arguments)
