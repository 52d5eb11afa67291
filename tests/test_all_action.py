"""The all-action gradient against enumeration: its formula, its mean, and learned values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from pgjax import distributions, environments, gradients, policies, rollout, train
from pgjax.environments import MDP
from pgjax.estimators import Hyper

from . import enumeration
from .enumeration import softmax
from .test_segments import remembers

KEY = jax.random.key(0)
HORIZON, DISCOUNT, LAMBDA = 3, 0.5, 0.7
PROBLEM = enumeration.problem(HORIZON)
PATHS = enumeration.enumerate_paths(PROBLEM)
NUM_STATES, NUM_ACTIONS = PROBLEM.logits.shape
HYPER = Hyper(discount=DISCOUNT, lambda_=LAMBDA)
FAMILY_ERROR = 1e-4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def exact_q():
    """Q_t(s, a) with T - t steps to go, `[T, S, A]`."""
    following = enumeration.values(PROBLEM, DISCOUNT)[1:]  # [T, S]
    future = PROBLEM.reward + DISCOUNT * following[:, None, None]  # [T, S, A, S]
    return np.einsum("sak,tsak->tsa", PROBLEM.transition, future)


def environment():
    problem = PROBLEM
    mdp = MDP(problem.transition, problem.reward, problem.initial, problem.terminal)
    env = environments.tabular_mdp(mdp)
    return env, env.default_params


def constructed(table=None, policy=None, num_episodes=64, **arguments):
    """With the action values of a table `[T, S, A]`, or learned ones."""
    env, env_params = environment()
    if table is not None:
        time = jnp.arange(HORIZON)[None, :]
        look_up = lambda params, trajectory: jnp.asarray(table)[time, trajectory.obs]
        arguments["action_values"] = look_up
    policy = policy or policies.tabular(NUM_STATES, NUM_ACTIONS)
    defaults = {"num_episodes": num_episodes, "horizon": HORIZON}
    return gradients.all_action_gradient(env, env_params, policy, HYPER, **defaults | arguments)


def formula(obs, mask, q, weighting="discounted"):
    """sum_t w_t sum_a grad pi(a | s_t) Q_t(s_t, a) of every row, `[N, S, A]`."""
    obs, mask = np.asarray(obs), np.asarray(mask)
    policy, total = softmax(PROBLEM.logits), 0.0
    for t in range(HORIZON):
        at = np.asarray(q)[:, t]  # [N, A]
        chance = policy[obs[:, t]]
        centred = chance * (at - np.sum(chance * at, axis=1, keepdims=True))
        weight = mask[:, t] * (DISCOUNT**t if weighting == "discounted" else 1)
        in_state = np.eye(NUM_STATES)[obs[:, t]] * weight[:, None]
        total = total + in_state[:, :, None] * centred[:, None, :]
    return total


def episodes(key, num_episodes=64, policy=None):
    env, env_params = environment()
    policy = policy or policies.tabular(NUM_STATES, NUM_ACTIONS)
    return jax.jit(
        lambda params: rollout.episodes(
            key, env, env_params, policy, params, num_episodes=num_episodes, horizon=HORIZON
        )
    )(jnp.asarray(PROBLEM.logits))


def test_the_expected_formula_is_the_gradient():
    """Summed over all paths: grad J_gamma with exact Q, not with uniform weights or the first Q."""
    truth = enumeration.exact_gradient(PROBLEM, PATHS, DISCOUNT)
    q, time = exact_q(), np.arange(HORIZON)[None, :]
    mean = lambda table, weighting="discounted": np.tensordot(
        PATHS.probability, formula(PATHS.obs, PATHS.mask, table[time, PATHS.obs], weighting), 1
    )
    np.testing.assert_allclose(mean(q), truth, atol=1e-12)
    assert np.abs(mean(q, "uniform") - truth).max() > 1e-2
    assert np.abs(mean(q[:1].repeat(HORIZON, axis=0)) - truth).max() > 1e-2


@pytest.mark.parametrize("weighting", ["discounted", "uniform"])
def test_is_the_formula_of_its_episodes(weighting):
    q = exact_q()
    gradient_fn = constructed(q, state_weighting=weighting, chunk_size=50)
    gradient, metrics = jax.jit(gradient_fn)(KEY, jnp.asarray(PROBLEM.logits))
    rows = episodes(KEY)
    at = q[np.arange(HORIZON)[None, :], np.asarray(rows.obs)]
    expected = formula(rows.obs, rows.mask, at, weighting).mean(axis=0)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    np.testing.assert_allclose(metrics["return"], rows.reward.sum(axis=1).mean())
    assert metrics["env_steps"] == rows.mask.sum()


@pytest.mark.parametrize("honest", [True, False])
def test_unbiased_with_exact_action_values(honest):
    """One row per gradient, 20 000 of them; with V for Q of the first action the mean is off."""
    q = exact_q()
    if not honest:
        q[:, :, 0] += 0.3
    gradient_fn = constructed(q, num_episodes=1)
    sample = jax.jit(jax.vmap(lambda key, params: gradient_fn(key, params)[0], (0, None)))
    samples = np.asarray(sample(jax.random.split(KEY, 20_000), jnp.asarray(PROBLEM.logits)))
    spread = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    error = samples.mean(axis=0) - enumeration.exact_gradient(PROBLEM, PATHS, DISCOUNT)
    moving = spread > 1e-12  # in the first state the first step's gradient has no variance at all
    bound = scipy.stats.norm.isf(FAMILY_ERROR / (2 * error.size))
    z = np.abs(error[moving] / spread[moving]).max()
    assert moving.sum() == 6
    assert (z < bound) == honest


def test_a_memory_of_the_past_is_unrolled():
    """A policy with memory, by the same formula with its probabilities of the moment."""
    policy, params = remembers(), jnp.asarray(PROBLEM.logits)
    q = jnp.asarray(exact_q())
    gradient, _ = jax.jit(constructed(q, policy))(KEY, params)
    rows = episodes(KEY, policy=policy)

    def objective(params):
        # Its memory is the number of steps taken, which multiplies the logits.
        time = jnp.arange(HORIZON)
        chance = jax.nn.softmax(params[rows.obs] * (1 + time)[None, :, None])
        expected = jnp.sum(chance * q[time[None, :], rows.obs], axis=-1)
        return jnp.sum(rows.mask * (DISCOUNT**time)[None, :] * expected) / 64

    np.testing.assert_allclose(gradient, jax.jit(jax.grad(objective))(params), atol=1e-12)


TABLE = np.random.default_rng(4).normal(size=(NUM_STATES, NUM_ACTIONS))


@pytest.mark.parametrize("chunk_size", [4096, 7])
def test_learned_values_descend_the_error_to_the_lambda_return(chunk_size):
    """Row by row in numpy: V = sum_a pi Q, nothing after a natural end, V at the horizon's cut."""
    value = policies.tabular_value(NUM_STATES, num_actions=NUM_ACTIONS)
    gradient_fn = constructed(action_value_function=value, chunk_size=chunk_size)
    params = {"policy": jnp.asarray(PROBLEM.logits), "value": jnp.asarray(TABLE)}
    gradient, metrics = jax.jit(gradient_fn)(KEY, params)
    rows = jax.tree.map(np.asarray, episodes(KEY))
    v = np.sum(softmax(PROBLEM.logits) * TABLE, axis=1)
    expected, loss = np.zeros(TABLE.shape), 0.0
    assert rows.terminated.any() and rows.truncated.any()
    for row in range(64):
        length = int(rows.mask[row].sum())
        following = [*rows.obs[row, 1:length], rows.final_obs[row]]
        target = v[following[-1]]
        for t in reversed(range(length)):
            target = (1 - LAMBDA) * v[following[t]] + LAMBDA * target
            target = rows.reward[row, t] + DISCOUNT * (not rows.terminated[row, t]) * target
            place = rows.obs[row, t], rows.action[row, t]
            expected[place] -= TABLE[place] - target
            loss += 0.5 * (TABLE[place] - target) ** 2
    num_live = rows.mask.sum()
    np.testing.assert_allclose(gradient["value"], expected / num_live, atol=1e-12)
    np.testing.assert_allclose(metrics["value_loss"], loss / num_live, atol=1e-12)
    policy_part = formula(rows.obs, rows.mask, TABLE[rows.obs]).mean(axis=0)
    np.testing.assert_allclose(gradient["policy"], policy_part, atol=1e-12)


