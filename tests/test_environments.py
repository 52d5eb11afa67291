"""Environments by name, finite MDPs, the short corridor, and the way to legal actions."""

from urllib.error import URLError

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from pgjax import backends, distributions, environments, estimators, gradients, policies
from pgjax.environments import MDP, registry

DOWNLOADS = "MNISTBandit-bsuite"


@pytest.mark.parametrize("name", [name for name in environments.names() if name != DOWNLOADS])
def test_every_environment_is_made(name):
    env, params = environments.make(name)
    obs, _ = env.reset(jax.random.key(0), params)
    assert jnp.all(jnp.isfinite(obs))
    assert environments.time_limit(params) >= 1


@pytest.mark.parametrize("name", registry.BINARY)
def test_zeros_and_ones_are_booleans(name):
    def play(env, params):
        obs, state = env.reset_env(jax.random.key(0), params)

        def step(state, key):
            action = env.action_space(params).sample(key)
            obs, state, *_ = env.step_env(key, state, action, params)
            return state, obs

        _, later = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 300))
        return jnp.concatenate([obs[None], later])

    found, floats = (jax.jit(lambda both=both: play(*both))() for both in makes(name))
    assert found.dtype == bool and jnp.issubdtype(floats.dtype, jnp.floating)
    assert 0 < found.mean() < 1
    np.testing.assert_array_equal(found, floats)


def test_what_is_learnt_of_booleans_is_what_is_learnt_of_floats():
    def gradient(env, params):
        policy = policies.make("mlp", env, params)
        gradient_fn = gradients.policy_gradient(
            env,
            params,
            policy,
            estimators.estimator("reward_to_go", "batch_mean"),
            estimators.Hyper(),
            num_episodes=64,
            horizon=32,
        )
        of_policy = policy.init(jax.random.key(0), env.reset_env(jax.random.key(0), params)[0])
        # Not optimised at all, as tests are compiled, the two are rounded otherwise.
        options = dict(backends.CPU.compiler_options)
        return jax.jit(gradient_fn, compiler_options=options)(jax.random.key(1), of_policy)[0]

    found, floats = (gradient(*both) for both in makes("Breakout-MinAtar"))
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(found)) > 0
    jax.tree.map(np.testing.assert_array_equal, found, floats)


def makes(name):
    """An environment that shows booleans, and gymnax's own."""
    return environments.make(name), gymnax.make(name)


def test_overrides_reach_parameters_and_constructor():
    env, params = environments.make("DeepSea-bsuite", size=5, unscaled_move_cost=0.5)
    obs, _ = env.reset(jax.random.key(0), params)
    assert obs.shape == (5, 5)
    assert params.unscaled_move_cost == 0.5


