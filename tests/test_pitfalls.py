"""The pitfalls of policy gradients that estimators, rollouts and gradients must not fall into.

Each test bears the number of its pitfall in the catalogue of the estimators; most also build the
mistake itself and check that it would have been caught. Pitfalls of single kernels (long-horizon
sums, tanh and its entropy, the ends of GAE, higher derivatives) are tested where those kernels are.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pgjax import environments, policies
from pgjax.estimators import (
    FORMS,
    Hyper,
    Steps,
    estimator,
    is_unbiased,
    psi,
)
from pgjax.gradients import make_steps, policy_gradient, trajectory_gradient
from pgjax.rollout import Trajectory, episodes
from pgjax.score import surrogate

from .choices import ACCEPTED, BOOTSTRAPPING, COUPLED_ONES, UNCOUPLED_ONES
from .enumeration import enumerate_paths, exact_gradient, problem, scores, softmax

HYPER = Hyper(discount=0.5, lambda_=0.7, n=2, constant=0.37)
LOGITS = np.array([[0.3, -0.2], [-0.4, 0.6], [0.1, 0.2]])
LEVEL = 1e-4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


REPRESENTATIVE = [
    estimator("total_return", "constant", "uniform"),
    estimator("reward_to_go", "leave_one_out", "discounted"),
    estimator("n_step", "standardise", "discounted"),
    estimator("gae", "value", "discounted"),
]


def each(choices):
    return pytest.mark.parametrize("choice", choices, ids="-".join)


def steps_of(reward, *, value=0.0, next_value=0.0, terminated=0.0, boundary=None, mask=1.0):
    """Steps from rows of rewards; the boundary is at the natural ends unless given."""
    boundary = terminated if boundary is None else boundary
    columns = np.broadcast_arrays(reward, value, next_value, terminated, boundary, mask)
    return Steps(*(jnp.asarray(column, float) for column in columns))


def trajectory_of(obs, action, reward, mask, terminated, truncated):
    return Trajectory(
        obs=jnp.asarray(obs, jnp.int32),
        action=jnp.asarray(action, jnp.int32),
        log_prob=jnp.zeros(np.shape(reward)),
        reward=jnp.asarray(reward, float),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
        mask=jnp.asarray(mask, float),
    )


@functools.cache
def compiled_gradient(choice):
    return jax.jit(
        functools.partial(
            trajectory_gradient,
            policy=policies.tabular(*LOGITS.shape),
            estimator=choice,
            hyper=HYPER,
        )
    )


def gradient_of(trajectory, choice, **values):
    """trajectory_gradient of a tabular policy over the states and actions of `LOGITS`."""
    arrays = {name: jnp.asarray(value, float) for name, value in values.items()}
    return compiled_gradient(choice)(jnp.asarray(LOGITS), trajectory, **arrays)


def score(state, action):
    """grad log pi(action | state) in the logits, [S, A]."""
    gradient = np.zeros(LOGITS.shape)
    gradient[state] = np.eye(LOGITS.shape[1])[action] - softmax(LOGITS)[state]
    return gradient


@functools.cache
def compiled_weights(family):
    """psi of a family of estimators, as one program: faster than a program for each."""
    return jax.jit(lambda steps, hyper: [psi(choice, steps, hyper) for choice in family])


def weights_of(choice, steps, hyper=HYPER):
    family = tuple(UNCOUPLED_ONES if choice in UNCOUPLED_ONES else COUPLED_ONES)
    return np.asarray(compiled_weights(family)(steps, hyper)[family.index(choice)])


def batch_weights(choice, trajectory, values, hyper=HYPER):
    """psi of what the gradient reads of a Trajectory."""
    arrays = {name: jnp.asarray(value, float) for name, value in values.items()}
    return weights_of(choice, make_steps(choice, trajectory, **arrays), hyper)


def random_batch(lengths, horizon, seed=0):
    """A Trajectory of given lengths, every other row truncated, and values for it."""
    random = np.random.default_rng(seed)
    shape = (len(lengths), horizon)
    mask = np.arange(horizon) < np.array(lengths)[:, None]
    last = np.arange(horizon) == np.array(lengths)[:, None] - 1
    natural = (np.arange(len(lengths)) % 2 == 0)[:, None]
    trajectory = trajectory_of(
        obs=random.integers(LOGITS.shape[0], size=shape) * mask,
        action=random.integers(LOGITS.shape[1], size=shape) * mask,
        reward=random.normal(size=shape) * mask,
        mask=mask,
        terminated=last & natural,
        truncated=last & ~natural,
    )
    value, next_value = random.normal(size=(2, *shape)) * mask
    return trajectory, {"value": value, "next_value": next_value}


def chain_environment(length, rewards):
    """States 0 -> 1 -> ... -> length (terminal), whatever the action of two."""
    num_states = length + 1
    following = np.minimum(np.arange(num_states) + 1, length)
    transition = np.repeat(np.eye(num_states)[following][:, None], 2, axis=1)
    reward = np.zeros((num_states, 2, num_states))
    reward[:length] = np.asarray(rewards)[:, None, None]
    terminal = np.arange(num_states) == length
    mdp = environments.MDP(transition, reward, np.eye(num_states)[0], terminal)
    env = environments.tabular_mdp(mdp)
    return env, env.default_params


def test_01_the_discount_is_in_every_weight():
    reward = np.array([[1.0, -2.0, 4.0]])
    steps = steps_of(reward, terminated=[[0, 0, 1]])
    discounted = psi(estimator("reward_to_go", "none", "discounted"), steps, HYPER)
    uniform = psi(estimator("reward_to_go", "none", "uniform"), steps, HYPER)
    to_go = [1 - 2 / 2 + 4 / 4, -2 + 4 / 2, 4]
    np.testing.assert_allclose(uniform, [to_go], atol=1e-12)
    np.testing.assert_allclose(discounted, [[1.0, 0.0, 1.0]], atol=1e-12)
    assert np.abs(discounted - uniform).max() > 1


@pytest.mark.parametrize("baseline, share", [("leave_one_out", 1.0), ("batch_mean", 0.5)])
def test_02_two_episodes_give_the_whole_gradient(baseline, share):
    """A bandit, r = a: all four batches of two, weighted by their probability."""
    chance = softmax(LOGITS)[0]
    total = 0.0
    for pair in itertools.product([0, 1], repeat=2):
        actions = np.array(pair)[:, None]
        ones = np.ones((2, 1))
        batch = trajectory_of(0 * actions, actions, actions, ones, ones, 0 * ones)
        choice = estimator("reward_to_go", baseline, "discounted")
        total += chance[list(pair)].prod() * gradient_of(batch, choice)[0, 1]
    assert total == pytest.approx(share * chance[0] * chance[1], abs=1e-12)


@each([choice for choice in ACCEPTED if is_unbiased(choice, HYPER._replace(lambda_=1.0))[0]])
def test_03_ten_times_the_reward_is_ten_times_the_weight(choice):
    hyper = HYPER._replace(lambda_=1.0)
    trajectory, values = random_batch([2, 4, 1], 4)
    weights = batch_weights(choice, trajectory, values, hyper)
    larger = batch_weights(
        choice,
        trajectory._replace(reward=10 * trajectory.reward),
        {name: 10 * value for name, value in values.items()},
        hyper._replace(constant=10 * hyper.constant),
    )
    assert np.abs(weights).max() > 1e-2
    np.testing.assert_allclose(larger, 10 * weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_03_standardised_weights_do_not_follow_the_scale_and_are_labelled_biased(form):
    choice = estimator(form, "standardise", "discounted")
    assert not is_unbiased(choice, HYPER._replace(discount=1.0, lambda_=1.0))[0]
    trajectory, values = random_batch([2, 4, 1], 4)
    larger = trajectory._replace(reward=10 * trajectory.reward)
    scaled = batch_weights(choice, larger, {name: 10 * value for name, value in values.items()})
    weights = batch_weights(choice, trajectory, values)
    np.testing.assert_allclose(scaled, weights, rtol=1e-9, atol=1e-9)


def test_04_standardising_is_over_the_batch():
    """A good first action costs one at once and brings three: within its own row, it looks bad.

    All four pairs of fair actions in one batch, r = (-a_0, 3 a_0): the second step's scores cancel.
    """
    action = np.array(list(itertools.product([0, 1], repeat=2)))
    steps = steps_of(action[:, :1] * [[-1.0, 3.0]], terminated=[[0, 1]])
    hyper = HYPER._replace(discount=1.0)
    choice = estimator("reward_to_go", "standardise", "uniform")

    def uphill(weights):
        return np.sum(weights * (action - 0.5)) / len(action)

    to_go = np.asarray(psi(estimator("reward_to_go", "none", "uniform"), steps, hyper))
    own_mean, own_std = to_go.mean(1, keepdims=True), to_go.std(1, keepdims=True)
    within_row = np.divide(to_go - own_mean, own_std, out=0 * to_go, where=own_std > 0)
    assert uphill(to_go) > 0.1
    assert uphill(np.asarray(psi(choice, steps, hyper))) > 0.1
    assert uphill(within_row) < -0.1
    with pytest.raises(ValueError, match="standardise"):
        psi(choice, jax.tree.map(lambda x: x[:1], steps), hyper)


def padded_with_garbage(trajectory, values):
    """Three more steps a row; whatever is not live is not finite, not legal or a false flag."""
    dead = np.pad(np.asarray(trajectory.mask), ((0, 0), (0, 3))) == 0
    garbage = np.where(np.arange(dead.shape[1]) % 2, np.nan, np.inf)

    def pad(array, filling):
        return np.where(dead, filling, np.pad(np.asarray(array), ((0, 0), (0, 3))))

    padded = trajectory_of(
        obs=pad(trajectory.obs, 10**6),
        action=pad(trajectory.action, -7),
        reward=pad(trajectory.reward, garbage),
        mask=pad(trajectory.mask, 0),
        terminated=pad(trajectory.terminated, True),
        truncated=pad(trajectory.truncated, True),
    )._replace(log_prob=jnp.asarray(pad(trajectory.log_prob, garbage)))
    return padded, {name: pad(value, garbage) for name, value in values.items()}


@each(ACCEPTED)
def test_05_padding_and_what_stands_in_it_change_no_weight(choice):
    trajectory, values = random_batch([2, 4, 1], 4)
    padded, padded_values = padded_with_garbage(trajectory, values)
    weights = batch_weights(choice, padded, padded_values)
    expected = np.pad(batch_weights(choice, trajectory, values), ((0, 0), (0, 3)))
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    unmasked = padded._replace(mask=jnp.ones(weights.shape))
    assert not np.isfinite(batch_weights(choice, unmasked, padded_values)).all()


@each(REPRESENTATIVE)
def test_05_padding_and_what_stands_in_it_do_not_change_the_gradient(choice):
    trajectory, values = random_batch([2, 4, 1], 4)
    padded, padded_values = padded_with_garbage(trajectory, values)
    expected = gradient_of(trajectory, choice, **values)
    np.testing.assert_allclose(gradient_of(padded, choice, **padded_values), expected, atol=1e-12)


def test_05_every_episode_keeps_its_weight():
    """The mean over episodes; a mean over steps would favour the short ones' neighbours."""
    choice = estimator("reward_to_go", "none", "discounted")
    trajectory, _ = random_batch([2, 4, 1], 4)
    rows = jax.tree.map(lambda x: x[:, None], trajectory._replace(final_obs=None))
    alone = np.asarray(jax.vmap(lambda row: gradient_of(row, choice))(rows))
    together = gradient_of(trajectory, choice)
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-12)
    mean_over_steps = np.sum(alone, axis=0) / np.sum(trajectory.mask)
    assert np.abs(together - mean_over_steps).max() > 1e-2


