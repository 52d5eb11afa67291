"""Every estimator against its formula, path by path, and against the exact gradient in the mean.

The formulas are written once more, as plain loops over time, in `formulas`; the trajectories,
probabilities and exact gradients come from `enumeration`, which knows nothing of pgjax. All of it
in float64.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pgjax import baselines, environments, estimators, exact, policies
from pgjax.distributions import categorical
from pgjax.estimators import (
    FORMS,
    Estimator,
    Hyper,
    Steps,
    estimator,
    is_unbiased,
    psi,
)
from pgjax.gradients import policy_gradient, squared_norms, trajectory_gradient
from pgjax.rollout import Trajectory, episodes

from .choices import ACCEPTED, BOOTSTRAPPING, COUPLED, COUPLED_ONES
from .enumeration import (
    discounted_return,
    enumerate_paths,
    exact_gradient,
    exact_gradient_by_induction,
    gradient_of_mean,
    problem,
    scores,
    softmax,
    values,
)
from .formulas import form_of, weights_of

HORIZON, NUM_STATES, NUM_ACTIONS = 3, 3, 3
GENERIC = Hyper(discount=0.8, lambda_=0.7, n=2, constant=0.37)
FAMILY_ERROR = 1e-3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# --- the enumerated world -------------------------------------------------------------------------


PROBLEM = problem(HORIZON)
PATHS = enumerate_paths(PROBLEM)
SCORES = scores(PROBLEM, PATHS)  # [M, T, S, A]
NUM_PATHS = len(PATHS.probability)


def value_arrays(table):
    """V_t(s_t) and V_{t+1}(s_{t+1}) for a table [T + 1, S], both [M, T]."""
    t = np.arange(HORIZON)
    return table[t, PATHS.obs], table[t + 1, PATHS.next_obs]


# Wrong everywhere, in the terminal state too (which must not be looked at), except at the horizon:
# the objective is finite-horizon, so what follows its last step is worth nothing.
WRONG_TABLE = np.random.default_rng(1).normal(size=(HORIZON + 1, NUM_STATES))
WRONG_TABLE[HORIZON] = 0.0
WRONG = value_arrays(WRONG_TABLE)


def trajectory_of(rows):
    """The Trajectory whose episodes are the paths `rows`, [..., K]."""
    log_prob = np.log(softmax(PROBLEM.logits)[PATHS.obs, PATHS.action]) * PATHS.mask
    return Trajectory(
        obs=jnp.asarray(PATHS.obs[rows]),
        action=jnp.asarray(PATHS.action[rows]),
        log_prob=jnp.asarray(log_prob[rows]),
        reward=jnp.asarray(PATHS.reward[rows]),
        terminated=jnp.asarray(PATHS.terminated[rows]),
        truncated=jnp.asarray(PATHS.truncated[rows]),
        mask=jnp.asarray(PATHS.mask[rows]),
    )


def batches_of(size):
    """All ordered batches of `size` paths and their probabilities, [B, K] and [B]."""
    rows = np.array(list(itertools.product(range(NUM_PATHS), repeat=size)))
    return rows, PATHS.probability[rows].prod(axis=1)


@functools.cache
def compiled_gradients(family):
    """trajectory_gradient of a family of estimators over a leading axis of batches."""

    def gradients(trajectory, value, next_value, hyper):
        return [
            trajectory_gradient(
                jnp.asarray(PROBLEM.logits),
                trajectory,
                policy=policies.tabular(NUM_STATES, NUM_ACTIONS),
                estimator=choice,
                hyper=hyper,
                value=value,
                next_value=next_value,
            )
            for choice in family
        ]

    return jax.jit(jax.vmap(gradients, in_axes=(0, 0, 0, None)))


def gradients_of(choice, rows, hyper, value_pair=WRONG):
    """Gradients of the batches `rows` [B, K] by pgjax, [B, S, A].

    One form compiles as one program: many times faster than a program for every estimator.
    """
    family = tuple(
        other
        for other in ACCEPTED
        if other.form == choice.form and batch_size(other) == batch_size(choice)
    )
    value, next_value = (jnp.asarray(array[rows]) for array in value_pair)
    gradients = compiled_gradients(family)(trajectory_of(rows), value, next_value, hyper)
    return np.asarray(gradients[family.index(choice)])


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def psi_of_coupled(trajectory, value, next_value, hyper):
    steps = Steps(
        reward=trajectory.reward,
        value=value,
        next_value=next_value,
        terminated=trajectory.terminated,
        boundary=trajectory.terminated | trajectory.truncated,
        mask=trajectory.mask,
    )
    return [psi(choice, steps, hyper) for choice in COUPLED_ONES]


def psi_of(choice, rows, hyper):
    """Weights of a coupled estimator on the batches `rows` [B, K] by pgjax, [B, K, T]."""
    value, next_value = (jnp.asarray(array[rows]) for array in WRONG)
    every = psi_of_coupled(trajectory_of(rows), value, next_value, hyper)
    return np.asarray(every[COUPLED_ONES.index(choice)])


def formula_weights(choice, rows, hyper, value_pair=WRONG):
    """Psi of the batches `rows` [B, K] by the loops above, [B, K, T]."""
    forms = np.zeros(PATHS.reward.shape)
    for m, length in enumerate(PATHS.length):
        columns = (PATHS.reward, *value_pair, PATHS.terminated)
        episode = (column[m, :length] for column in columns)
        forms[m, :length] = form_of(choice.form, hyper, *episode)
    return np.array(
        [
            weights_of(choice, hyper, forms[batch], PATHS.length[batch], value_pair[0][batch])
            for batch in rows
        ]
    )


def formula_of(choice, rows, hyper, value_pair=WRONG):
    """The gradients of the batches `rows` by the same loops, [B, S, A]."""
    weights = formula_weights(choice, rows, hyper, value_pair)
    return np.einsum("bkt,bktsa->bsa", weights, SCORES[rows]) / rows.shape[1]


every_estimator = pytest.mark.parametrize("choice", ACCEPTED, ids="-".join)


def batch_size(choice):
    return 2 if choice.baseline in COUPLED else 1


# --- the witness itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [0.8, 1.0])
def test_the_witness_agrees_with_itself(discount):
    """Enumeration, backward induction and the log-derivative trick are three roads to one truth."""
    assert PATHS.probability.sum() == pytest.approx(1.0, abs=1e-12)
    assert set(PATHS.length) == {1, 2, 3} and PATHS.truncated.any()
    payoff = discounted_return(PATHS, discount)
    mean = PATHS.probability @ payoff
    assert mean == pytest.approx(PROBLEM.initial @ values(PROBLEM, discount)[0], abs=1e-12)
    gradient = exact_gradient(PROBLEM, PATHS, discount)
    trick = np.einsum("m,mtsa->sa", PATHS.probability * payoff, SCORES)
    np.testing.assert_allclose(gradient, trick, atol=1e-12)
    np.testing.assert_allclose(gradient, exact_gradient_by_induction(PROBLEM, discount), atol=1e-12)
    assert np.abs(gradient).max() > 0.05


# --- per batch ------------------------------------------------------------------------------------


@every_estimator
def test_every_batch_equals_the_formula(choice):
    rows, _ = batches_of(batch_size(choice))
    gradients = gradients_of(choice, rows, GENERIC)
    np.testing.assert_allclose(gradients, formula_of(choice, rows, GENERIC), rtol=0, atol=1e-9)
    other = choice._replace(
        state_weighting="uniform" if choice.state_weighting == "discounted" else "discounted"
    )
    control = np.abs(gradients - formula_of(other, rows, GENERIC)).max()
    assert (control < 1e-9) == (choice.form == "total_return")


def larger_batches():
    """Batches of K = 4, most with early ends: many estimators first differ there."""
    shortest = int(np.argmin(PATHS.length))
    rows = np.random.default_rng(2).integers(NUM_PATHS, size=(30, 4))
    rows[:20, 0] = shortest
    rows[:10, 1] = shortest
    return rows


@pytest.mark.parametrize("choice", COUPLED_ONES, ids="-".join)
def test_larger_batches_of_unequal_lengths_equal_the_formula(choice):
    rows = larger_batches()
    expected = formula_weights(choice, rows, GENERIC)
    np.testing.assert_allclose(psi_of(choice, rows, GENERIC), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_n_step_of_every_n(n):
    choice, hyper = estimator("n_step", "none", "discounted"), GENERIC._replace(n=n)
    rows = np.arange(NUM_PATHS)[:, None]
    gradients, expected = gradients_of(choice, rows, hyper), formula_of(choice, rows, hyper)
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=1e-9)
    if n < HORIZON:
        control = formula_of(choice, rows, hyper._replace(n=n + 1))
        assert np.abs(gradients - control).max() > 1e-2


# --- in expectation -------------------------------------------------------------------------------


def expectation(choice, hyper, value_pair=WRONG):
    rows, probability = batches_of(batch_size(choice))
    return np.tensordot(probability, gradients_of(choice, rows, hyper, value_pair), 1)


@every_estimator
@pytest.mark.parametrize("discount", [0.8, 1.0])
@pytest.mark.parametrize("lambda_", [0.7, 1.0])
def test_unbiased_exactly_when_the_label_says_so(choice, discount, lambda_):
    """With a wrong value function and a discount: no estimator is unbiased by luck."""
    hyper = GENERIC._replace(discount=discount, lambda_=lambda_)
    unbiased, reason = is_unbiased(choice, hyper)
    error = np.abs(expectation(choice, hyper) - exact_gradient(PROBLEM, PATHS, discount)).max()
    assert reason
    if unbiased:
        assert error < 1e-9
    else:
        assert error > 1e-4


@pytest.mark.parametrize("form", BOOTSTRAPPING)
@pytest.mark.parametrize("baseline", ["none", "constant", "leave_one_out", "value"])
def test_bootstrapping_from_exact_values_is_unbiased(form, baseline):
    """Exact means: for the policy, the discount and the steps to go."""
    exact = value_arrays(values(PROBLEM, GENERIC.discount))
    gradient = exact_gradient(PROBLEM, PATHS, GENERIC.discount)
    choice = estimator(form, baseline, "discounted")
    np.testing.assert_allclose(expectation(choice, GENERIC, exact), gradient, atol=1e-9)
    stationary = np.broadcast_to(values(PROBLEM, GENERIC.discount)[0], WRONG_TABLE.shape)
    control = expectation(choice, GENERIC, value_arrays(stationary))
    assert np.abs(control - gradient).max() > 1e-4


def test_lambda_one_is_the_gradient_of_the_bootstrapped_objective():
    """J = E[R + gamma^T V(s_T) of truncated rows], whatever V is before the end."""
    table = np.random.default_rng(3).normal(size=(HORIZON + 1, NUM_STATES))
    tail = np.where(PATHS.truncated[:, -1], table[HORIZON, PATHS.next_obs[:, -1]], 0.0)
    discount = GENERIC.discount
    payoff = discounted_return(PATHS, discount) + discount**HORIZON * tail
    choice = estimator("gae", "none", "discounted")
    gradient = expectation(choice, GENERIC._replace(lambda_=1.0), value_arrays(table))
    np.testing.assert_allclose(gradient, gradient_of_mean(PROBLEM, PATHS, payoff), atol=1e-9)
    assert np.abs(gradient - exact_gradient(PROBLEM, PATHS, discount)).max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_batch_mean_shrinks_by_exactly_its_own_share(form):
    """(K-1)/K times leave-one-out in every weight, and (K-1)/K grad J in the mean."""
    choice = estimator(form, "batch_mean", "discounted")
    whole = psi_of(choice._replace(baseline="leave_one_out"), larger_batches(), GENERIC)
    shrunk = psi_of(choice, larger_batches(), GENERIC)
    np.testing.assert_allclose(shrunk, 3 / 4 * whole, atol=1e-12)
    assert np.abs(shrunk - whole).max() > 0.1
    exact = value_arrays(values(PROBLEM, GENERIC.discount))
    half = exact_gradient(PROBLEM, PATHS, GENERIC.discount) / 2
    np.testing.assert_allclose(expectation(choice, GENERIC, exact), half, atol=1e-9)


@pytest.mark.parametrize(
    "form, weighting, expected",
    [
        ("total_return", "discounted", 0.25),
        ("total_return", "uniform", 0.25),
        ("reward_to_go", "discounted", 0.25),
        ("reward_to_go", "uniform", -0.5),
    ],
)
def test_the_worked_trap(form, weighting, expected):
    """estimators.md: leaving out gamma^t turns +0.0611 into -0.1222.

    Two steps share p = sigmoid(0.3), r_0 = a_0, r_1 = -1.5 a_1, gamma = 0.5; in units of
    p (1 - p) the truth is 1 - 0.75, and without gamma^t it reads 1 - 1.5.
    """
    theta, probability = 0.3, 1 / (1 + np.exp(-0.3))
    action = np.array(list(itertools.product([0, 1], repeat=2)))
    shape = action.shape
    ended = np.array([[False, True]] * 4)
    rows = Trajectory(
        obs=jnp.zeros(shape, jnp.int32),
        action=jnp.asarray(action),
        log_prob=jnp.zeros(shape),
        reward=jnp.asarray(action * [1.0, -1.5]),
        terminated=jnp.asarray(ended),
        truncated=jnp.zeros(shape, bool),
        mask=jnp.ones(shape),
    )

    def gradient_of_one(row):
        return trajectory_gradient(
            jnp.array([[0.0, theta]]),
            jax.tree.map(lambda x: x[None], row),
            policy=policies.tabular(1, 2),
            estimator=estimator(form, "none", weighting),
            hyper=Hyper(discount=0.5),
        )[0, 1]

    chance = np.where(action == 1, probability, 1 - probability).prod(axis=1)
    gradient = chance @ np.asarray(jax.jit(jax.vmap(gradient_of_one))(rows))
    assert gradient == pytest.approx(expected * probability * (1 - probability), abs=1e-12)
    assert gradient == pytest.approx({0.25: 0.0611, -0.5: -0.1222}[expected], abs=5e-5)


# --- sampling against enumeration -----------------------------------------------------------------


def tabular_environment():
    env = environments.tabular_mdp(environments.MDP(*PROBLEM[:4]))
    return env, env.default_params


@functools.cache
def sample(num_episodes=20_000):
    env, env_params = tabular_environment()
    return jax.jit(
        lambda key: episodes(
            key,
            env,
            env_params,
            policies.tabular(NUM_STATES, NUM_ACTIONS),
            jnp.asarray(PROBLEM.logits),
            num_episodes=num_episodes,
            horizon=HORIZON,
        )
    )(jax.random.key(20))


def recognise(trajectory):
    """The path of every sampled row, [N]; fails unless a row is exactly one of the paths."""
    live = np.asarray(trajectory.mask)[:, None] > 0
    same = live == (PATHS.mask > 0)  # [N, M, T]
    for name in ("obs", "action", "terminated"):
        same &= ~live | (np.asarray(getattr(trajectory, name))[:, None] == getattr(PATHS, name))
    same &= ~live | np.isclose(np.asarray(trajectory.reward)[:, None], PATHS.reward, atol=1e-5)
    matches = same.all(axis=2)
    assert (matches.sum(axis=1) == 1).all()
    return matches.argmax(axis=1)


def test_sampled_rows_are_paths_with_their_ends_and_log_probabilities():
    trajectory = sample()
    rows = recognise(trajectory)
    assert trajectory.obs.shape == (20_000, HORIZON)
    dead = np.asarray(trajectory.mask) == 0
    terminated, truncated = np.asarray(trajectory.terminated), np.asarray(trajectory.truncated)
    for after_the_end in (np.asarray(trajectory.reward), terminated, truncated):
        assert not after_the_end[dead].any()
    np.testing.assert_array_equal(terminated, PATHS.terminated[rows])
    np.testing.assert_array_equal(truncated & ~terminated, PATHS.truncated[rows])
    expected = np.log(softmax(PROBLEM.logits)[PATHS.obs, PATHS.action])[rows]
    np.testing.assert_allclose(np.asarray(trajectory.log_prob)[~dead], expected[~dead], atol=1e-6)


def test_sampled_frequencies_are_the_probabilities():
    counts = np.bincount(recognise(sample()), minlength=NUM_PATHS)
    level = 1e-4
    assert scipy.stats.chisquare(counts, counts.sum() * PATHS.probability).pvalue > level
    shifted = PROBLEM._replace(logits=PROBLEM.logits + np.array([0.0, 0.0, 0.1]))
    control = counts.sum() * enumerate_paths(shifted).probability
    assert scipy.stats.chisquare(counts, control).pvalue < level


def z_scores(mean, standard_error, truth):
    moving = standard_error > 0  # the terminal state has no gradient
    return (np.asarray(mean) - truth)[moving] / standard_error[moving]


def bonferroni(count):
    return scipy.stats.norm.isf(FAMILY_ERROR / (2 * count))


@pytest.mark.parametrize("weighting, honest", [("discounted", True), ("uniform", False)])
def test_mean_gradient_of_sampled_episodes(weighting, honest):
    """Within its exact standard error of grad J_gamma; the biased one is the negative control."""
    choice, trajectory = estimator("reward_to_go", "none", weighting), sample()
    every_path = gradients_of(choice, np.arange(NUM_PATHS)[:, None], GENERIC)
    mean = np.tensordot(PATHS.probability, every_path, 1)
    variance = np.tensordot(PATHS.probability, (every_path - mean) ** 2, 1)
    sampled = trajectory_gradient(
        jnp.asarray(PROBLEM.logits),
        trajectory,
        policy=policies.tabular(NUM_STATES, NUM_ACTIONS),
        estimator=choice,
        hyper=GENERIC,
    )
    truth = exact_gradient(PROBLEM, PATHS, GENERIC.discount)
    z = z_scores(sampled, np.sqrt(variance / len(trajectory.mask)), truth)
    assert len(z) == 6
    assert (np.abs(z).max() < bonferroni(2 * len(z))) == honest


@pytest.mark.parametrize("baseline, honest", [("leave_one_out", True), ("batch_mean", False)])
def test_mean_of_policy_gradients_of_two_episodes(baseline, honest):
    """The whole GradientFn at K = 2, over many keys: grad J, or half of it."""
    env, env_params = tabular_environment()
    gradient_fn = policy_gradient(
        env,
        env_params,
        policies.tabular(NUM_STATES, NUM_ACTIONS),
        estimator("reward_to_go", baseline, "discounted"),
        GENERIC,
        num_episodes=2,
        horizon=HORIZON,
    )
    keys = jax.random.split(jax.random.key(21), 20_000)
    params = jnp.asarray(PROBLEM.logits)
    gradients, _ = jax.jit(jax.vmap(gradient_fn, in_axes=(0, None)))(keys, params)
    truth = exact_gradient(PROBLEM, PATHS, GENERIC.discount)
    standard_error = np.std(gradients, axis=0, ddof=1) / np.sqrt(len(keys))
    z = z_scores(np.mean(gradients, axis=0), standard_error, truth)
    assert len(z) == 6
    assert (np.abs(z).max() < bonferroni(2 * len(z))) == honest


# --- the same gradient however it is computed -----------------------------------------------------


def test_chunks_do_not_change_the_gradient():
    """Chunked over flattened samples, or at once, or by hand: one gradient."""
    choice = estimator("reward_to_go", "leave_one_out", "discounted")
    rows = np.random.default_rng(5).integers(NUM_PATHS, size=50)
    trajectory, params = trajectory_of(rows), jnp.asarray(PROBLEM.logits)
    weights = formula_weights(choice, rows[None], GENERIC)[0]

    def plain_surrogate(params):
        log_prob = jax.nn.log_softmax(params)[trajectory.obs, trajectory.action]
        return jnp.sum(weights * log_prob) / len(rows)

    expected = jax.grad(plain_surrogate)(params)
    assert np.abs(expected).max() > 1e-2
    for chunk_size in (7, 64, 10**6):
        gradient = jax.jit(
            functools.partial(
                trajectory_gradient,
                policy=policies.tabular(NUM_STATES, NUM_ACTIONS),
                estimator=choice,
                hyper=GENERIC,
                chunk_size=chunk_size,
            )
        )(params, trajectory)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12)


def running_sum_policy(num_actions):
    """logits = bias + slope * (sum of the observations since the last boundary)."""

    def head(params, total):
        return categorical(params["bias"] + params["slope"] * total)

    def step(params, carry, obs):
        carry = carry + obs
        return carry, head(params, carry)

    def unroll(params, carry, obs, boundary):
        def add(carry, now):
            obs, boundary = now
            total = carry + obs
            return jnp.where(boundary, 0.0, total), total

        _, totals = jax.lax.scan(add, carry, (obs, boundary))
        return jax.vmap(head, (None, 0))(params, totals)

    def init(key, obs):
        return {"bias": jnp.zeros(num_actions), "slope": jnp.zeros(num_actions)}

    return policies.Policy(init, lambda: jnp.zeros(()), step, unroll)


@pytest.mark.parametrize("chunk_size", [1, 9, 10**6])
def test_a_policy_with_memory_equals_the_gradient_by_hand(chunk_size):
    """Rows of 5, 3 and 4 steps; the first holds two episodes, and dead steps hold garbage."""
    random = np.random.default_rng(7)
    shape = (3, 5)
    obs, reward = random.normal(size=(2, *shape))
    action = random.integers(3, size=shape)
    lengths = [5, 3, 4]
    mask = np.arange(5) < np.array(lengths)[:, None]
    terminated, truncated = np.zeros((2, *shape), bool)
    terminated[0, [1, 4]] = terminated[1, 2] = truncated[2, 3] = True
    params = {"bias": random.normal(size=3), "slope": random.normal(size=3)}
    discount = 0.8

    def by_hand(forgetful):
        gradient = {"bias": np.zeros(3), "slope": np.zeros(3)}
        for i, length in enumerate(lengths):
            start, total = 0, 0.0
            for t in range(length):
                total += obs[i, t]
                end = next(k for k in range(t, length) if terminated[i, k] or truncated[i, k])
                to_go = sum(discount ** (k - t) * reward[i, k] for k in range(t, end + 1))
                weight = discount ** (t - start) * to_go / len(lengths)
                score = np.eye(3)[action[i, t]] - softmax(params["bias"] + params["slope"] * total)
                gradient["bias"] += weight * score
                gradient["slope"] += weight * score * total
                if t == end:
                    start, total = t + 1, 0.0 if forgetful else total
        return gradient

    trajectory = Trajectory(
        obs=jnp.where(mask, obs, jnp.nan),
        action=jnp.where(mask, action, 0),
        log_prob=jnp.zeros(shape),
        reward=jnp.where(mask, reward, jnp.nan),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        mask=jnp.asarray(mask, float),
    )
    gradient = trajectory_gradient(
        jax.tree.map(jnp.asarray, params),
        trajectory,
        policy=running_sum_policy(3),
        estimator=estimator("reward_to_go", "none", "discounted"),
        hyper=Hyper(discount=discount),
        chunk_size=chunk_size,
    )
    chex.assert_trees_all_close(gradient, by_hand(forgetful=True), rtol=0, atol=1e-12)
    control = by_hand(forgetful=False)
    assert np.abs(gradient["slope"] - control["slope"]).max() > 1e-2


def test_a_new_baseline_is_not_called_unbiased_before_somebody_says_so(monkeypatch):
    half = lambda form, steps: 0.5 * form
    monkeypatch.setitem(estimators.BASELINES, "half", half)
    unbiased, reason = estimators.is_unbiased(
        estimators.estimator(baseline="half"), estimators.Hyper(1.0)
    )
    assert not unbiased and "not known" in reason


def test_which_choices_read_values():
    assert {form for form in FORMS if estimators.bootstraps(form)} == set(BOOTSTRAPPING)
    assert {form for form in FORMS if estimators.is_advantage(form)} == {"td_residual", "gae"}
    for choice in ACCEPTED:
        reads = choice.form in BOOTSTRAPPING or choice.baseline == "value"
        assert estimators.needs_value(choice) == reads


def test_a_new_form_is_given_the_values_that_it_reads(monkeypatch):
    """One function and one line in the registry, and nobody takes its values for zero."""
    discount = GENERIC.discount

    def ahead(steps, hyper):
        return steps.reward + hyper.discount * jnp.where(steps.terminated > 0, 0, steps.next_value)

    monkeypatch.setitem(FORMS, "ahead", ahead)
    monkeypatch.setitem(FORMS, "squares", lambda steps, hyper: steps.reward**2)
    choice, without = estimator("ahead", "none"), estimator("squares", "none")
    assert estimators.needs_value(choice) and not estimators.needs_value(without)
    assert not is_unbiased(choice, GENERIC)[0] and not is_unbiased(without, GENERIC)[0]
    env, env_params = tabular_environment()
    policy = policies.tabular(NUM_STATES, NUM_ACTIONS)
    with pytest.raises(ValueError, match="needs a value function"):
        policy_gradient(env, env_params, policy, choice, GENERIC, num_episodes=1, horizon=HORIZON)
    arguments = (env.mdp, policy, jnp.asarray(PROBLEM.logits))
    moments = functools.partial(exact.exact_moments, *arguments, horizon=HORIZON)
    with pytest.raises(ValueError, match="needs value"):
        moments(choice, GENERIC)
    value = values(PROBLEM, discount)
    truth = exact_gradient(PROBLEM, PATHS, discount)
    np.testing.assert_allclose(moments(choice, GENERIC, value=value).mean, truth, atol=1e-9)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Estimator("rewrd_to_go", "none", "uniform"), "did you mean 'reward_to_go'"),
        (Estimator("reward_to_go", "non", "uniform"), "did you mean 'none'"),
        (Estimator("reward_to_go", "none", "unifrom"), "did you mean 'uniform'"),
        (Estimator("total_return", "value", "uniform"), "does not go with"),
    ],
)
def test_an_estimator_put_together_by_hand_is_checked(choice, message):
    (env, env_params), trajectory = tabular_environment(), trajectory_of([0, 1])
    policy, zeros = policies.tabular(NUM_STATES, NUM_ACTIONS), jnp.zeros((2, HORIZON))
    common = {"policy": policy, "estimator": choice, "hyper": GENERIC}
    given = jnp.asarray(PROBLEM.logits), trajectory
    with pytest.raises(ValueError, match=message):
        psi(choice, Steps(*6 * [zeros]), GENERIC)
    with pytest.raises(ValueError, match=message):
        trajectory_gradient(*given, **common)
    with pytest.raises(ValueError, match=message):
        squared_norms(*given, **common)
    with pytest.raises(ValueError, match=message):
        policy_gradient(env, env_params, **common, num_episodes=2, horizon=HORIZON)


@pytest.mark.parametrize("form", FORMS)
def test_values_are_fitted_to_the_return_from_the_step_on(form):
    """One step of a row of two, by hand: what follows it, in rewards and in values."""
    reward, value, next_value = jnp.array([[[1.0, 2]], [[3.0, 5]], [[5.0, 7]]])
    steps = Steps(reward, value, next_value, *(jnp.array([[0.0, x]]) for x in (0, 1)), reward**0)
    hyper = Hyper(discount=0.5, lambda_=0.25, n=1)
    last = 2 + 0.5 * 7
    expected = {
        "total_return": [1 + 0.5 * 2, 2],
        "reward_to_go": [1 + 0.5 * 2, 2],
        "td_residual": [1 + 0.5 * 5, last],
        "n_step": [1 + 0.5 * 5, last],
        "gae": [1 + 0.5 * (0.75 * 5 + 0.25 * last), last],
        "lambda_return": [1 + 0.5 * (0.75 * 5 + 0.25 * last), last],
    }
    target = estimators.value_target(estimator(form, "none", "uniform"), steps, hyper)
    np.testing.assert_allclose(target, [expected[form]])


def test_a_jitted_form_reads_what_it_uses(monkeypatch):
    monkeypatch.setitem(FORMS, "squares", jax.jit(lambda steps, hyper: steps.reward**2))
    monkeypatch.setitem(FORMS, "next", jax.jit(lambda steps, hyper: steps.next_value))
    assert not estimators.needs_value(estimator("squares", "none"))
    assert estimators.bootstraps("next") and not estimators.is_advantage("next")


def test_a_new_baseline_is_given_the_values_that_it_reads(monkeypatch):
    monkeypatch.setitem(estimators.BASELINES, "half", lambda form, steps: 0.5 * steps.value)
    assert estimators.needs_value(estimator("reward_to_go", "half"))


def test_values_fitted_on_the_batch_are_no_baseline():
    for choice in (estimator("gae", "none"), estimator("reward_to_go", "value")):
        unbiased, reason = is_unbiased(choice, Hyper(lambda_=1.0))
        assert unbiased and "do not depend on the batch" in reason


def test_an_entropy_bonus_is_called_biased():
    hyper = estimators.Hyper(1.0, entropy_cost=0.1)
    assert not estimators.is_unbiased(estimators.estimator(), hyper)[0]


def test_standardised_weights_are_the_same_wherever_the_rewards_lie():
    x = jnp.array([1.0, 2.0, 4.0])
    expected = (x - jnp.mean(x)) / jnp.std(x)
    for shift in (0, 1e5, 1e9):
        np.testing.assert_allclose(baselines.standardised(x + shift), expected, atol=1e-5)
    np.testing.assert_array_equal(baselines.standardised(jnp.full(3, 1e9 + 0.1)), 0)
    rewards = np.random.default_rng(0).normal(1, 1, size=1000).tolist()
    returns = jnp.array([sum(rewards), sum(reversed(rewards)), sum(sorted(rewards))])
    assert np.ptp(returns) > 0  # only rounded otherwise
    np.testing.assert_array_equal(baselines.standardised(returns), 0)


@pytest.mark.parametrize("name", ["batch_mean", "leave_one_out", "leave_one_out_live", "time_mean"])
def test_where_all_returns_are_equal_nothing_is_left(name):
    """In float32, where the mean of ninety-nine times 0.1 is not 0.1."""
    mask = np.random.default_rng(0).random((100, HORIZON)) < 0.5
    with jax.enable_x64(False):
        x = jnp.full(mask.shape, 0.1, jnp.float32)
        zeros = jnp.zeros_like(x)
        steps = Steps(x, zeros, zeros, zeros, zeros, jnp.asarray(mask, jnp.float32))
        left = jax.jit(lambda x: x - estimators.BASELINES[name](x, steps))(x)
        plain = jax.jit(lambda x: x - (jnp.sum(x, 0, keepdims=True) - x) / (len(x) - 1))(x)
    alone = (mask.sum(0) - mask) == 0  # then there is nothing to subtract
    live = mask & ~alone if name == "leave_one_out_live" else np.ones_like(mask)
    np.testing.assert_array_equal(left[live], 0)
    assert np.any(plain != 0)


@pytest.mark.parametrize("name", ["batch_mean", "leave_one_out", "leave_one_out_live"])
def test_one_large_return_does_not_round_the_baselines_of_the_others(name):
    x = np.random.default_rng(0).random((64, 1))
    x[0] = 1e7
    zeros = np.zeros_like(x)
    baseline = lambda x: estimators.BASELINES[name](x, Steps(x, *4 * [zeros], zeros + 1))
    with jax.enable_x64(False):
        found = baseline(jnp.asarray(x, jnp.float32))
    # A digit of the mean, which is all that a number of single precision has.
    np.testing.assert_allclose(found, baseline(x), atol=1e7 / 64 * 2**-20)


def test_squares_that_overflow_have_no_standardised_weights():
    with jax.enable_x64(False):
        assert jnp.all(jnp.isnan(baselines.standardised(1e19 * jnp.array([1.0, 2.0, 4.0]))))


@pytest.mark.parametrize("shape", [(), (HORIZON,), (4, 1)])
def test_forms_and_baselines_of_another_shape_are_refused(shape, monkeypatch):
    zeros = jnp.zeros((4, HORIZON))
    steps = Steps(zeros, zeros, zeros, zeros, zeros, zeros + 1)
    monkeypatch.setitem(estimators.FORMS, "odd", lambda steps, hyper: jnp.zeros(shape))
    with pytest.raises(ValueError, match="form='odd' gives an array of shape"):
        psi(estimator("odd", "none"), steps, GENERIC)
    monkeypatch.setitem(estimators.BASELINES, "odd", lambda form, steps: jnp.zeros(shape))
    with pytest.raises(ValueError, match="baseline='odd' gives an array of shape"):
        psi(estimator("reward_to_go", "odd"), steps, GENERIC)


@pytest.mark.parametrize("chosen", ["reward_to_go", ("gae", "none", "uniform"), Hyper()])
def test_what_is_no_estimator_is_refused(chosen):
    with pytest.raises(ValueError, match="must be made by estimators.estimator"):
        estimators.check(chosen)


def test_standardised_weights_are_the_same_at_any_scale_of_the_rewards():
    """In single precision too, where (x - mean) / std is less than a digit of x."""
    reward = np.random.default_rng(0).normal(3.0, 1.0, size=(4, HORIZON)).astype(np.float32)
    choice = estimator(baseline="standardise", state_weighting="uniform")
    with jax.enable_x64(False):
        zeros = jnp.zeros(reward.shape)
        steps = Steps(zeros, zeros, zeros, zeros, zeros, zeros + 1)
        small, large = (psi(choice, steps._replace(reward=x * reward), GENERIC) for x in (1, 2**30))
    np.testing.assert_array_equal(small, large)
    np.testing.assert_allclose(np.std(large), 1, rtol=1e-5)
