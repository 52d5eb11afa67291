"""The best baselines by least squares, and the parts of the variance, over all trajectories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import exact, policies
from pgjax.estimators import FORMS, Hyper, estimator
from pgjax.exact.optimal import DEPENDS_ON

from .. import enumeration
from ..enumeration import random_problem
from .cases import Case, cases, tabular
from .witness import Witness, wrong_values

HYPER = Hyper(discount=0.8, lambda_=0.7, n=2)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
CHOICES = [
    (form, depends_on)
    for form in FORMS
    for depends_on in (DEPENDS_ON if form != "total_return" else DEPENDS_ON[:2])
]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# --- optimal baselines ----------------------------------------------------------------------------


def best_of_all(witness: Witness, form, weighting, depends_on):
    """The baseline of least E|X - sum_t w_t b u_t|^2, by least squares over all trajectories."""
    paths, scores = witness.paths, witness.scores  # [M, T, D]
    times = np.arange(scores.shape[1])
    rate = HYPER.discount if weighting == "discounted" and form != "total_return" else 1.0
    weighted = scores * (rate**times)[:, None]
    gradient = np.einsum("mt,mtd->md", witness.forms[form], weighted)
    if depends_on == "parameter":
        score = weighted.sum(axis=1)
        above, below = (paths.probability @ (score * x) for x in (gradient, score))
        return np.where(below > 0, above / np.where(below > 0, below, 1), 0)
    looks = {
        "nothing": np.ones((*paths.obs.shape, 1)),
        "time": np.broadcast_to(np.eye(len(times)), (*paths.obs.shape, len(times))),
        "state": np.eye(4)[paths.obs],
        "state_and_time": np.eye(4 * len(times))[4 * times + paths.obs],
    }
    root = np.sqrt(paths.probability)[:, None]
    moved = np.einsum("mtd,mtn->mdn", weighted, looks[depends_on]) * root[..., None]
    design, target = moved.reshape(-1, moved.shape[-1]), (root * gradient).ravel()
    return np.linalg.lstsq(design, target, rcond=1e-12)[0]


@pytest.mark.parametrize("name", ["aliased", pytest.param("features", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "weighting", ["discounted", pytest.param("uniform", marks=pytest.mark.slow)]
)
def test_optimal_baselines_are_least_squares_over_all_trajectories(name, weighting):
    case, value = cases(1, num_actions=2)[name], wrong_values(3)
    witness = Witness(case, HYPER, value)

    @jax.jit
    def run(params):
        return [
            best(case, params, estimator(form, "none", weighting), depends_on, value)
            for form, depends_on in CHOICES
        ]

    shapes = {"nothing": (), "time": (3,), "state": (4,), "state_and_time": (3, 4)}
    for (form, depends_on), found in zip(CHOICES, run(case.params), strict=True):
        if depends_on == "parameter":
            assert jax.tree.structure(found) == jax.tree.structure(case.params)
        else:
            assert found.shape == shapes[depends_on]
        expected = best_of_all(witness, form, weighting, depends_on)
        close(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)]), expected)
        assert np.abs(expected).max() > 1e-3


def best(case: Case, params, choice, depends_on, value=None):
    options = {"horizon": case.horizon, "depends_on": depends_on, "value": value}
    return exact.optimal_baseline(case.mdp, case.policy, params, choice, HYPER, **options)


@pytest.mark.parametrize("weighting", ["discounted", "uniform"])
def test_no_other_baseline_leaves_less_variance(weighting):
    """The trace by `exact_moments` is flat there, and higher at random ones around it."""
    case = tabular(random_problem(4, horizon=6))
    none = estimator("reward_to_go", "none", weighting)
    spread = {
        "nothing": lambda b: jnp.broadcast_to(b, (6, 4)),
        "time": lambda b: jnp.broadcast_to(b[:, None], (6, 4)),
        "state": lambda b: jnp.broadcast_to(b, (6, 4)),
        "state_and_time": lambda b: b,
    }

    @jax.jit
    def trace(table):
        choice = none._replace(baseline="value")
        arguments = (case.mdp, case.policy, case.params, choice, HYPER)
        return exact.exact_moments(*arguments, horizon=6, value=table).trace

    slope = jax.jit(jax.grad(trace))
    everyone = jax.jit(lambda: {name: best(case, case.params, none, name) for name in spread})()
    traces = {}
    for name, baseline in everyone.items():
        table = jnp.asarray(spread[name](baseline))
        _, pull = jax.vjp(spread[name], baseline)
        close(pull(slope(table))[0], 0)
        traces[name] = trace(table)
        random = np.random.default_rng(0)
        for scale in (0.1, 1.0):
            other = baseline + scale * random.normal(size=baseline.shape)
            assert trace(jnp.asarray(spread[name](other))) > traces[name] + 1e-6
    assert traces["state_and_time"] < min(traces["time"], traces["state"])
    assert max(traces["time"], traces["state"]) < traces["nothing"] < trace(jnp.zeros((6, 4)))


@pytest.mark.parametrize("form", FORMS)
def test_no_other_constant_leaves_less_variance(form):
    case, value = tabular(random_problem(4, horizon=5)), jnp.asarray(wrong_values(5))

    def trace(number):
        hyper = HYPER._replace(constant=number)
        choice = estimator(form, "constant")
        arguments = (case.mdp, case.policy, case.params, choice, hyper)
        return exact.exact_moments(*arguments, horizon=5, value=value).trace

    @jax.jit
    def run():
        number = best(case, case.params, estimator(form, "none"), "nothing", value)
        near, slope = jax.vmap(jax.value_and_grad(trace))(number + jnp.array([0, 0.1, -0.1]))
        return near, slope

    near, slope = run()
    close(slope[0], 0)
    assert near[0] < near[1:].min()


# --- the parts of the variance --------------------------------------------------------------------


def parts_of_all(case, value, weighting):
    """Trajectory, action, state and their sum, from single steps of all trajectories."""
    paths = case.paths()
    live = paths.mask > 0
    time = np.broadcast_to(np.arange(case.horizon), live.shape)
    rate = HYPER.discount if weighting == "discounted" else 1.0
    weight = (paths.probability[:, None] * rate**time)[live]
    weight /= weight.sum()
    later = time[0][None] - time[0][:, None]
    powers = np.where(later >= 0, HYPER.discount ** np.maximum(later, 0.0), 0)
    to_go = paths.reward @ powers.T  # [M, T]
    psi = to_go - value[time, paths.obs]
    term = (psi[..., None] * case.scores(paths))[live]

    def mean_given(*columns):
        keys = np.stack([column[live] for column in columns], axis=1)
        _, group = np.unique(keys, axis=0, return_inverse=True)
        total, chance = np.zeros((group.max() + 1, term.shape[1])), np.bincount(group, weight)
        np.add.at(total, group.ravel(), weight[:, None] * term)
        return (total / chance[:, None])[group.ravel()]

    given_action, given_state = (
        mean_given(time, paths.obs, paths.action),
        mean_given(time, paths.obs),
    )
    overall = weight @ term
    size = lambda x: weight @ np.sum(x**2, axis=1)
    parts = (term - given_action, given_action - given_state, given_state - overall)
    return [size(part) for part in parts], size(term - overall)


@pytest.mark.parametrize("name", ["tabular", "aliased", "bernoulli"])
@pytest.mark.parametrize("weighting", ["discounted", "uniform"])
def test_parts_of_the_variance(name, weighting):
    """They add up; a baseline moves the part of the action only."""
    case, table = cases(2)[name], wrong_values(3)

    @jax.jit
    def run(params):
        return [
            exact.variance_decomposition(
                case.mdp,
                case.policy,
                params,
                HYPER,
                horizon=3,
                value=value,
                state_weighting=weighting,
            )
            for value in (None, table, table[:-1], table[0])
        ]

    full, same = table, np.broadcast_to(table[0], table.shape)
    everyone = run(case.params)
    for found, value in zip(everyone, (np.zeros_like(table), full, full, same), strict=True):
        parts, total = parts_of_all(case, value, weighting)
        close(np.array(found), parts)
        close(sum(found), total)
        close(np.array(found)[[0, 2]], np.array(everyone[0])[[0, 2]], atol=1e-13)
    assert abs(everyone[1].action - everyone[0].action) > 1e-3


def test_two_actions_have_a_baseline_without_variance_of_the_action():
    """b*(s) = pi_0 Q_1 + pi_1 Q_0 (estimators.md): two actions cannot tell baselines apart."""
    case = tabular(random_problem(0))
    problem = case.problem
    value = enumeration.values(problem, HYPER.discount)
    q = enumeration.action_values(problem, HYPER.discount, value[1:])
    crossed = np.sum(enumeration.softmax(problem.logits) * q[..., ::-1], axis=-1)
    of = lambda value: exact.variance_decomposition(
        case.mdp, policies.tabular(4, 2), case.params, HYPER, horizon=3, value=value
    )
    crossed, plain = jax.jit(lambda: (of(crossed), of(value)))()
    close(crossed.action, 0)
    assert plain.action > 1e-2
