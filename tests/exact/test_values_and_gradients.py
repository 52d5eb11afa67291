"""Exact values, gradients and curvature against enumeration, iteration and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pgjax import environments, exact, policies
from pgjax.environments import MDP
from pgjax.estimators import Hyper
from pgjax.rollout import Trajectory

from .. import enumeration
from ..enumeration import complex_step, difference, random_problem, softmax
from .cases import cases, network, tabular

KEY = jax.random.key(0)
slow = pytest.mark.slow
SOME = ["aliased", "features", "bernoulli"]
MORE = [pytest.param(name, marks=slow) for name in ("tabular", "linear", "mlp")]
every_policy = pytest.mark.parametrize("name", SOME + MORE)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradient_of(gradient_fn, params):
    return ravel_pytree(gradient_fn(KEY, params)[0])[0]


def everything(mdp, policy, params, hyper, horizon):
    """All that is known about a policy, by name."""
    arguments, options = (mdp, policy, params, hyper), {"horizon": horizon}
    ascents = {
        "gradient": exact.exact_gradient(mdp, policy, hyper, **options),
        "all_action": exact.all_action_gradient(mdp, policy, hyper, **options),
        "natural": exact.natural_gradient(mdp, policy, hyper, **options),
    }
    found = {name: gradient_of(gradient_fn, params) for name, gradient_fn in ascents.items()}
    return found | {
        "metrics": ascents["gradient"](KEY, params)[1],
        "return": exact.expected_return(*arguments, **options),
        "values": exact.values(*arguments, **options),
        "visits": exact.visits(*arguments, **options),
        "fisher": exact.fisher(*arguments, **options),
        "hessian": exact.hessian(*arguments, **options),
    }


def found_at(case, flats, discounts, horizon):
    """`everything` under jit and vmap, for parameters `[B, D]` with discounts `[B]`."""
    unravel = ravel_pytree(case.params)[1]
    run = lambda flat, discount: everything(
        case.mdp, case.policy, unravel(flat), Hyper(discount), horizon
    )
    found = jax.jit(jax.vmap(run))(jnp.asarray(flats), jnp.asarray(discounts))
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), found) for i in range(len(flats))]


def check_curvature(found, fisher, objective, flat):
    """Gradients and second derivatives, from the objective in numpy and the Fisher matrix."""
    slope = lambda flat: complex_step(objective, flat)
    gradient = slope(flat)
    assert np.abs(gradient).max() > 0.01
    close(found["gradient"], gradient)
    close(found["all_action"], gradient)
    close(found["hessian"], difference(slope, flat))
    close(found["fisher"], fisher)
    close(found["natural"], np.linalg.pinv(fisher, rcond=1e-9, hermitian=True) @ gradient)


# --- within a horizon -----------------------------------------------------------------------------


@every_policy
def test_within_a_horizon_against_every_trajectory(name):
    case = cases()[name]
    shifted = case.flat + 0.3 * np.cos(np.arange(len(case.flat)))
    flats, discounts = np.stack([case.flat, shifted]), np.array([0.8, 1.0])
    for i, found in enumerate(found_at(case, flats, discounts, case.horizon)):
        flat, discount, here = flats[i], discounts[i], case.at(flats[i])
        paths = enumeration.enumerate_paths(here)
        payoff = enumeration.discounted_return(paths, discount)
        close(found["return"], paths.probability @ payoff)
        close(found["metrics"]["expected_return"], paths.probability @ payoff)
        check_values(found["values"], here, paths, discount)
        powers = discount ** np.arange(case.horizon)
        chance = paths.probability[:, None] * powers * paths.mask  # [M, T]
        close(found["visits"], np.einsum("mt,mts->ts", chance, np.eye(4)[paths.obs]))
        score = case._replace(params=jnp.asarray(flat)).scores(paths)
        fisher = np.einsum("mt,mtd,mte->de", chance, score, score)
        objective = lambda flat, here=here, paths=paths, payoff=payoff: enumeration.mean(
            here, paths, payoff, case.logits(flat)
        )
        check_curvature(found, fisher, objective, flat)


def test_greedily_is_with_all_probability_on_the_best_action():
    case = cases()["tabular"]
    certain = jnp.where(case.params == jnp.max(case.params, axis=1, keepdims=True), 0.0, -jnp.inf)
    value = lambda policy, params: exact.expected_return(
        case.mdp, policy, params, Hyper(0.8), horizon=case.horizon
    )
    greedy = policies.greedy(case.policy)
    found, gradient = jax.jit(jax.value_and_grad(lambda params: value(greedy, params)))(case.params)
    close(found, value(case.policy, certain))
    close(value(greedy, case.params), found)
    assert np.all(np.asarray(gradient) == 0)


def check_values(found, problem, paths, discount):
    """V_t(s) and Q_t(s, a) are the mean return from there on, in the states that are visited."""
    value = enumeration.values(problem, discount)
    close(found.state, value)
    close(found.action, enumeration.action_values(problem, discount, value[1:]))
    to_go = np.zeros_like(paths.reward)
    for t in reversed(range(problem.horizon)):
        later = to_go[:, t + 1] if t + 1 < problem.horizon else 0.0
        to_go[:, t] = paths.reward[:, t] + discount * later
    action = np.eye(problem.logits.shape[1])[paths.action]
    chosen = np.einsum("mts,mta->mtsa", np.eye(4)[paths.obs], action)
    chance = np.einsum("m,mt,mtsa->tsa", paths.probability, paths.mask, chosen)
    total = np.einsum("m,mt,mtsa->tsa", paths.probability, paths.mask * to_go, chosen)
    visited = chance > 0
    assert visited.sum() > 10
    close(found.action[visited], total[visited] / chance[visited])
    here = chance.sum(-1) > 0
    close(found.state[:-1][here], total.sum(-1)[here] / chance.sum(-1)[here])


# --- without a horizon ----------------------------------------------------------------------------


def without_end(case, discounts):
    flats = np.stack([case.flat] * len(discounts))
    here = case.problem
    for found, discount in zip(found_at(case, flats, discounts, None), discounts, strict=True):
        move, _ = enumeration.under_policy(here)
        value = enumeration.endless_values(here, discount)
        visits = here.initial @ enumeration.sum_of_powers(discount * move)
        close(found["return"], here.initial @ value)
        close(found["values"].state, value)
        close(found["values"].action, enumeration.action_values(here, discount, value))
        close(found["visits"], visits)
        pi = softmax(here.logits)
        slopes = case.slopes()
        score = slopes - np.einsum("sa,sad->sd", pi, slopes)[:, None]
        fisher = np.einsum("s,sa,sad,sae->de", visits, pi, score, score)
        objective = lambda flat, discount=discount: (
            here.initial @ enumeration.endless_values(here, discount, case.logits(flat))
        )
        check_curvature(found, fisher, objective, case.flat)


@every_policy
def test_without_a_horizon_against_the_sum_over_all_times(name):
    """Discounted, and undiscounted where every episode ends."""
    without_end(cases()[name], np.array([0.9, 1.0]))


def test_without_a_horizon_or_an_end():
    without_end(tabular(random_problem(1, ends=False)), np.array([0.5, 0.95]))


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_no_horizon_is_the_limit_of_horizons(discount):
    case = tabular(random_problem(0))

    def run(horizon):
        ascent = exact.exact_gradient(case.mdp, case.policy, Hyper(discount), horizon=horizon)
        gradient, metrics = jax.jit(ascent)(KEY, case.params)
        return gradient, metrics["expected_return"]

    for short, long, limit in zip(run(3), run(2000), run(None), strict=True):
        close(long, limit)
        assert np.abs(short - limit).max() > 1e-6


def test_natural_gradient_of_a_table_is_the_advantage():
    """F^+ grad J holds Q(s, a) less its mean over the actions, at all visited states."""
    case = tabular(random_problem(2))
    hyper = Hyper(0.9)
    natural = exact.natural_gradient(case.mdp, case.policy, hyper, horizon=None)
    value = enumeration.endless_values(case.problem, 0.9)
    action = enumeration.action_values(case.problem, 0.9, value)
    close(
        jax.jit(natural)(KEY, case.params)[0],
        action - action.mean(axis=1, keepdims=True),
        atol=1e-9,
    )


def test_damping_is_added_to_the_fisher_matrix():
    case, hyper = tabular(random_problem(2)), Hyper(0.9)
    options = {"horizon": 4}
    ascent = exact.exact_gradient(case.mdp, case.policy, hyper, **options)
    natural = exact.natural_gradient(case.mdp, case.policy, hyper, damping=0.3, **options)

    @jax.jit
    def run(params):
        fisher = exact.fisher(case.mdp, case.policy, params, hyper, **options)
        return fisher, gradient_of(ascent, params), gradient_of(natural, params)

    fisher, gradient, found = run(case.params)
    close(found, np.linalg.solve(fisher + 0.3 * np.eye(8), gradient))


def test_states_that_are_never_visited_need_not_end():
    """Their values are undefined, which does not affect those of the others."""
    problem = random_problem(0)
    trap = np.zeros((5, 2, 5))
    trap[:4, :, :4], trap[4, :, 4] = problem.transition, 1
    reward = np.pad(problem.reward, ((0, 1), (0, 0), (0, 1)), constant_values=1.0)
    pad = lambda x: np.append(x, [0.0])
    mdp = MDP(trap, reward, pad(problem.initial), pad(problem.terminal) > 0)
    policy = policies.tabular(5, 2)
    params = jnp.pad(jnp.asarray(problem.logits), ((0, 1), (0, 0)))
    whole = jax.jit(lambda params: everything(mdp, policy, params, Hyper(1.0), None))(params)
    (alone,) = found_at(tabular(problem), [problem.logits.ravel()], [1.0], None)
    close(whole["return"], alone["return"])
    for name in ("visits", "gradient", "all_action", "natural"):
        close(whole[name], np.pad(alone[name], (0, len(whole[name]) - len(alone[name]))))
    assert np.isnan(whole["values"].state[4]) and np.all(np.isnan(whole["values"].action[4]))
    close(whole["values"].state[:4], alone["values"].state)
    with pytest.raises(ValueError, match="J diverges, because state 4 is visited"):
        start = np.array([0.5, 0.4, 0, 0, 0.1])
        exact.values(mdp._replace(initial=start), policy, params, Hyper(1.0), horizon=None)


def test_an_action_of_probability_zero_leads_nowhere():
    mdp = environments.short_corridor().mdp
    policy = policies.tabular(4, 2)
    mdp = mdp._replace(observation=None)
    never_left = jnp.array([[-1e4, 0.0], [0.0, -1e4], [-1e4, 0.0], [0.0, 0.0]])
    steps = exact.expected_return(mdp, policy, never_left, Hyper(1.0), horizon=None)
    assert steps == -3
    with pytest.raises(ValueError, match="J diverges"):
        exact.expected_return(mdp, policy, -never_left, Hyper(1.0), horizon=None)


# --- the same however it is called ----------------------------------------------------------------


@pytest.mark.parametrize("horizon", [3, None])
def test_without_jit_it_is_the_same(horizon):
    case = cases()["aliased"]

    def some(mdp, params, discount):
        ascent = exact.exact_gradient(mdp, case.policy, Hyper(discount), horizon=horizon)
        return ascent(KEY, params), exact.visits(
            mdp, case.policy, params, Hyper(discount), horizon=horizon
        )

    arguments = (jax.tree.map(jnp.asarray, case.mdp), case.params, 0.8)
    check = lambda a, b: close(a, b, atol=1e-12)
    jax.tree.map(check, some(*arguments), jax.jit(some)(*arguments))


def test_random_problems_keep_the_identities():
    """On twenty dense MDPs at once: Bellman, the policy gradient theorem, visits and curvature."""
    random = np.random.default_rng(3)
    shape = (20, 5, 3, 5)
    mdps = MDP(
        transition=jnp.asarray(random.dirichlet(0.5 * np.ones(5), shape[:3])),
        reward=jnp.asarray(random.normal(size=shape)),
        initial=jnp.asarray(random.dirichlet(np.ones(5), 20) * (np.arange(5) < 4)),
        terminal=jnp.asarray(random.integers(2, size=(20, 1)) * (np.arange(5) == 4) > 0),
    )
    mdps = mdps._replace(initial=mdps.initial / mdps.initial.sum(1, keepdims=True))
    logits, discount = random.normal(size=shape[:3]), jnp.asarray(random.uniform(0.3, 1.0, 20))
    policy = policies.tabular(5, 3)
    for horizon in (7, None):
        run = lambda mdp, logits, discount, horizon=horizon: everything(
            mdp, policy, logits, Hyper(discount), horizon
        )
        found = jax.jit(jax.vmap(run))(mdps, jnp.asarray(logits), discount)
        values = found["values"]
        pi = softmax(logits) if horizon is None else softmax(logits)[:, None]
        state = values.state if horizon is None else values.state[:, :-1]
        close(state, np.sum(pi * values.action, axis=-1))
        first = state if horizon is None else state[:, 0]
        close(found["return"], np.sum(mdps.initial * first, axis=-1))
        visits = found["visits"] if horizon is None else found["visits"].sum(1)
        reward = np.sum(mdps.transition * mdps.reward, axis=-1)
        close(found["return"], np.einsum("bs,bsa,bsa->b", visits, softmax(logits), reward))
        close(found["gradient"], found["all_action"])
        close(found["hessian"], np.swapaxes(found["hessian"], 1, 2))
        assert np.linalg.eigvalsh(found["fisher"]).min() > -1e-12
        ascent = np.sum(found["natural"] * found["gradient"], axis=-1)
        assert np.all(ascent > 0)


def test_action_values_are_looked_up_by_time_and_state():
    case = tabular(random_problem(0))
    look_up = exact.action_values(case.mdp, case.policy, Hyper(0.8), horizon=3)
    obs = jnp.array([[0, 2, 1], [1, 3, 0]])
    blank = jnp.zeros((2, 3))
    trajectory = Trajectory(obs, obs, blank, blank, blank > 0, blank > 0, blank)
    value = enumeration.values(case.problem, 0.8)
    table = enumeration.action_values(case.problem, 0.8, value[1:])
    close(look_up(case.params, trajectory), table[np.arange(3), np.asarray(obs)])
    look_up = exact.action_values(case.mdp, case.policy, Hyper(0.8), horizon=None)
    table = exact.values(case.mdp, case.policy, case.params, Hyper(0.8), horizon=None).action
    close(look_up(case.params, trajectory), np.asarray(table)[np.asarray(obs)])


# --- the short corridor ---------------------------------------------------------------------------


def corridor(logit):
    """J of the short corridor as a function of the logit of going right."""
    mdp = environments.short_corridor().mdp
    params = jnp.stack([jnp.zeros_like(logit), logit])[None]
    policy = policies.tabular(1, 2)
    return exact.expected_return(mdp, policy, params, Hyper(1.0), horizon=None)


def test_short_corridor_is_its_closed_form():
    """V_0 = V_1 - 1/p and V_2 = V_1 (1 - p) - 1 give J(p) = -2 (2 - p) / (p (1 - p))."""
    p = np.array([0.05, 0.3, 0.5, 2 - np.sqrt(2), 0.9])
    logit = jnp.asarray(np.log(p / (1 - p)))
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(corridor)))(logit)
    np.testing.assert_allclose(value, -2 * (2 - p) / (p * (1 - p)), rtol=1e-12)
    # dp/dlogit = p (1 - p) and dJ/dp = 2 (p^2 - 4 p + 2) / (p (1 - p))^2.
    np.testing.assert_allclose(slope, 2 * (p**2 - 4 * p + 2) / (p * (1 - p)), rtol=1e-9, atol=1e-9)
    assert np.argmax(value) == 3
    close(value[3], -(6 + 4 * np.sqrt(2)))


def test_short_corridor_by_its_gradient_function():
    mdp = environments.short_corridor().mdp
    policy, p = policies.tabular(1, 2), 2 - np.sqrt(2)
    params = jnp.log(jnp.array([[1 - p, p]]))
    ascent = exact.exact_gradient(mdp, policy, Hyper(1.0), horizon=None)
    gradient, metrics = jax.jit(ascent)(KEY, params)
    close(gradient, np.zeros((1, 2)))
    close(metrics["expected_return"], -(6 + 4 * np.sqrt(2)))
    hessian = jax.jit(lambda x: exact.hessian(mdp, policy, x, Hyper(1.0), horizon=None))(params)
    assert np.linalg.eigvalsh(hessian).max() < 1e-9


# --- average reward -------------------------------------------------------------------------------


def continuing(name):
    problem = random_problem(4, ends=False, num_successors=2)
    return {
        "tabular": tabular(problem),
        "aliased": tabular(problem, np.array([0, 1, 1, 0])),
        "features": network(problem, np.random.default_rng(5).normal(size=(4, 2)), hidden=(3,)),
    }[name]


def average(problem, logits):
    """eta in numpy, for complex logits too."""
    return enumeration.stationary(problem, logits) @ enumeration.under_policy(problem, logits)[1]


@pytest.mark.parametrize("name", ["tabular", "aliased", "features"])
def test_average_reward_and_its_gradient(name):
    case = continuing(name)
    problem, arguments = case.problem, (case.mdp, case.policy)
    mu = exact.stationary(*arguments, case.params)
    close(mu, enumeration.stationary(problem))
    eta = exact.average_reward(*arguments, case.params)
    close(eta, average(problem, problem.logits))
    gradient_fn = exact.average_reward_gradient(*arguments)
    gradient, metrics = jax.jit(gradient_fn)(KEY, case.params)
    gradient = ravel_pytree(gradient)[0]
    truth = complex_step(lambda flat: average(problem, case.logits(flat)), case.flat)
    close(gradient, truth)
    assert np.abs(truth).max() > 0.01
    close(metrics["average_reward"], eta)
    h, q = exact.differential_values(*arguments, case.params)
    pi, score = softmax(problem.logits), case.slopes()
    score = score - np.einsum("sa,sad->sd", pi, score)[:, None]
    close(np.einsum("s,sa,sa,sad->d", mu, pi, q, score), truth)  # the theorem


def test_differential_values_solve_poissons_equation():
    case = continuing("tabular")
    move, reward = enumeration.under_policy(case.problem)
    mu = enumeration.stationary(case.problem)
    h, q = exact.differential_values(case.mdp, case.policy, case.params)
    close(h, reward - mu @ reward + move @ h)
    close(mu @ h, 0)
    close(q, enumeration.action_values(case.problem, 1.0, np.asarray(h)) - mu @ reward)
    # Not by the equation but by its meaning: reward to come beyond the average.
    transient = enumeration.sum_of_powers(move - np.ones((4, 1)) * mu, doublings=12)
    close(h, transient @ (reward - mu @ reward))


def test_average_reward_is_the_limit_of_discounting():
    """(1 - gamma) J and its gradient, extrapolated linearly to gamma = 1."""
    case = continuing("tabular")

    @jax.jit
    def discounted(gap):
        hyper = Hyper(1 - gap)
        value = exact.expected_return(case.mdp, case.policy, case.params, hyper, horizon=None)
        ascent = exact.exact_gradient(case.mdp, case.policy, hyper, horizon=None)
        return gap * value, gap * ascent(KEY, case.params)[0]

    near, far = discounted(1e-5), discounted(2e-5)
    eta = exact.average_reward(case.mdp, case.policy, case.params)
    close(2 * near[0] - far[0], eta, atol=1e-8)
    gradient = exact.average_reward_gradient(case.mdp, case.policy)(KEY, case.params)[0]
    close(2 * near[1] - far[1], gradient, atol=1e-8)
    assert np.abs(far[1] - gradient).max() > 1e-7
