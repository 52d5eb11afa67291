"""A policy must fit the MDP, and what is never visited must not disturb what is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import distributions, exact, policies, rollout
from pgjax.estimators import Hyper, estimator

HYPER = Hyper(discount=0.9)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def mdp_of(num_states, num_actions):
    rng = np.random.default_rng(0)
    shape = (num_states, num_actions, num_states)
    transition = rng.dirichlet(np.ones(num_states), size=shape[:2])
    return exact.MDP(
        transition,
        rng.normal(size=shape),
        np.eye(num_states)[0],
        np.arange(num_states) == num_states - 1,
    )


def bernoulli():
    return policies.memoryless(
        lambda key, obs: None, lambda p, obs: distributions.bernoulli(p[obs])
    )


def gaussian():
    return policies.memoryless(
        lambda key, obs: None, lambda p, obs: distributions.normal(p[obs], 1)
    )


MISFITS = {
    "more actions": (policies.tabular(4, 3), (4, 3), 2, "2 actions sum to"),
    "fewer actions": (policies.tabular(4, 2), (4, 2), 3, "3 actions sum to"),
    "fewer states": (policies.tabular(2, 2), (2, 2), 2, "sum to nan"),
    "other params": (policies.tabular(4, 2), (4, 5), 2, r"shape \(4, 5\); expected \(4, 2\)"),
    "bernoulli on three": (bernoulli(), (4,), 3, "3 actions sum to nan"),
    "continuous": (gaussian(), (4,), 2, "gives Normal; a finite MDP takes discrete actions"),
}


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("how", ["return", "gradient", "moments"])
def test_a_policy_that_does_not_fit_is_refused(case, how):
    policy, shape, num_actions, message = MISFITS[case]
    mdp, params = mdp_of(4, num_actions), jnp.zeros(shape)
    with pytest.raises(ValueError, match=message):
        if how == "return":
            exact.expected_return(mdp, policy, params, HYPER, horizon=3)
        elif how == "gradient":
            exact.exact_gradient(mdp, policy, HYPER, horizon=3)(jax.random.key(0), params)
        else:
            exact.exact_moments(
                mdp, policy, params, estimator("reward_to_go", "none"), HYPER, horizon=3
            )


def ending_loop():
    """State 0 ends; 1, never visited, may fall into 2, which never ends."""
    transition = np.zeros((4, 2, 4))
    transition[0, :, 3] = 1
    transition[1, :, 2:] = 0.5
    transition[2] = np.eye(4)[2]
    transition[3] = np.eye(4)[3]
    return exact.MDP(transition, np.ones((4, 2, 4)), np.eye(4)[0], np.arange(4) == 3)


def test_an_action_that_may_never_end_and_is_never_taken_has_no_value():
    """Nor does it spoil what is exact for the others."""
    transition = np.zeros((3, 2, 3))
    transition[0] = np.eye(3)[[2, 1]]
    transition[1:] = np.eye(3)[1:, None]
    mdp = exact.MDP(transition, np.full((3, 2, 3), -1.0), np.eye(3)[0], np.arange(3) == 2)
    policy, params = policies.tabular(3, 2), jnp.array([[0, -jnp.inf], [0, 0], [0, 0]])
    hyper = Hyper(discount=1.0)
    found = exact.values(mdp, policy, params, hyper, horizon=None)
    np.testing.assert_array_equal(found.action, [[-1, np.nan], [np.nan, np.nan], [0, 0]])
    np.testing.assert_array_equal(found.state, [-1, np.nan, 0])
    gradient, _ = exact.all_action_gradient(mdp, policy, hyper, horizon=None)(None, params)
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))
    look_up = exact.action_values(mdp, policy, hyper, horizon=None)
    row = rollout.Trajectory(*[None] * len(rollout.Trajectory._fields))._replace(
        obs=jnp.zeros((1, 1), int)
    )
    np.testing.assert_array_equal(look_up(params, row), [[[-1, 0]]])
    hessian = exact.hessian(mdp, policy, params, hyper, horizon=None)
    np.testing.assert_array_equal(hessian, np.zeros((6, 6)))


def test_what_may_never_end_and_is_never_visited_has_no_value():
    policy, params = policies.tabular(4, 2), jnp.zeros((4, 2))
    undiscounted = Hyper(discount=1.0)
    found = exact.values(ending_loop(), policy, params, undiscounted, horizon=None)
    np.testing.assert_array_equal(found.state, [1, np.nan, np.nan, 0])
    moments = exact.exact_moments(
        ending_loop(),
        policy,
        params,
        estimator("reward_to_go", "value"),
        undiscounted,
        horizon=3,
        value=found.state,
    )
    assert np.isfinite(moments.trace)


def test_an_action_of_probability_zero_is_no_way_to_go_on_forever():
    # The second action of state 0 stays there for ever, and is never taken.
    transition = np.array([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mdp = exact.MDP(transition, np.ones((2, 2, 2)), np.eye(2)[0], np.array([False, True]))
    policy, params = policies.tabular(2, 2), jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
    undiscounted = Hyper(discount=1.0)
    assert exact.expected_return(mdp, policy, params, undiscounted, horizon=None) == 1
    gradient_fn = exact.exact_gradient(mdp, policy, undiscounted, horizon=None)
    gradient, metrics = gradient_fn(jax.random.key(0), params)
    assert metrics["expected_return"] == 1
    assert np.all(np.asarray(gradient) == 0)


def test_a_reducible_chain_is_refused_where_its_gradient_is_asked_for():
    transition = np.broadcast_to(np.eye(2)[None], (2, 2, 2))
    mdp = exact.MDP(transition, np.ones((2, 2, 2)), np.eye(2)[0], np.zeros(2, bool))
    params = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])  # state 0 is never left
    gradient_fn = exact.average_reward_gradient(mdp, policies.tabular(2, 2))
    with pytest.raises(ValueError, match="the chain is reducible"):
        gradient_fn(jax.random.key(0), params)


@pytest.mark.parametrize("n", [1.5, 0])
def test_steps_that_are_not_whole_are_refused(n):
    with pytest.raises(ValueError, match="n="):
        exact.exact_moments(
            mdp_of(3, 2),
            policies.tabular(3, 2),
            jnp.zeros((3, 2)),
            estimator("n_step", "none"),
            Hyper(n=n),
            horizon=3,
            value=np.zeros(3),
        )


def test_what_a_policy_closes_over_may_be_traced():
    """A temperature of the policy's own, rather than among its parameters."""
    mdp, params = mdp_of(3, 2), jnp.array([[0.3, -0.2], [0.1, 0.4], [0.0, 1.0]])

    def at(temperature):
        init = lambda key, obs: params
        apply = lambda params, obs: distributions.categorical(params[obs] / temperature)
        policy = policies.memoryless(init, apply)
        value = exact.expected_return(mdp, policy, params, Hyper(0.9), horizon=3)
        found = exact.exact_moments(
            mdp, policy, params, estimator("reward_to_go", "none"), Hyper(0.9), horizon=3
        )
        return value, found.trace

    temperatures = jnp.array([0.5, 2.0])
    expected = np.array([at(float(x)) for x in temperatures]).T
    assert np.all(np.ptp(expected, axis=1) > 1e-4)
    np.testing.assert_allclose(jax.vmap(at)(temperatures), expected, rtol=1e-5)
    np.testing.assert_allclose([jax.jit(at)(x) for x in temperatures], expected.T, rtol=1e-5)
    slope = jax.grad(lambda x: at(x)[0])(2.0)
    numeric = (at(2.05)[0] - at(1.95)[0]) / 0.1
    np.testing.assert_allclose(slope, numeric, rtol=1e-2)