def test_learns_the_best_actions():
    """Action 1 pays first, action 0 second."""
    transition = np.zeros((3, 2, 3))
    transition[0, :, 1] = transition[1, :, 2] = transition[2, :, 2] = 1
    reward = np.zeros((3, 2, 3)) + np.array([[0.0, 1.0], [2.0, 0.0], [0, 0]])[:, :, None]
    env = environments.tabular_mdp(MDP(transition, reward, np.eye(3)[0], np.arange(3) == 2))
    policy, value = policies.tabular(3, 2), policies.tabular_value(3, num_actions=2)
    gradient_fn = gradients.all_action_gradient(
        env,
        env.default_params,
        policy,
        Hyper(discount=0.9, lambda_=0.9),
        num_episodes=16,
        horizon=3,
        action_value_function=value,
    )
    optimizer = optax.adam(0.1)
    params = {"policy": policy.init(KEY, jnp.int32(0)), "value": value.init(KEY, jnp.int32(0))}
    run = jax.jit(lambda state: train.train(KEY, state, gradient_fn, optimizer, num_steps=100))
    state, _ = run(train.init(KEY, params, optimizer))
    probs = jax.nn.softmax(state.params["policy"])
    assert probs[0, 1] > 0.9 and probs[1, 0] > 0.9
    np.testing.assert_allclose(state.params["value"][1, 0], 2.0, atol=0.1)
    run(state)
    assert run._cache_size() == 1


