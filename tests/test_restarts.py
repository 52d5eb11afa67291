"""Visits and continuations against the exact visits and values of a finite MDP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pgjax import environments, exact, policies, restarts
from pgjax.estimators import Hyper

from .enumeration import random_problem
from .exact.cases import ALIASES, tabular

KEY = jax.random.key(0)
HYPER = Hyper(0.8)
HORIZON = 4
NUM = 40_000
CASE = tabular(random_problem(3, num_actions=3, num_successors=2, horizon=HORIZON), ALIASES)
ENV = environments.tabular_mdp(CASE.mdp)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def limits(max_steps=HORIZON):
    """The environment's parameters; its time limit is one of them."""
    return dataclasses.replace(ENV.default_params, max_steps_in_episode=max_steps)


@jax.jit
def visit(key, env_params, weights):
    params = jnp.asarray(CASE.params)
    return restarts.visit(key, ENV, env_params, CASE.policy, params, weights, num_episodes=NUM)


@jax.jit
def follow(key, env_params, visits, action, horizon):
    params = jnp.asarray(CASE.params)
    return restarts.continuations(
        key,
        ENV,
        env_params,
        CASE.policy,
        params,
        visits,
        action,
        discount=HYPER.discount,
        horizon=horizon,
    )


def powers():
    return HYPER.discount ** jnp.arange(HORIZON)


def cell_scores(samples, cells, truth):
    """z of the mean of `[N]` samples in each of the cells they fall into, `[C]`."""
    found = []
    for cell, expected in enumerate(truth):
        x = samples[cells == cell]
        if len(x) > 1 and np.std(x) > 1e-9:
            found.append((np.mean(x) - expected) / (np.std(x) / len(x) ** 0.5))
    return np.abs(found)


def test_visits_are_the_exact_ones():
    """E[W 1{tau = t, s_tau = s}] = w_t P(s_t = s), for weights of any kind."""
    arguments = (CASE.mdp, CASE.policy, CASE.params, Hyper(1.0))
    exactly = np.asarray(exact.visits(*arguments, horizon=HORIZON))
    for weights in (powers(), jnp.array([0.5, 0.0, 3.0, 1.0])):
        visits = visit(KEY, limits(), weights)
        place = np.ravel_multi_index((visits.time, visits.state.index), exactly.shape)
        truth = np.ravel(np.asarray(weights)[:, None] * exactly)
        met = truth > 0
        inside = np.equal.outer(place, np.arange(len(truth)))
        np.testing.assert_array_equal(inside.any(0), met)
        samples = (np.asarray(visits.weight)[:, None] * inside)[:, met]
        score = lambda truth, x=samples: np.max(np.abs(x.mean(0) - truth) / (x.std(0) / NUM**0.5))
        limit = stats.norm.isf(1e-4 / 2 / (2 * met.sum()))
        assert score(truth[met]) < limit < score(np.ravel(exactly)[met])
        np.testing.assert_array_equal(visits.obs, ALIASES[visits.state.index])
        np.testing.assert_array_equal(visits.time, visits.state.time)


def test_continuations_have_the_exact_values():
    """Of the first action, whatever it is, and of the policy's from there on."""
    visits = visit(KEY, limits(), powers())
    action = jax.random.randint(jax.random.key(1), (NUM,), 0, 3)
    run = lambda seed: follow(jax.random.key(seed), limits(), visits, action, HORIZON)
    returns, again = (np.asarray(run(seed)) for seed in (2, 3))
    q = exact.values(CASE.mdp, CASE.policy, CASE.params, HYPER, horizon=HORIZON).action
    place = np.ravel_multi_index((visits.time, visits.state.index, action), q.shape)
    scores = cell_scores(returns, place, np.ravel(q))
    limit = stats.norm.isf(1e-4 / 2 / len(scores))
    assert len(scores) > 20
    assert np.max(scores) < limit
    # Those of another time are others.
    assert np.max(cell_scores(returns, place, np.ravel(np.roll(q, 1, axis=0)))) > limit
    # Two keys are independent: errors are uncorrelated, as those of one key are not.
    errors, others = (x - np.ravel(q)[place] for x in (returns, again))
    score = lambda x: abs(np.mean(x)) / (np.std(x) / NUM**0.5)
    assert score(errors * others) < limit < score(errors**2)


def test_a_time_limit_of_the_environment_ends_continuations():
    visits = visit(KEY, limits(HORIZON - 1), powers())
    assert np.max(visits.time) == HORIZON - 2
    action = jnp.zeros(NUM, jnp.int32)
    within = follow(KEY, limits(HORIZON - 1), visits, action, HORIZON)
    shorter = follow(KEY, limits(), visits, action, HORIZON - 1)
    np.testing.assert_array_equal(within, shorter)
    assert not np.array_equal(within, follow(KEY, limits(), visits, action, HORIZON))


def test_nothing_follows_the_horizon():
    visits = visit(KEY, limits(), powers())
    late = visits._replace(time=jnp.full_like(visits.time, HORIZON))
    action = jnp.zeros(NUM, jnp.int32)
    np.testing.assert_array_equal(follow(KEY, limits(), late, action, HORIZON), 0)


def test_refusals():
    arguments = ENV, ENV.default_params, CASE.policy, jnp.asarray(CASE.params), powers()
    with pytest.raises(ValueError, match="num_episodes=0"):
        restarts.visit(KEY, *arguments, num_episodes=0)
    memory = CASE.policy._replace(initial_state=lambda: jnp.zeros(1))
    with pytest.raises(ValueError, match="policy has a memory"):
        policies.check_memoryless(memory, "restarts")
    policies.check_memoryless(policies.tabular(4, 3), "restarts")
