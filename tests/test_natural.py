"""The natural gradient against a dense solve, and its Fisher matrix against enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from pgjax import distributions, environments, gradients, heads, policies, rollout, train
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator
from pgjax.gradients.natural import conjugate_gradients, fisher_product
from pgjax.policies import memoryless

from . import enumeration
from .test_segments import remembers

KEY = jax.random.key(0)
HORIZON, NUM_ROWS = 6, 16
HYPER, PLAIN = Hyper(discount=0.8), estimator()
FAMILY_ERROR = 1e-4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cases():
    """Environment, policy and its params; every kind of head, and one with memory."""
    problem = enumeration.problem()
    mdp = MDP(problem.transition, problem.reward, problem.initial, problem.terminal)
    one_hot = policies.one_hot(3)
    wide = memoryless(
        init=lambda key, obs: {"loc": jnp.zeros(3), "log_scale": jnp.zeros(())},
        apply=lambda params, obs: distributions.normal(
            params["loc"] @ obs, jnp.exp(params["log_scale"])
        ),
    )
    return {
        "tabular": (mdp, policies.tabular(3, 3)),
        "mlp": (mdp, policies.mlp(heads.categorical(3), hidden=(4,), features=one_hot)),
        "memory": (mdp, remembers()),
        "normal": ("Pendulum-v1", wide),
        "beta": ("Pendulum-v1", policies.linear(heads.beta(()))),
    }


@functools.cache
def case(name):
    task, policy = cases()[name]
    if isinstance(task, str):
        env, env_params = environments.make(task)
    else:
        env = environments.tabular_mdp(task)
        env_params = env.default_params
    obs, _ = env.reset_env(KEY, env_params)
    params = jnp.zeros((3, 3)) if name == "memory" else policy.init(KEY, obs)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.3 * random.normal(size=x.shape)), params)
    return env, env_params, policy, params


def natural(name, damping=0.1, num_iterations=60, chosen=PLAIN, **arguments):
    env, env_params, policy, _ = case(name)
    defaults = {"num_episodes": NUM_ROWS, "horizon": HORIZON, "chunk_size": 20}
    return gradients.natural_gradient(
        env,
        env_params,
        policy,
        chosen,
        HYPER,
        damping=damping,
        num_iterations=num_iterations,
        **defaults | arguments,
    )


def played(name):
    env, env_params, policy, params = case(name)
    return rollout.episodes(
        KEY, env, env_params, policy, params, num_episodes=NUM_ROWS, horizon=HORIZON
    )


def scores(name, trajectory):
    """Scores `[N, T, D]`, materialised by reverse mode, one step after the other."""
    _, _, policy, params = case(name)
    flat, unravel = ravel_pytree(params)

    def log_probs(flat, obs, action, boundary):
        unrolled = policy.unroll(unravel(flat), policy.initial_state(), obs, boundary)
        return unrolled.log_prob(action)

    boundary = trajectory.terminated | trajectory.truncated
    jacobian = jax.vmap(jax.jacrev(log_probs), (None, 0, 0, 0))
    return jacobian(flat, trajectory.obs, trajectory.action, boundary)


@pytest.mark.parametrize("name", cases())
def test_is_the_dense_solution(name):
    """With scores, Fisher matrix and gradient in numpy; not that of another weighting."""
    *_, params = case(name)

    @jax.jit
    def run(params):
        trajectory = played(name)
        return natural(name)(KEY, params), trajectory, scores(name, trajectory)

    (solution, metrics), trajectory, score = run(params)
    score = np.asarray(score) * np.asarray(trajectory.mask)[:, :, None]
    reward = np.asarray(trajectory.reward)
    to_go = np.zeros_like(reward)
    for t in reversed(range(HORIZON)):
        to_go[:, t] = reward[:, t] + 0.8 * (to_go[:, t + 1] if t + 1 < HORIZON else 0)
    advantage = to_go - (to_go.sum(0) - to_go) / (NUM_ROWS - 1)
    weight = 0.8 ** np.arange(HORIZON)
    gradient = np.einsum("t,ntd,nt->d", weight, score, advantage) / NUM_ROWS
    fisher = np.einsum("t,ntd,nte->de", weight, score, score) / NUM_ROWS
    expected = np.linalg.solve(fisher + 0.1 * np.eye(len(gradient)), gradient)
    flat = np.asarray(ravel_pytree(solution)[0])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-8 * scale)
    assert metrics["residual"] < 1e-8
    uniform = np.einsum("ntd,nte->de", score, score) / NUM_ROWS
    other = np.linalg.solve(uniform + 0.1 * np.eye(len(gradient)), gradient)
    assert np.abs(flat - other).max() > 1e-3 * scale


def test_large_damping_leaves_the_gradient():
    env, env_params, policy, params = case("tabular")
    plain = gradients.policy_gradient(
        env, env_params, policy, estimator(), HYPER, num_episodes=NUM_ROWS, horizon=HORIZON
    )
    damped = natural("tabular", damping=1e9, num_iterations=3)
    both = jax.jit(lambda params: (plain(KEY, params)[0], damped(KEY, params)[0]))
    gradient, solution = both(params)
    np.testing.assert_allclose(1e9 * solution, gradient, rtol=1e-7, atol=1e-12)
    weak = jax.jit(natural("tabular", damping=1.0))(KEY, params)[0]
    assert np.abs(weak - gradient).max() > 1e-2


@pytest.mark.parametrize("discount", [0.8, 1.0])
def test_the_fisher_matrix_is_unbiased(discount):
    """Products with unit vectors, row by row, against sum_m p_m sum_t gamma^t u u^T."""
    problem = enumeration.problem()
    paths = enumeration.enumerate_paths(problem)
    score = enumeration.scores(problem, paths).reshape(*paths.mask.shape, -1)
    exact = np.einsum(
        "m,t,mtd,mte->de", paths.probability, 0.8 ** np.arange(3), score, score, optimize=True
    )
    env, env_params, policy, _ = case("tabular")

    @jax.jit
    def products(params):
        trajectory = rollout.episodes(
            KEY, env, env_params, policy, params, num_episodes=4000, horizon=3
        )
        weight = trajectory.mask * (discount ** jnp.arange(3))[None, :]

        def of_row(row, weight):
            alone = jax.tree.map(lambda x: x[None], row)
            product = fisher_product(params, alone, weight[None], policy, 8)
            return jax.vmap(lambda x: product(x.reshape(3, 3)).ravel())(jnp.eye(9))

        return jax.vmap(of_row)(trajectory, weight)

    samples = np.asarray(products(jnp.asarray(problem.logits)))
    spread = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    random = spread > 1e-12
    z = np.abs((samples.mean(axis=0) - exact)[random] / spread[random]).max()
    np.testing.assert_allclose(samples.mean(axis=0)[~random], exact[~random], atol=1e-12)
    assert (z < scipy.stats.norm.isf(FAMILY_ERROR / (2 * 81))) == (discount == 0.8)


def test_conjugate_gradients():
    """A singular system that has a solution; more iterations than dimensions do no harm."""
    random = np.random.default_rng(0)
    factor = jnp.asarray(random.normal(size=(6, 4)))
    matrix = factor @ factor.T
    b = matrix @ jnp.asarray(random.normal(size=6))
    solve = jax.jit(
        lambda b, num: conjugate_gradients(lambda x: matrix @ x, b, num), static_argnums=1
    )
    few, many = solve(b, 2), solve(b, 50)
    np.testing.assert_allclose(matrix @ many[0], b, atol=1e-8)
    # In the range of the matrix, the least solution: nothing drifts in its null space.
    np.testing.assert_allclose(many[0], jnp.linalg.lstsq(matrix, b)[0], atol=1e-8)
    assert many[1] < 1e-10 < 1e-3 < few[1]
    np.testing.assert_allclose(
        few[1], jnp.linalg.norm(b - matrix @ few[0]) / jnp.linalg.norm(b), rtol=1e-9
    )
    nothing, residual = solve(jnp.zeros(6), 5)
    assert np.all(nothing == 0) and residual == 0


def test_does_not_depend_on_the_parametrisation():
    """Logits in other units: the step in logits is the same; the plain gradient's is not."""
    env, env_params, policy, params = case("tabular")
    scale = jnp.asarray([[1.0, 3.0, 0.2], [5.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    stretched = policy._replace(
        step=lambda params, carry, obs: policy.step(scale * params, carry, obs),
        unroll=lambda params, carry, obs, ends: policy.unroll(scale * params, carry, obs, ends),
    )
    options = {"num_episodes": 256, "horizon": 3}

    def compute(params):
        damped = options | {"damping": 0.0, "num_iterations": 12}
        make = lambda policy: (
            gradients.natural_gradient(env, env_params, policy, estimator(), HYPER, **damped),
            gradients.policy_gradient(env, env_params, policy, estimator(), HYPER, **options),
        )
        own = [f(KEY, params)[0] for f in make(policy)]
        other = [scale * f(KEY, params / scale)[0] for f in make(stretched)]
        return [step - jnp.mean(step, axis=1, keepdims=True) for step in (*own, *other)]

    natural, plain, other_natural, other_plain = jax.jit(compute)(params)
    np.testing.assert_allclose(natural, other_natural, atol=1e-6)
    assert np.abs(plain - other_plain).max() > 0.1


def test_the_value_part_passes_through():
    env, env_params, policy, params = case("tabular")
    value = policies.tabular_value(3)
    chosen, options = estimator("gae", "value"), {"value_function": value}
    params = {"policy": params, "value": jnp.array([0.3, -0.2, 0.0])}
    plain = gradients.policy_gradient(
        env, env_params, policy, chosen, HYPER, num_episodes=NUM_ROWS, horizon=HORIZON, **options
    )
    turned = natural("tabular", chosen=chosen, **options)
    both = jax.jit(lambda params: (plain(KEY, params), turned(KEY, params)))
    (gradient, metrics), (solution, turned_metrics) = both(params)
    np.testing.assert_allclose(solution["value"], gradient["value"], atol=1e-14)
    assert np.abs(solution["policy"] - gradient["policy"]).max() > 1e-2
    assert set(turned_metrics) == set(metrics) | {"residual"}


def test_seeds_can_be_vmapped_and_compile_once():
    *_, params = case("mlp")
    keys = jax.random.split(KEY, 3)
    run = jax.jit(jax.vmap(natural("mlp", num_iterations=5), (0, None)))
    together, _ = run(keys, params)
    run(keys, params)
    assert run._cache_size() == 1
    alone, _ = jax.jit(natural("mlp", num_iterations=5))(keys[1], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-9), together, alone)


def test_leaves_a_corner_faster():
    """A bandit whose better arm is at first taken once in fifty: p (1 - p) slows the plain step.

    At rates that make equal steps at p = 1/2, where F is 1/2 along the only direction there is.
    """
    transition = np.zeros((2, 2, 2))
    transition[..., 1] = 1
    reward = np.zeros((2, 2, 2))
    reward[0, 1] = 1
    env = environments.tabular_mdp(MDP(transition, reward, np.eye(2)[0], np.arange(2) == 1))
    arguments = (env, env.default_params, policies.tabular(2, 2), PLAIN, HYPER)
    options = {"num_episodes": 2000, "horizon": 1}
    plain = gradients.policy_gradient(*arguments, **options)
    turned = gradients.natural_gradient(*arguments, damping=1e-4, num_iterations=2, **options)
    start = jnp.array([[3.9, 0.0], [0.0, 0.0]])

    def better_arm(gradient_fn, rate):
        optimizer = optax.sgd(rate)
        run = lambda key: train.train(
            key, train.init(key, start, optimizer), gradient_fn, optimizer, num_steps=6
        )
        state, _ = jax.jit(run)(KEY)
        return jax.nn.softmax(state.params[0])[1]

    assert better_arm(plain, 2.0) < 0.1 < 0.8 < better_arm(turned, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_episodes": 0}, "num_episodes=0"),
        ({"num_episodes": 1}, "computed from other episodes"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_episodes": 2**20, "horizon": 2**11}, "must be below 2\\*\\*31 steps"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chosen": estimator("gae", "none")}, "needs a value function"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        natural("tabular", **arguments)