def test_seeds_can_be_vmapped():
    value = policies.mlp_value(
        hidden=(4,), features=policies.one_hot(NUM_STATES), num_actions=NUM_ACTIONS
    )
    gradient_fn = constructed(action_value_function=value, num_episodes=8)
    params = {"policy": jnp.asarray(PROBLEM.logits), "value": value.init(KEY, jnp.int32(0))}
    assert value.apply(params["value"], jnp.int32(0)).shape == (NUM_ACTIONS,)
    keys = jax.random.split(KEY, 3)
    together, _ = jax.jit(jax.vmap(gradient_fn, (0, None)))(keys, params)
    alone, _ = jax.jit(gradient_fn)(keys[1], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-12), together, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of action_values and action_value_function"),
        ({"table": TABLE, "action_value_function": 1}, "exactly one of"),
        ({"table": TABLE, "num_episodes": 0}, "num_episodes=0"),
        ({"table": TABLE, "horizon": 0}, "horizon=0"),
        ({"table": TABLE, "horizon": 2**31}, "must be below 2\\*\\*31 steps"),
        ({"table": TABLE, "chunk_size": 0}, "chunk_size=0"),
        ({"table": TABLE, "state_weighting": "uniforn"}, "did you mean 'uniform'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        constructed(**arguments)


def test_continuous_actions_are_refused():
    env, env_params = environments.make("Pendulum-v1")
    policy = policies.make("linear", env, env_params)
    options = {"num_episodes": 2, "horizon": 2, "action_values": lambda params, trajectory: 0}
    with pytest.raises(ValueError, match="actions Box"):
        gradients.all_action_gradient(env, env_params, policy, Hyper(), **options)
    normal = policies.memoryless(
        init=lambda key, obs: (), apply=lambda params, obs: distributions.normal(0.0, 1.0)
    )
    with pytest.raises(ValueError, match="actions are float.*; the environment's, discrete"):
        jax.eval_shape(constructed(exact_q(), normal), KEY, ())
