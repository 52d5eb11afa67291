"""Exact moments of every estimator against all batches of all trajectories, and against samples.

What they should be comes from `witness`, which is numpy and knows the estimators by name only.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from pgjax import environments, exact, gradients, policies
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator, is_unbiased
from pgjax.exact.moments import POLYNOMIAL

from .. import enumeration
from ..choices import ACCEPTED, COUPLED
from ..enumeration import random_problem, softmax
from .cases import Case, cases, tabular
from .witness import Witness, wrong_values

KEY = jax.random.key(0)
GENERIC = Hyper(discount=0.8, lambda_=0.7, n=2, constant=0.37)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)

RECURSIVE = [choice for choice in ACCEPTED if choice.baseline in POLYNOMIAL]
ENUMERATED = [choice for choice in ACCEPTED if choice.baseline not in POLYNOMIAL]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batch_size(choice):
    return 2 if choice.baseline in COUPLED else 1


def check(found, expected):
    mean, trace, bias = expected
    assert trace > 1e-4
    for a, b in zip(found, (mean, trace, bias), strict=True):
        close(ravel_pytree(a)[0], np.ravel(b))


# --- against enumeration --------------------------------------------------------------------------


PROBLEMS = {
    "ends": (random_problem(0), None),
    "crowded": (random_problem(7, splits=5), None),
    "endless": (random_problem(5, ends=False), None),
    "aliased": (random_problem(3), np.array([0, 1, 1, 0])),
}
NUMBERS = [(0.8, 0.7), (1.0, 0.7), (0.8, 1.0)]
"""Discounts and lambdas; with lambda one, values are zero after the horizon."""


class Setting(NamedTuple):
    """A case, its hyperparameters and wrong values for it."""

    case: Case
    hyper: Hyper
    value: np.ndarray  # [T + 1, S]


def settings(names):
    for seed, (name, (discount, lambda_)) in enumerate(itertools.product(names, NUMBERS)):
        value = wrong_values(3, seed)
        value[-1] *= lambda_ < 1
        hyper = GENERIC._replace(discount=discount, lambda_=lambda_)
        yield Setting(tabular(*PROBLEMS[name]), hyper, value)


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *trees)


def check_all(choices, num_episodes, names, *, traced):
    """Moments of `choices` in all settings, found by one program, are those of all batches.

    An estimator is biased exactly when its label says so.
    """
    sizes = {choice: num_episodes for choice in choices}
    if num_episodes == 2:
        sizes = {choice: batch_size(choice) for choice in choices}
    every = list(settings(names))

    def run(mdp, params, value, discount, lambda_):
        hyper = GENERIC._replace(discount=discount, lambda_=lambda_)
        mdp = mdp if traced else every[0].case.mdp
        return [
            exact.exact_moments(
                mdp,
                every[0].case.policy,
                params,
                choice,
                hyper,
                horizon=3,
                num_episodes=size,
                value=value,
            )
            for choice, size in sizes.items()
        ]

    inputs = stack(
        [(seen(case.mdp), case.params, value, *hyper[:2]) for case, hyper, value in every]
    )
    found = jax.jit(jax.vmap(run))(*inputs)
    for i, setting in enumerate(every):
        witness = Witness(*setting)
        for (choice, size), moments in zip(sizes.items(), found, strict=True):
            moments = jax.tree.map(lambda x, i=i: np.asarray(x[i]), moments)
            check(moments, witness.moments(choice, size))
            unbiased, _ = is_unbiased(choice, setting.hyper)
            bias = np.abs(moments.bias).max()
            assert bias < 1e-12 if unbiased else bias > 1e-4, choice


def seen(mdp):
    """The MDP with its observations written out, so that all have the same leaves."""
    return mdp._replace(observation=environments.tabular.observations(mdp))


def weighted(choices, weighting):
    return [choice for choice in choices if choice.state_weighting == weighting]


FEW_AND_MANY = [
    ("discounted", 2),
    pytest.param("uniform", 2, marks=pytest.mark.slow),
    pytest.param("discounted", 3, marks=pytest.mark.slow),
    pytest.param("uniform", 3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("weighting", "num_episodes"), FEW_AND_MANY)
def test_recursions_equal_all_batches(weighting, num_episodes):
    """Four MDPs, three pairs of numbers and wrong values, for every form and baseline."""
    check_all(weighted(RECURSIVE, weighting), num_episodes, PROBLEMS, traced=True)


@pytest.mark.parametrize(("weighting", "num_episodes"), FEW_AND_MANY)
def test_enumerated_baselines_equal_all_batches(weighting, num_episodes):
    choices = weighted(ENUMERATED, weighting)
    assert {choice.baseline for choice in choices} <= set(COUPLED)
    check_all(choices, num_episodes, ["ends"], traced=False)


@pytest.mark.parametrize("name", ["features", "bernoulli"])
def test_networks_and_longer_episodes(name):
    """Five steps and three-step returns, one episode or two, of policies that share parameters."""
    case, value = cases(1, horizon=5, num_actions=2)[name], wrong_values(5)
    hyper = GENERIC._replace(n=3)
    witness = Witness(case, hyper, value)
    chosen = {
        estimator("n_step", "value", "discounted"): 1,
        estimator("gae", "constant", "uniform"): 1,
        estimator("n_step", "leave_one_out", "discounted"): 2,
        estimator("total_return", "leave_one_out", "discounted"): 2,
    }

    @jax.jit
    def run(params):
        return [
            moments_of(case, params, choice, hyper, num_episodes=size, value=value)
            for choice, size in chosen.items()
        ]

    for (choice, size), found in zip(chosen.items(), run(case.params), strict=True):
        check(found, witness.moments(choice, size))


def moments_of(case, params, choice, hyper, **options):
    options = {"horizon": case.horizon} | options
    return exact.exact_moments(case.mdp, case.policy, params, choice, hyper, **options)


def test_values_of_every_shape():
    """[S] is the same at all times, and [T, S] means that values are zero afterwards."""
    case, value = tabular(random_problem(0)), jnp.asarray(wrong_values(3))
    choice = estimator("gae", "value")
    of = lambda value: moments_of(case, case.params, choice, GENERIC, value=value)
    short, same, long = value[:-1], value[0], value
    found = jax.jit(lambda: [of(x) for x in (short, same, long)])()
    endings = (value.at[-1].set(0), jnp.broadcast_to(value[0], value.shape), value)
    for moments, table in zip(found, endings, strict=True):
        check(moments, Witness(case, GENERIC, np.asarray(table)).moments(choice, 1))


def test_without_jit_it_is_the_same():
    case, choice = tabular(*PROBLEMS["ends"]), estimator("total_return", "leave_one_out")
    run = lambda params: moments_of(case, params, choice, GENERIC, num_episodes=3)
    check = lambda a, b: close(a, b, atol=1e-12)
    jax.tree.map(check, run(case.params), jax.jit(run)(case.params))


# --- closed forms ---------------------------------------------------------------------------------


def test_leave_one_out_of_the_total_return_is_its_closed_form():
    """[(K-1) A - (K-2) |g|^2 + B C] / (K (K-1)), and the batch mean is (K-1)/K of it."""
    case, sizes = tabular(random_problem(1)), (2, 5, 40)
    paths = case.paths()
    chance, payoff = paths.probability, enumeration.discounted_return(paths, 0.8)
    norm = np.sum(case.scores(paths).sum(axis=1) ** 2, axis=-1)
    centred = payoff - chance @ payoff
    a, b, c = chance @ (centred**2 * norm), chance @ centred**2, chance @ norm
    truth = enumeration.exact_gradient(case.problem, paths, 0.8)

    @jax.jit
    def run(params):
        of = lambda baseline, k: moments_of(
            case, params, estimator("total_return", baseline), GENERIC, num_episodes=k
        )
        return [(of("leave_one_out", k), of("batch_mean", k)) for k in sizes]

    for k, (whole, shrunk) in zip(sizes, run(case.params), strict=True):
        close(whole.trace, ((k - 1) * a - (k - 2) * np.sum(truth**2) + b * c) / (k * (k - 1)))
        close(whole.mean, truth)
        close(shrunk.mean, (k - 1) / k * truth)
        close(shrunk.trace, ((k - 1) / k) ** 2 * whole.trace)


def test_the_worked_trap():
    """Leaving out gamma^t turns +0.0611 into -0.1222: 1 - 0.75 and 1 - 1.5 times p (1 - p)."""
    transition, reward = np.zeros((3, 2, 3)), np.zeros((3, 2, 3))
    transition[0, :, 1] = transition[1, :, 2] = transition[2, :, 2] = 1
    reward[0, 1], reward[1, 1] = 1.0, -1.5
    mdp = MDP(transition, reward, np.eye(3)[0], np.arange(3) == 2, np.zeros(3, np.int32))
    policy, hyper = policies.tabular(1, 2), Hyper(0.5)
    expected = {
        ("total_return", "none", "discounted"): 0.25,
        ("total_return", "none", "uniform"): 0.25,
        ("reward_to_go", "none", "discounted"): 0.25,
        ("reward_to_go", "none", "uniform"): -0.5,
    }

    @jax.jit
    def run(params):
        of = lambda names: exact.exact_moments(
            mdp, policy, params, estimator(*names), hyper, horizon=2
        )
        return [of(names) for names in expected]

    unit = np.array([[-1, 1]]) / (1 + np.exp(-0.3)) / (1 + np.exp(0.3))  # p (1 - p)
    found = run(jnp.array([[0.0, 0.3]]))
    for moments, number in zip(found, expected.values(), strict=True):
        close(moments.mean, number * unit, atol=1e-14)
        close(moments.mean - moments.bias, 0.25 * unit, atol=1e-14)
    assert found[2].mean[0, 1] == pytest.approx(0.0611, abs=5e-5)
    assert found[3].mean[0, 1] == pytest.approx(-0.1222, abs=5e-5)


# --- the all-action gradient ----------------------------------------------------------------------


def all_action_truth(case, discount, weighting, action_value):
    """Mean and trace of sum_t w_t sum_a grad pi(a | s_t) Q_t(s_t, a), from all trajectories."""
    paths, pi, slopes = case.paths(), softmax(case.problem.logits), case.slopes()
    score = slopes - np.einsum("sa,sad->sd", pi, slopes)[:, None]
    ascent = np.einsum("sa,sad,tsa->tsd", pi, score, action_value)
    weight = paths.mask * (discount if weighting == "discounted" else 1.0) ** np.arange(
        case.horizon
    )
    gradient = np.einsum("mt,mtd->md", weight, ascent[np.arange(case.horizon), paths.obs])
    mean = paths.probability @ gradient
    return mean, paths.probability @ np.sum((gradient - mean) ** 2, axis=1)


@pytest.mark.parametrize("weighting", ["discounted", "uniform"])
def test_all_action_moments_equal_all_trajectories(weighting):
    case, discount = cases(2)["features"], 0.8
    value = enumeration.values(case.problem, discount)
    right = enumeration.action_values(case.problem, discount, value[1:])
    wrong = np.random.default_rng(8).normal(size=right.shape)
    stationary = np.broadcast_to(wrong[0], wrong.shape)

    @jax.jit
    def run(params):
        return [
            exact.all_action_moments(
                case.mdp,
                case.policy,
                params,
                Hyper(discount),
                horizon=3,
                num_episodes=size,
                action_value=given,
                state_weighting=weighting,
            )
            for given, size in ((None, 1), (right, 2), (wrong, 3), (wrong[0], 1))
        ]

    tables, sizes = (right, right, wrong, stationary), (1, 2, 3, 1)
    truth = enumeration.complex_step(
        lambda flat: (
            case.problem.initial @ enumeration.values(case.problem, discount, case.logits(flat))[0]
        ),
        case.flat,
    )
    for found, table, size in zip(run(case.params), tables, sizes, strict=True):
        mean, trace = all_action_truth(case, discount, weighting, table)
        check(found, (mean, trace / size, mean - truth))
        exactly = weighting == "discounted" and table is right
        assert (np.abs(ravel_pytree(found.bias)[0]).max() < 1e-12) == exactly


# --- against samples ------------------------------------------------------------------------------


def long_problem(num_states, num_actions, seed=0):
    """Dense, and with a small chance of ending anywhere."""
    random = np.random.default_rng(seed)
    shape = (num_states, num_actions, num_states)
    transition = random.dirichlet(0.5 * np.ones(num_states), shape[:2])
    ends = np.arange(num_states) == num_states - 1
    transition = 0.97 * transition * ~ends / (transition * ~ends).sum(-1, keepdims=True)
    transition[..., -1] = 0.03
    initial = ~ends / (num_states - 1)
    mdp = MDP(transition, random.normal(size=shape), initial, ends)
    return (
        mdp,
        jnp.asarray(random.normal(size=shape[:2])),
        jnp.asarray(random.normal(size=num_states)),
    )


def sampled(mdp, params, value, choice, hyper, num_episodes, horizon, num_samples):
    """Gradients of many batches, `[N, D]`."""
    env = environments.tabular_mdp(mdp)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        policies.tabular(*params.shape),
        choice,
        hyper,
        num_episodes=num_episodes,
        horizon=horizon,
        value_function=policies.tabular_value(len(value)),
    )

    def one(key):
        gradient, _ = gradient_fn(key, {"policy": params, "value": value})
        return gradient["policy"].ravel()

    keys = jax.random.split(KEY, num_samples)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys))


def z_scores(samples, moments):
    """Of the mean in every coordinate that moves, and of the trace."""
    mean = np.ravel(moments.mean)
    spread = np.sum((samples - mean) ** 2, axis=1)
    moving = samples.std(axis=0) > 1e-9
    every = np.column_stack([samples[:, moving], spread])
    truth = np.append(mean[moving], moments.trace)
    return (every.mean(0) - truth) / (every.std(0, ddof=1) / np.sqrt(len(every)))


def agrees(samples, moments, level=1e-5):
    z = z_scores(samples, moments)
    return np.abs(z) < scipy.stats.norm.isf(level / (2 * len(z)))


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("form", "baseline", "weighting", "num_episodes"),
    [
        ("reward_to_go", "leave_one_out", "discounted", 4),
        pytest.param("reward_to_go", "value", "uniform", 1, marks=slow),
        pytest.param("gae", "value", "discounted", 2, marks=slow),
        pytest.param("n_step", "batch_mean", "discounted", 2, marks=slow),
        pytest.param("total_return", "leave_one_out", "discounted", 3, marks=slow),
    ],
)
def test_fifty_steps_against_sampled_gradients(form, baseline, weighting, num_episodes):
    """Mean in every coordinate and trace, by z-scores; a wrong K or weighting is noticed."""
    mdp, params, value = long_problem(5, 3)
    hyper = Hyper(discount=0.9, lambda_=0.8, n=3)
    choice = estimator(form, baseline, weighting)
    samples = sampled(mdp, params, value, choice, hyper, num_episodes, 50, num_samples=4_000)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(choice, num_episodes):
        policy = policies.tabular(5, 3)
        options = {"horizon": 50, "num_episodes": num_episodes, "value": value}
        return exact.exact_moments(mdp, policy, params, choice, hyper, **options)

    assert np.all(agrees(samples, run(choice, num_episodes)))
    assert not agrees(samples, run(choice, num_episodes + 1))[-1]
    other = "uniform" if weighting == "discounted" else "discounted"
    if form == "total_return":
        choice, other = choice._replace(form="reward_to_go"), "uniform"
    assert not np.all(
        agrees(samples, run(choice._replace(state_weighting=other), num_episodes))[:-1]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("baseline", "num_episodes"), [("none", 1), ("leave_one_out", 2)])
def test_a_hundred_states_and_two_hundred_steps(baseline, num_episodes):
    """Five hundred parameters: no bias, and the trace of sampled gradients."""
    mdp, params, value = long_problem(100, 5)
    hyper, choice = Hyper(discount=0.98), estimator("reward_to_go", baseline)
    found = jax.jit(
        lambda params: exact.exact_moments(
            mdp,
            policies.tabular(100, 5),
            params,
            choice,
            hyper,
            horizon=200,
            num_episodes=num_episodes,
        )
    )(params)
    assert np.abs(found.bias).max() < 1e-12
    samples = sampled(mdp, params, value, choice, hyper, num_episodes, 200, num_samples=4_000)
    assert agrees(samples, found)[-1]
    assert not agrees(samples, found._replace(trace=found.trace / 2))[-1]
