"""Linear-quadratic systems as environments: dynamics, laws of the noise, ends, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pgjax import environments, policies, rollout
from pgjax.environments import LQG

KEY = jax.random.key(0)


def system():
    """Two state dimensions, one of action, with a noise of rank one."""
    return LQG(
        dynamics=np.array([[0.9, 0.3], [-0.2, 0.8]]),
        control=np.array([[0.5], [1.0]]),
        noise=np.array([[0.25, 0.5], [0.5, 1.0]]),
        state_cost=np.array([[1.0, 0.2], [0.2, 0.5]]),
        action_cost=np.array([[0.3]]),
        initial_mean=np.array([1.0, -2.0]),
        initial_covariance=np.array([[0.5, 0.1], [0.1, 0.2]]),
    )


def test_a_step_without_noise_is_the_formula():
    lqg = system()._replace(noise=np.zeros((2, 2)), initial_covariance=np.zeros((2, 2)))
    env = environments.linear_quadratic(lqg)
    obs, state = env.reset_env(KEY, env.default_params)
    np.testing.assert_allclose(obs, lqg.initial_mean)
    action = np.array([0.7])
    obs, state, reward, terminated, _ = env.step_env(KEY, state, action, env.default_params)
    before = lqg.initial_mean
    np.testing.assert_allclose(obs, lqg.dynamics @ before + lqg.control @ action, rtol=1e-6)
    cost = before @ lqg.state_cost @ before + action @ lqg.action_cost @ action
    np.testing.assert_allclose(reward, -cost, rtol=1e-6)
    assert not terminated and state.time == 1


def test_parameters_hold_the_system():
    with jax.enable_x64(True):
        env = environments.linear_quadratic(system())
        params = env.default_params
    for field in ("dynamics", "control", "state_cost", "action_cost", "initial_mean"):
        np.testing.assert_array_equal(getattr(params, field), getattr(env.system, field))
    for root, covariance in (("noise_root", "noise"), ("initial_root", "initial_covariance")):
        square = np.asarray(getattr(params, root)) @ np.asarray(getattr(params, root)).T
        np.testing.assert_allclose(square, getattr(env.system, covariance), atol=1e-12)


def second_moments_z(num_episodes=20_000, horizon=3):
    """z-scores of E[s s^T] over an episode, against moments carried forward in numpy."""
    lqg = system()
    env = environments.linear_quadratic(lqg)
    policy = policies.make("linear", env, env.default_params)
    params = jax.tree.map(jnp.zeros_like, policy.init(KEY, jnp.zeros(2)))
    run = lambda key: rollout.episodes(
        key, env, env.default_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    trajectory = jax.jit(run)(KEY)
    obs = np.concatenate([trajectory.obs, np.asarray(trajectory.final_obs)[:, None]], axis=1)
    products = np.einsum("nti,ntj->ntij", obs.astype(float), obs.astype(float))

    def z(noise):
        mean, covariance, worst = lqg.initial_mean, lqg.initial_covariance, 0.0
        for t in range(horizon + 1):
            error = products[:, t] - covariance - np.outer(mean, mean)
            scores = error.mean(0) / (error.std(0) / num_episodes**0.5)
            worst = max(worst, np.max(np.abs(scores)))
            mean = lqg.dynamics @ mean
            # The parameters are all zero: actions are standard normal.
            covariance = lqg.dynamics @ covariance @ lqg.dynamics.T + noise
            covariance = covariance + lqg.control @ lqg.control.T
        return worst

    return z(lqg.noise), z(1.3 * lqg.noise)


def test_states_have_the_moments_of_the_system():
    right, wrong = second_moments_z()
    limit = stats.norm.isf(1e-4 / 2 / 16)
    assert right < limit < wrong


def test_never_terminates_and_is_cut_at_the_limit():
    env = environments.linear_quadratic(system(), max_steps=4)
    assert environments.time_limit(env.default_params) == 4
    assert environments.time_limit(environments.linear_quadratic(system()).default_params) is None
    policy = policies.make("linear", env, env.default_params)
    params = policy.init(KEY, jnp.zeros(2))
    trajectory = rollout.episodes(
        KEY, env, env.default_params, policy, params, num_episodes=3, horizon=6
    )
    assert not trajectory.terminated.any()
    np.testing.assert_array_equal(trajectory.mask.sum(1), 4)
    np.testing.assert_array_equal(np.argmax(trajectory.truncated, axis=1), 3)


def test_transitions_are_differentiable_on_demand():
    env = environments.linear_quadratic(system())
    params = env.default_params
    _, state = env.reset_env(KEY, params)

    def next_obs(action, env):
        return env.step_env(KEY, state, action, params)[0]

    action = jnp.zeros(1)
    np.testing.assert_array_equal(jax.jacobian(next_obs)(action, env), 0)
    enabled = env.with_transition_gradients()
    np.testing.assert_array_equal(jax.jacobian(next_obs)(action, enabled), params.control)


def test_point_mass_is_registered():
    env, params = environments.make("LinearQuadratic", time_step=0.1, max_steps=50)
    assert environments.time_limit(params) == 50
    np.testing.assert_allclose(params.dynamics[0], [1, 0, 0.1, 0])
    assert env.observation_space(params).shape == (4,)
    assert env.action_space(params).shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": np.ones(2)}, r"control has shape \(2,\)"),
        ({"control": np.ones((2, 0))}, "control has shape"),
        ({"dynamics": np.ones((2, 3))}, "dynamics has shape"),
        ({"action_cost": np.eye(2)}, "action_cost has shape"),
        ({"initial_mean": np.ones((2, 1))}, "initial_mean has shape"),
        ({"dynamics": np.full((2, 2), np.nan)}, "dynamics must be finite"),
        ({"control": np.full((2, 1), np.inf)}, "control must be finite"),
        ({"state_cost": np.array([[1.0, 0.1], [0.0, 1.0]])}, "state_cost must be symmetric"),
        ({"noise": np.array([[1.0, 0.1], [0.0, 1.0]])}, "noise must be symmetric"),
        ({"noise": np.array([[1.0, 2.0], [2.0, 1.0]])}, "noise must be positive semi-definite"),
        ({"initial_covariance": -np.eye(2)}, "initial_covariance must be positive semi-definite"),
    ],
)
def test_bad_system(change, message):
    with pytest.raises(ValueError, match=message):
        environments.linear_quadratic(system()._replace(**change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_step": float("nan")}, "time_step"),
        ({"time_step": -1.0}, "time_step"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_point_mass(arguments, message):
    with pytest.raises(ValueError, match=message):
        environments.point_mass(**arguments)