def test_06_the_last_action_and_its_reward_count():
    """States 0, 1 and a dead 2: the gradient's rows show which steps were scored."""
    flags = np.array([[0, 1, 0]])
    trajectory = trajectory_of(
        [[0, 1, 2]], [[1, 0, 1]], [[0.0, 5.0, 0.0]], [[1, 1, 0]], flags, 0 * flags
    )
    choice = estimator("reward_to_go", "constant", "uniform")
    gradient = gradient_of(trajectory, choice)
    expected = (2.5 - 0.37) * score(0, 1) + (5 - 0.37) * score(1, 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    for wrong in ([[1, 0, 0]], [[1, 1, 1]]):
        control = gradient_of(trajectory._replace(mask=jnp.asarray(wrong, float)), choice)
        assert np.abs(control - expected).max() > 0.1


@pytest.mark.parametrize("horizon", [2, 3, 40])
def test_06_rollouts_keep_the_last_step(horizon):
    """Three steps to the end, the last one paid: kept by every horizon that reaches it."""
    env, env_params = chain_environment(3, [0.0, 0.0, 5.0])
    trajectory = episodes(
        jax.random.key(0),
        env,
        env_params,
        policies.tabular(4, 2),
        jnp.zeros((4, 2)),
        num_episodes=2,
        horizon=horizon,
    )
    live = min(horizon, 3)
    expected = {
        "obs": [0, 1, 2][:live],
        "mask": [1] * live,
        "reward": [0.0, 0.0, 5.0][:live],
        "terminated": [False, False, True][:live],
    }
    for name, column in expected.items():
        array = np.asarray(getattr(trajectory, name))
        assert array.shape == (2, horizon)
        np.testing.assert_array_equal(array[:, :live], [column, column])
        if name != "obs":
            assert not array[:, live:].any()
    cut = np.asarray(trajectory.truncated & ~trajectory.terminated)
    np.testing.assert_array_equal(cut.sum(axis=1), [horizon < 3] * 2)
    assert cut[:, live - 1].all() == (horizon < 3)


def test_07_the_return_starts_with_its_own_reward():
    steps = steps_of([[1.0, 2.0, 4.0]], terminated=[[0, 0, 1]])
    weights = np.asarray(psi(estimator("reward_to_go", "none", "uniform"), steps, HYPER))
    np.testing.assert_allclose(weights, [[3.0, 4.0, 4.0]], atol=1e-12)
    shifted = [[2 + 4 / 2, 4.0, 0.0]]
    assert np.abs(weights - shifted).max() >= 1


def two_in_one_row():
    """An episode of three steps (cut) and one of two (ended), in one row."""
    reward, value, next_value = np.random.default_rng(6).normal(size=(3, 1, 5))
    terminated, boundary = np.array([[0, 0, 0, 0, 1]]), np.array([[0, 0, 1, 0, 1]])
    return steps_of(
        reward, value=value, next_value=next_value, terminated=terminated, boundary=boundary
    )


def in_two_rows(row):
    """The same two episodes, a row each."""

    def split(x):
        return jnp.stack([x[0].at[3:].set(0), jnp.roll(x[0].at[:3].set(0), -3)])

    return jax.tree.map(split, row)


@each(UNCOUPLED_ONES)
def test_08_two_episodes_in_a_row_equal_two_rows(choice):
    """Returns, traces and the powers of gamma all start again after a boundary."""
    row = two_in_one_row()
    weights, expected = weights_of(choice, row), weights_of(choice, in_two_rows(row))
    expected = np.concatenate([expected[:1, :3], expected[1:, :2]], axis=1)
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    leaking = weights_of(choice, row._replace(boundary=jnp.zeros((1, 5))))
    local = choice.form == "td_residual" and choice.state_weighting == "uniform"
    assert (np.abs(leaking - expected).max() > 1e-3) != local


@each(UNCOUPLED_ONES)
def test_09_nothing_bootstraps_from_the_observation_after_reset(choice):
    """V of the first observation of the next episode stands next to the end; it is not its value.

    What follows a natural end is worth zero whatever V says of it.
    """
    row = two_in_one_row()
    plain = weights_of(choice, row)
    reset = weights_of(choice, row._replace(value=row.value.at[0, 3].set(1e6)))
    np.testing.assert_array_equal(reset[:, :3], plain[:, :3])
    ended = weights_of(choice, row._replace(next_value=row.next_value.at[0, 4].set(1e6)))
    np.testing.assert_array_equal(ended, plain)
    cut = weights_of(choice, row._replace(next_value=row.next_value.at[0, 2].set(1e6)))
    assert (np.abs(cut - plain).max() > 1e3) == (choice.form in BOOTSTRAPPING)


@pytest.mark.parametrize("form", BOOTSTRAPPING)
def test_09_rollouts_bootstrap_from_the_true_next_observation(form):
    """0 -> 1 -> 2 -> 3, cut after two steps in front of 2; rows of the gradient are states."""
    env, env_params = chain_environment(3, [1.0, 2.0, 5.0])
    gradient_fn = policy_gradient(
        env,
        env_params,
        policies.tabular(4, 2),
        estimator(form, "value", "discounted"),
        HYPER._replace(n=1),
        num_episodes=3,
        horizon=2,
        value_function=policies.tabular_value(4),
    )
    compiled = jax.jit(gradient_fn)

    def second_row(value):
        params = {"policy": jnp.zeros((4, 2)), "value": jnp.array(value)}
        gradient, _ = compiled(jax.random.key(0), params)
        return np.asarray(gradient["policy"][1])

    plain = second_row([0.0, 1.0, 7.0, 0.0])
    np.testing.assert_array_equal(second_row([1e6, 1.0, 7.0, 0.0]), plain)
    without_future = second_row([0.0, 1.0, 0.0, 0.0])
    advantage, advantage_without = 2.0 + 0.5 * 7.0 - 1.0, 2.0 - 1.0
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(plain / advantage, without_future / advantage_without, atol=1e-12)


@pytest.mark.parametrize("form", BOOTSTRAPPING)
def test_10_truncation_is_not_termination(form):
    """r = (1 - gamma) c and V = c: no action is better than expected, wherever the row is cut."""
    c, choice = 3.0, estimator(form, "value", "discounted")
    last = np.array([[0, 0, 1, 0], [0, 0, 0, 1]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    reward = (1 - HYPER.discount) * c * mask
    cut = steps_of(reward, value=c, next_value=c, boundary=last, mask=mask)
    np.testing.assert_allclose(psi(choice, cut, HYPER), 0.0, atol=1e-12)
    ended = cut._replace(terminated=cut.boundary)
    assert np.abs(psi(choice, ended, HYPER)).max() > 0.1


@each(ACCEPTED)
def test_11_terminated_wins_over_truncated(choice):
    trajectory, values = random_batch([2, 4, 1], 4)
    ends, never = trajectory.terminated | trajectory.truncated, jnp.zeros((3, 4), bool)

    def weights(terminated, truncated):
        flagged = trajectory._replace(terminated=terminated, truncated=truncated)
        return batch_weights(choice, flagged, values)

    natural = weights(ends, never)
    np.testing.assert_array_equal(weights(ends, ends), natural)
    bootstraps = choice.form in BOOTSTRAPPING
    assert (np.abs(weights(never, ends) - natural).max() > 1e-3) == bootstraps


@each([estimator(form, "value", "discounted") for form in ("reward_to_go", "n_step", "gae")])
def test_12_the_policy_term_does_not_move_the_values(choice):
    random = np.random.default_rng(8)
    reward, log_prob, obs_value = (jnp.asarray(x) for x in random.normal(size=(3, 2, 4)))
    steps = steps_of(reward, terminated=np.eye(4)[[3, 3]])

    def policy_term(value, hold):
        next_value = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
        weights = psi(choice, steps._replace(value=value, next_value=next_value), HYPER)
        return surrogate(log_prob, weights) if hold else jnp.sum(weights * log_prob)

    assert not jax.grad(policy_term)(obs_value, True).any()
    if choice.form != "n_step":  # its loop has no backward pass, and needs none
        assert jnp.abs(jax.grad(policy_term)(obs_value, False)).max() > 1e-3


@pytest.mark.parametrize("form", ["reward_to_go", "td_residual"])
def test_12_values_follow_their_own_loss_only(form):
    """The value's gradient is that of its regression, whatever weights the policy's part."""
    env, env_params = chain_environment(2, [1.0, 5.0])
    value = np.array([0.3, -0.8, 0.0])
    gradient_fn = policy_gradient(
        env,
        env_params,
        policies.tabular(3, 2),
        estimator(form, "value", "discounted"),
        HYPER,
        num_episodes=4,
        horizon=3,
        value_function=policies.tabular_value(3),
    )
    compiled = jax.jit(gradient_fn)
    for logits in (jnp.zeros((3, 2)), jnp.asarray(LOGITS)):
        gradient, _ = compiled(jax.random.key(1), {"policy": logits, "value": jnp.asarray(value)})
        target = {"reward_to_go": [1 + 5 / 2, 5.0], "td_residual": [1 - 0.8 / 2, 5.0]}[form]
        error = np.array([*target, 0.0]) - value
        np.testing.assert_allclose(gradient["value"], error / 2, atol=1e-12)


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal", "beta"])
def test_13_the_sampled_action_is_scored_not_the_clipped_or_squashed_one(distribution):
    env, env_params = environments.make("Pendulum-v1")
    policy = policies.make(
        "linear", env, env_params, distribution=distribution, initial_log_std=0.7
    )
    params = policy.init(jax.random.key(0), jnp.ones(3))
    trajectory = episodes(
        jax.random.key(1), env, env_params, policy, params, num_episodes=20, horizon=10
    )
    flat = jax.tree.map(lambda x: x.reshape(200, *x.shape[2:]), trajectory._replace(final_obs=None))
    law = policy.unroll(params, (), flat.obs, jnp.zeros(200, bool))
    np.testing.assert_allclose(law.log_prob(flat.action), flat.log_prob, atol=1e-6)
    if distribution != "beta":  # beta samples are inside their bounds already
        altered = (
            jnp.clip(flat.action, -2, 2) if distribution == "normal" else jnp.tanh(flat.action)
        )
        assert jnp.abs(altered - flat.action).max() > 0.1
        assert jnp.abs(law.log_prob(altered) - flat.log_prob).max() > 0.1


def test_16_the_entropy_bonus_moves_the_policy():
    """Analytic at every step; the mean of the directly differentiated sample is zero."""
    world = problem()
    paths, policy = enumerate_paths(world), softmax(world.logits)
    choice = estimator("reward_to_go", "none", "uniform")
    trajectory = trajectory_of(
        paths.obs, paths.action, 0 * paths.reward, paths.mask, paths.terminated, paths.truncated
    )
    gradient = jax.jit(
        functools.partial(
            trajectory_gradient,
            policy=policies.tabular(3, 3),
            estimator=choice,
            hyper=Hyper(discount=0.8, entropy_cost=0.3),
        )
    )(jnp.asarray(world.logits), trajectory)
    entropy = -np.sum(policy * np.log(policy), axis=1, keepdims=True)
    slope = -policy * (np.log(policy) + entropy)  # of the entropy of each state in its logits
    visits = np.bincount(paths.obs[paths.mask > 0], minlength=3)[:, None] / len(paths.mask)
    np.testing.assert_allclose(gradient, 0.3 * visits * slope, atol=1e-12)
    assert np.abs(gradient).max() > 1e-3
    sampled = -np.einsum("m,mtsa->sa", paths.probability, scores(world, paths))
    np.testing.assert_allclose(sampled, 0.0, atol=1e-12)


def coin_counts(bits):
    """How often each pattern of coins came up; bits [N, D]."""
    return np.bincount(bits @ 2 ** np.arange(bits.shape[1]), minlength=2 ** bits.shape[1])


def test_18_starts_actions_and_transitions_are_drawn_apart():
    """A fair start, fair actions and fair transitions they do not affect: six independent coins."""
    fair = np.full((3, 2, 3), 0.5) * [1.0, 1.0, 0.0]
    mdp = environments.MDP(
        fair, 0 * fair, np.array([0.5, 0.5, 0.0]), np.array([False, False, True])
    )
    env = environments.tabular_mdp(mdp)
    trajectory = episodes(
        jax.random.key(18),
        env,
        env.default_params,
        policies.tabular(3, 2),
        jnp.zeros((3, 2)),
        num_episodes=10_000,
        horizon=3,
    )
    bits = np.concatenate([trajectory.obs, trajectory.action], axis=1)
    neighbours = np.concatenate([bits[:-1:2, [0, 3]], bits[1::2, [0, 3]]], axis=1)
    for coins in (bits, neighbours):
        assert scipy.stats.chisquare(coin_counts(coins)).pvalue > LEVEL
    one_key_for_both = bits.copy()
    one_key_for_both[:, 1] = bits[:, 3]
    assert scipy.stats.chisquare(coin_counts(one_key_for_both)).pvalue < LEVEL


def test_20_the_variance_of_the_gradient_is_that_of_one_episode_over_their_number():
    world, num_episodes = problem(), 8
    paths, hyper = enumerate_paths(world), Hyper(discount=0.8)
    to_go = np.stack(
        [paths.reward[:, t:] @ hyper.discount ** np.arange(3 - t) for t in range(3)], axis=1
    )
    weights = to_go * hyper.discount ** np.arange(3)
    per_path = np.einsum("mt,mtsa->msa", weights, scores(world, paths)).reshape(len(to_go), -1)
    square = paths.probability @ np.sum(per_path**2, axis=1)
    exact = exact_gradient(world, paths, hyper.discount).ravel()
    trace = square - exact @ exact
    env = environments.tabular_mdp(environments.MDP(*world[:4]))
    gradient_fn = policy_gradient(
        env,
        env.default_params,
        policies.tabular(3, 3),
        estimator("reward_to_go", "none", "discounted"),
        hyper,
        num_episodes=num_episodes,
        horizon=3,
    )
    keys = jax.random.split(jax.random.key(20), 4000)
    gradients, _ = jax.jit(jax.vmap(gradient_fn, (0, None)))(keys, jnp.asarray(world.logits))
    distance = np.sum((np.asarray(gradients).reshape(len(keys), -1) - exact) ** 2, axis=1)
    standard_error = distance.std() / np.sqrt(len(keys))

    def z(claim):
        return abs(distance.mean() - claim) / standard_error

    threshold = scipy.stats.norm.isf(LEVEL / 2)
    assert z(trace / num_episodes) < threshold
    per_step = trace / paths.mask.sum(axis=1).max()
    for wrong in (trace, trace / num_episodes**2, per_step / num_episodes):
        assert z(wrong) > threshold


@each(COUPLED_ONES)
def test_24_one_episode_is_refused_where_others_are_needed(choice):
    trajectory, values = random_batch([3], 4)
    with pytest.raises(ValueError, match=choice.baseline):
        gradient_of(trajectory, choice, **values)
    env, env_params = chain_environment(2, [1.0, 5.0])
    with pytest.raises(ValueError, match=choice.baseline):
        policy_gradient(
            env,
            env_params,
            policies.tabular(3, 2),
            choice,
            HYPER,
            num_episodes=1,
            horizon=3,
            value_function=policies.tabular_value(3),
        )


@each(COUPLED_ONES)
def test_24_no_spread_and_no_live_others_give_finite_weights(choice):
    mask, ends = np.array([[1, 1, 1], [1, 0, 0]]), np.array([[0, 0, 1], [1, 0, 0]])
    uneven = weights_of(choice, steps_of([[1.0, 2, 3], [1, 0, 0]], terminated=ends, mask=mask))
    assert np.isfinite(uneven).all() and np.abs(uneven).max() > 0
    for level in (0.0, 0.1, 1e6):
        equal = weights_of(choice, steps_of(np.full((2, 1), level), terminated=1.0))
        np.testing.assert_array_equal(equal, 0.0)