def test_registered_class_is_found():
    name = "ForThisTest-v0"
    if name not in gymnax.registered_envs:
        gymnax.register(name, lambda: environments.short_corridor(7))
    _, params = environments.make(name)
    assert environments.time_limit(params) == 7


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("CartPole-v2", {}, "did you mean 'CartPole-v1'"),
        ("CartPole-v1", {"gravitty": 1.0}, "did you mean 'gravity'"),
        ("CartPole-v1", {"gravity": "heavy"}, "must be a number"),
        ("CartPole-v1", {"gravity": float("nan")}, "must be a finite number"),
        ("CartPole-v1", {"gravity": True}, "must be a number"),
        ("CartPole-v1", {"max_steps_in_episode": 10.5}, "must be a whole number"),
        ("CartPole-v1", {"max_steps_in_episode": 99999999999}, "a whole one of 32 bits"),
        ("CartPole-v1", {"max_steps_in_episode": 1e12}, "must be a whole number of 32 bits"),
        *(
            ("CartPole-v1", {"gravity": value}, "gravity=.* must be a finite number")
            for value in (float("inf"), 2**31, -(2**31), 10**400)
        ),
        ("DeepSea-bsuite", {"deterministic": 0.5}, "must be true or false"),
        ("ShortCorridor", {"transition": 3}, "must be an array"),
        ("Reacher-misc", {"num_joints": 2.5}, "refuses"),
        ("DeepSea-bsuite", {"size": 99999999999}, "refuses"),
        ("DeepSea-bsuite", {"size": float("nan")}, "refuses"),
        ("DeepSea-bsuite", {"sise": 3}, "did you mean 'size'"),
    ],
)
def test_bad_input(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        environments.make(name, **overrides)


def test_failed_download_is_said(monkeypatch):
    def offline(name, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(gymnax, "make", offline)
    with pytest.raises(ValueError, match="downloads a data set"):
        environments.make(DOWNLOADS)


def corridor_values(right):
    """Expected returns of the corridor's three states, by solving the Bellman equations."""
    left = 1 - right
    transition = np.array([[left, right, 0], [right, 0, left], [0, left, 0]])
    return np.linalg.solve(np.eye(3) - transition, -np.ones(3))


def test_corridor_has_the_published_optimum():
    """Sutton & Barto 2018, Example 13.1: about -11.6 at a probability of about 0.59."""
    env = environments.short_corridor()
    mdp = env.default_params
    for right in (0.3, 2 - 2**0.5, 0.9):
        policy = np.array([1 - right, right])
        chain = np.einsum("a,sat->st", policy, np.asarray(mdp.transition, float))[:3, :3]
        reward = np.einsum("a,sat,sat->s", policy, mdp.transition, mdp.reward)[:3]
        value = np.linalg.solve(np.eye(3) - chain, reward)
        np.testing.assert_allclose(value, corridor_values(right), rtol=1e-4)
    best = max(corridor_values(p)[0] for p in np.linspace(0.01, 0.99, 9801))
    np.testing.assert_allclose(best, -(6 + 4 * 2**0.5), rtol=1e-6)


def test_corridor_is_aliased_and_pays_on_the_last_step():
    env = environments.short_corridor()
    params = env.default_params
    obs, state = env.reset(jax.random.key(0), params)
    rewards, seen, terminated = [], [obs], []
    for action in (1, 0, 1):
        obs, state, reward, ended, _ = env.step_env(jax.random.key(0), state, action, params)
        rewards.append(float(reward))
        seen.append(obs)
        terminated.append(bool(ended))
    assert rewards == [-1.0, -1.0, -1.0]
    assert all(int(x) == 0 for x in seen)
    assert terminated == [False, False, True]


def two_states():
    transition = np.array([[[0.5, 0.5], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    return MDP(transition, np.ones((2, 2, 2)), np.array([1.0, 0.0]), np.array([False, True]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": np.ones((2, 2, 2))}, "transition must sum to one"),
        ({"transition": np.ones((2, 2))}, r"expected \[S, A, S\]"),
        ({"initial": np.array([1.5, -0.5])}, "initial has negative"),
        ({"initial": np.array([0.5, 0.5])}, "terminal state"),
        ({"initial": np.ones(3) / 3}, "initial has shape"),
        ({"reward": np.full((2, 2, 2), np.nan)}, "reward must be finite"),
    ],
)
def test_bad_mdp(change, message):
    with pytest.raises(ValueError, match=message):
        environments.tabular_mdp(two_states()._replace(**change))


@pytest.mark.parametrize("max_steps", [0, 2.5])
def test_bad_time_limit(max_steps):
    with pytest.raises(ValueError, match="max_steps="):
        environments.tabular_mdp(two_states(), max_steps=max_steps)
    with pytest.raises(ValueError, match="max_steps="):
        environments.short_corridor(max_steps)


def test_mdp_observes_an_int32_index_and_keeps_its_arrays():
    env = environments.tabular_mdp(two_states())
    obs, _ = env.reset(jax.random.key(0), env.default_params)
    assert obs.dtype == jnp.int32 and obs.shape == ()
    np.testing.assert_array_equal(env.default_params.transition, two_states().transition)
    assert environments.time_limit(env.default_params) is None


BOX = spaces.Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 10.0]), (2,))


def act(distribution, sample):
    return environments.to_action(BOX, distributions.independent(distribution), sample)


def test_bounded_supports_are_stretched_over_the_bounds():
    tanh = distributions.tanh_normal(jnp.zeros(2), jnp.ones(2))
    np.testing.assert_allclose(act(tanh, jnp.array([0.0, 20.0])), [0.0, 10.0])
    beta = distributions.beta(jnp.full(2, 2.0), jnp.full(2, 2.0))
    np.testing.assert_allclose(act(beta, jnp.array([0.25, 0.5])), [-1.0, 5.0])


def test_normal_samples_are_clipped_and_keep_their_log_probability():
    """Pitfall 13: the density belongs to the sample, whatever the environment got."""
    normal = distributions.independent(distributions.normal(jnp.zeros(2), jnp.ones(2)))
    sample = jnp.array([5.0, -3.0])
    np.testing.assert_allclose(environments.to_action(BOX, normal, sample), [2.0, 0.0])
    of_clipped = normal.log_prob(jnp.array([2.0, 0.0]))
    assert abs(normal.log_prob(sample) - of_clipped) > 1


def test_discrete_actions_pass():
    space = spaces.Discrete(3)
    distribution = distributions.categorical(jnp.zeros(3))
    assert environments.to_action(space, distribution, jnp.int32(2)) == 2
    with jax.enable_x64(True):
        for dtype in (jnp.int32, jnp.int64):
            space = spaces.Discrete(3, dtype=dtype)
            assert environments.to_action(space, distribution, jnp.int32(2)).dtype == dtype


@pytest.mark.parametrize("name", ["DiscountingChain-bsuite", "Catch-bsuite", "FourRooms-misc"])
def test_discrete_actions_are_taken_in_double_precision_too(name):
    """Some environments select between an action and their own integers, of one dtype or other."""
    with jax.enable_x64(True):
        env, env_params = environments.make(name)
        obs, state = env.reset_env(jax.random.key(0), env_params)
        space = env.action_space(env_params)
        assert space.dtype == env.action_space().dtype
        distribution = distributions.categorical(jnp.zeros(space.n))
        action = environments.to_action(space, distribution, jnp.int32(1))
        jax.eval_shape(env.step_env, jax.random.key(0), state, action, env_params)


def test_continuous_actions_are_refused_where_they_are_discrete():
    with pytest.raises(ValueError, match="policy's actions are float32; the environment's, discr"):
        act_on = spaces.Discrete(3)
        environments.to_action(act_on, distributions.normal(0.0, 1.0), jnp.float32(0.3))


def test_actions_that_an_environment_lacks_are_refused():
    distribution = distributions.categorical(jnp.zeros((7, 5)))
    with pytest.raises(ValueError, match="chooses from 5 actions; the environment has 3"):
        environments.to_action(spaces.Discrete(3), distribution, jnp.zeros(7, jnp.int32))
