"""Operations counted over the iterations that run: matrix products in loops of every kind."""

import jax
import jax.numpy as jnp
import pytest

from pgjax import cost, environments, estimators, gradients, policies

SIZE = 16
PRODUCT = 2 * SIZE**3
MATRIX = jnp.eye(SIZE)


def power(matrix, times):
    return jax.lax.fori_loop(0, times, lambda _, x: x @ matrix, matrix)


def scanned(matrix):
    return jax.lax.scan(lambda x, _: (x @ matrix, None), matrix, length=7)[0]


def nested(matrix, times):
    def step(x, inner):
        return jax.lax.fori_loop(0, inner, lambda _, y: y @ matrix, x), None

    return jax.lax.scan(step, matrix, jnp.arange(times))[0]


def branch(matrix, times):
    return jax.lax.cond(times > 0, lambda: matrix @ matrix @ matrix, lambda: matrix)


PROGRAMS = {
    "no loop": (lambda a: a @ a, (MATRIX,), 1),
    "scan": (scanned, (MATRIX,), 7),
    "while": (power, (MATRIX, jnp.int32(13)), 13),
    "while that does not run": (power, (MATRIX, jnp.int32(0)), 0),
    "while in scan": (lambda a: nested(a, 6), (MATRIX,), 15),
    "jit": (jax.jit(power), (MATRIX, jnp.int32(5)), 5),
    "vmapped while": (jax.vmap(power, (None, 0)), (MATRIX, jnp.array([1, 3, 5])), 3 * 5),
    "branch taken": (branch, (MATRIX, jnp.int32(1)), 2),
    "branch not taken": (branch, (MATRIX, jnp.int32(0)), 0),
    "gradient": (jax.grad(lambda a: jnp.sum(scanned(a))), (MATRIX,), 21),
    "checkpoint": (jax.grad(lambda a: jnp.sum(jax.checkpoint(scanned)(a))), (MATRIX,), 28),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_counted_as_often_as_they_run(name):
    function, args, products = PROGRAMS[name]
    counted = cost.flops(function, *args)
    # Loops and gradients add a little of their own: counters, additions, selections.
    assert products * PRODUCT <= counted < (products + 0.5) * PRODUCT


def test_xla_alone_counts_a_body_once():
    analysis = jax.jit(power).lower(MATRIX, jnp.int32(13)).cost_analysis()
    assert analysis is not None and analysis["flops"] < 2 * PRODUCT


def test_policy_gradient_costs_what_its_network_does():
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(64, 64), activation="tanh")
    params = policy.init(jax.random.key(0), jnp.zeros(4))
    gradient_fn = gradients.policy_gradient(
        env,
        env_params,
        policy,
        estimators.estimator(),
        estimators.Hyper(discount=0.99),
        num_episodes=16,
        horizon=100,
        chunk_size=128,
    )
    key = jax.random.key(1)
    forward = 2 * (4 * 64 + 64 * 64 + 64 * 2)
    env_steps = int(jax.jit(gradient_fn)(key, params)[1]["env_steps"])
    # A step needs one pass to act and three to learn; ended rows act, and chunks are filled up.
    least = 4 * forward * env_steps
    most = 1.2 * forward * (16 * 100 + 3 * (env_steps + 128))
    assert least < cost.flops(gradient_fn, key, params) < most
