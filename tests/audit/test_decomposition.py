"""The sampled variance decomposition against the exact one, and the coverage of its intervals."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pgjax import environments, exact, heads, policies, restarts
from pgjax.audit import decomposition, intervals, variance_decomposition
from pgjax.environments import LQG
from pgjax.estimators import Hyper
from pgjax.exact import linear_quadratic

from ..enumeration import random_problem
from ..exact.cases import ALIASES, tabular

KEY = jax.random.key(0)
HYPER = Hyper(0.8)
HORIZON = 4
VALUE = np.array([0.7, -0.4, 0.3, 0.0])  # of what is observed: any function of it will do
LIMIT = stats.norm.isf(1e-4 / 2 / 12)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Subject(NamedTuple):
    """What is decomposed, and what makes it up exactly."""

    env: Any
    policy: Any
    params: Any
    truth: Any  # (params, horizon, state_weighting, with_baseline) -> exact Decomposition
    baseline: Any = None


def finite(aliases=None):
    """A random MDP with an end; its baseline is a table of what is observed."""
    case = tabular(random_problem(3, num_actions=3, num_successors=2, horizon=HORIZON), aliases)
    seen = np.arange(4) if aliases is None else aliases

    def truth(params, horizon, state_weighting, with_baseline):
        return exact.variance_decomposition(
            case.mdp,
            case.policy,
            params,
            HYPER,
            horizon=horizon,
            value=jnp.asarray(VALUE[seen]) if with_baseline else None,
            state_weighting=state_weighting,
        )

    env = environments.tabular_mdp(case.mdp)
    return Subject(env, case.policy, case.params, truth, lambda obs: jnp.asarray(VALUE)[obs])


def linear():
    """A linear-quadratic system of one dimension, whose actions are continuous."""
    one = np.ones((1, 1))
    system = LQG(0.9 * one, 0.5 * one, 0.2 * one, one, 0.3 * one, np.ones(1), 0.5 * one)
    policy = policies.linear(heads.normal((1,)))
    dense = {"kernel": np.array([[-0.4]]), "bias": np.array([0.1])}
    params = {"params": {"Dense_0": dense, "free": np.array([-0.5])}}

    def truth(params, horizon, state_weighting, with_baseline):
        assert not with_baseline
        return linear_quadratic.variance_decomposition(
            system, policy, params, HYPER, horizon=horizon, state_weighting=state_weighting
        )

    return Subject(environments.linear_quadratic(system), policy, params, truth)


def sampled(subject, num_episodes=20_000, horizon=HORIZON, hyper=HYPER, **kwargs):
    return variance_decomposition(
        KEY,
        subject.params,
        subject.env,
        subject.env.default_params,
        subject.policy,
        hyper,
        num_episodes=num_episodes,
        horizon=horizon,
        **kwargs,
    )


@functools.cache
def truth(name, horizon, state_weighting, with_baseline):
    """The exact parts of one of the SUBJECTS."""
    subject = SUBJECTS[name]
    run = jax.jit(lambda params: subject.truth(params, horizon, state_weighting, with_baseline))
    return jax.tree.map(float, run(subject.params))


def standard_errors(found, level=0.95, num_blocks=decomposition.BLOCKS):
    reach = intervals.quantile(level, num_blocks - 1)
    return np.array([(part.high - part.value) / reach for part in found])


def scores(found, exactly):
    """How many standard errors each part is off."""
    error = np.array([part.value for part in found]) - np.array(exactly)
    with np.errstate(divide="ignore"):
        return np.abs(error) / standard_errors(found)


SUBJECTS = {"states": finite(), "aliased": finite(ALIASES), "linear": linear()}


@pytest.mark.parametrize(
    ("name", "state_weighting", "with_baseline", "counts"),
    [
        ("states", "discounted", False, {}),
        ("states", "uniform", True, {"num_actions": 3, "num_rollouts": 3}),
        ("aliased", "discounted", True, {}),
        ("linear", "discounted", False, {"num_rollouts": 3, "num_episodes": 60_000}),
    ],
)
def test_parts_are_the_exact_ones(name, state_weighting, with_baseline, counts):
    subject = SUBJECTS[name]
    baseline = subject.baseline if with_baseline else None
    found = sampled(subject, state_weighting=state_weighting, baseline=baseline, **counts)
    assert np.all(scores(found, truth(name, HORIZON, state_weighting, with_baseline)) < LIMIT)
    # Something else, not far away, is told from it.
    other = "uniform" if state_weighting == "discounted" else "discounted"
    for wrong in ((HORIZON - 1, state_weighting), (HORIZON, other)):
        assert np.max(scores(found, truth(name, *wrong, with_baseline))) > LIMIT


def test_a_baseline_changes_the_part_of_the_action_alone():
    with_value, without = (truth("states", HORIZON, "uniform", given) for given in (True, False))
    np.testing.assert_allclose(with_value[::2], without[::2], rtol=1e-12)
    assert abs(with_value.action / without.action - 1) > 0.05


def test_rollouts_that_are_shared_would_be_seen(monkeypatch):
    """The variance of the return comes from rollouts that differ in their keys."""
    honest = restarts.continuations
    shared = lambda key, *args, **kwargs: honest(KEY, *args, **kwargs)
    monkeypatch.setattr(restarts, "continuations", shared)
    found = sampled(SUBJECTS["states"], num_episodes=2000)
    assert found.trajectory == (0, 0, 0)
    exactly = truth("states", HORIZON, "discounted", False)
    assert scores(found, exactly)[1] > LIMIT


def test_result_is_a_function_of_the_key():
    first, again = (sampled(SUBJECTS["linear"], num_episodes=100, horizon=2) for _ in range(2))
    assert first == again


@pytest.mark.slow
def test_result_hardly_depends_on_chunks():
    few, many = (sampled(SUBJECTS["states"], num_episodes=8000, chunk_size=x) for x in (37, 256))
    error = np.hypot(standard_errors(few), standard_errors(many))
    difference = np.array([x.value - y.value for x, y in zip(few, many, strict=True)])
    assert np.any(difference != 0)
    assert np.all(np.abs(difference) / error < LIMIT)


def test_intervals_cover():
    """Many repetitions of episodes, states, actions and returns whose parts are known."""
    num_repetitions, num_blocks, size, level = 1000, decomposition.BLOCKS, 16, 0.9
    random = np.random.default_rng(0)
    chances = jnp.array([0.5, 0.3, 0.2])  # of the state, where weights are one
    weights = jnp.array([1.0, 0.5, 2.0])  # of the episode, known by its state
    q = jnp.asarray(random.normal(size=(3, 2)))
    std = jnp.array([[0.5, 1.0], [0.8, 0.3], [1.2, 0.6]])
    score = jnp.asarray(random.normal(size=(3, 2, 4)))
    score -= jnp.mean(score, axis=1, keepdims=True)  # both actions are as likely

    def block(key):
        keys = jax.random.split(key, 3)
        state = jax.random.choice(keys[0], 3, (size,), p=chances)
        action = jax.random.randint(keys[1], (2, size), 0, 2)
        here = jnp.broadcast_to(state[None], action.shape), action
        noise = std[here][:, None] * jax.random.normal(keys[2], (2, 2, size))
        return decomposition._sums(weights[state], q[here][:, None] + noise, score[here])

    blocks = lambda key: jax.vmap(block)(jax.random.split(key, num_blocks))
    run = jax.jit(lambda keys: jax.lax.map(blocks, keys, batch_size=100))
    sums = jax.tree.map(np.asarray, run(jax.random.split(KEY, num_repetitions)))
    found = [
        decomposition._decomposition(jax.tree.map(lambda x, i=i: x[i], sums), level)
        for i in range(num_repetitions)
    ]
    share = chances * weights / jnp.sum(chances * weights)
    norm = jnp.sum(score**2, axis=-1)
    drift = jnp.mean(q[..., None] * score, axis=1)
    within = share @ jnp.mean(q**2 * norm, axis=1)
    of_states = share @ jnp.sum(drift**2, axis=1)
    exact_parts = (
        share @ jnp.mean(std**2 * norm, axis=1),
        within - of_states,
        of_states - jnp.sum((share @ drift) ** 2),
    )
    for part, exactly in zip(zip(*found, strict=True), exact_parts, strict=True):
        value, low, high = np.transpose(part)
        error = np.mean(value) - float(exactly)
        assert abs(error) < LIMIT * np.std(value) / num_repetitions**0.5 + 1e-3 * float(exactly)
        covered = np.mean((low <= exactly) & (exactly <= high))
        assert level - 0.03 < covered < level + 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_episodes": 3}, "num_episodes=3"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_actions": 1}, r"num_actions=1 .* \(a variance over actions\)"),
        ({"num_rollouts": 1}, r"num_rollouts=1 .* \(a variance over rollouts\)"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"state_weighting": "discount"}, "did you mean 'discounted'"),
    ],
)
def test_bad_choices_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sampled(SUBJECTS["states"], **{"num_episodes": 8, **change})


def test_a_policy_with_memory_is_refused():
    subject = SUBJECTS["states"]
    policy = subject.policy._replace(initial_state=lambda: jnp.zeros(1))
    with pytest.raises(ValueError, match="policy has a memory"):
        sampled(subject._replace(policy=policy), num_episodes=8)


def test_a_discount_above_one_is_refused():
    with pytest.raises(ValueError, match="discount=1.1"):
        sampled(SUBJECTS["states"], hyper=Hyper(1.1))
