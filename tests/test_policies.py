"""Policies: the contract, the heads, and the refusal of what does not fit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from pgjax import distributions, environments, networks, policies

CONTINUOUS = "PointRobot-misc"
FITS = [
    ("tabular", "auto", "FrozenLake-misc"),
    ("linear", "auto", "CartPole-v1"),
    ("mlp", "categorical", "Catch-bsuite"),
    ("mlp", "bernoulli", "CartPole-v1"),
    ("mlp", "auto", "FrozenLake-misc"),
    ("linear", "normal", CONTINUOUS),
    ("mlp", "tanh_normal", CONTINUOUS),
    ("mlp", "beta", CONTINUOUS),
]


def build(kind, distribution, name, **kwargs):
    env, env_params = environments.make(name)
    policy = policies.make(kind, env, env_params, distribution=distribution, **kwargs)
    obs, _ = env.reset(jax.random.key(0), env_params)
    return policy, policy.init(jax.random.key(1), obs), obs, env.action_space(env_params)


@pytest.mark.parametrize(("kind", "distribution", "name"), FITS)
def test_contract(kind, distribution, name):
    policy, params, obs, space = build(kind, distribution, name)
    assert policy.initial_state() == ()
    carry, one = policy.step(params, (), obs)
    assert carry == () and one.batch_shape == ()
    many = policy.unroll(params, (), jnp.stack([obs] * 3), jnp.zeros(3, bool))
    assert many.batch_shape == (3,)
    action = one.sample(jax.random.key(2))
    assert action.shape == space.shape
    repeated = jnp.stack([action] * 3)
    np.testing.assert_allclose(many.log_prob(repeated), one.log_prob(action), rtol=1e-5)
    legal = environments.to_action(space, one, action)
    assert space.contains(legal)


@pytest.mark.parametrize(("kind", "distribution", "name"), FITS)
def test_score_reaches_every_parameter(kind, distribution, name):
    policy, params, obs, _ = build(kind, distribution, name)
    keys = jax.random.split(jax.random.key(3), 16)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(keys[0], x.shape), params)

    def total(params):
        _, distribution = policy.step(params, (), obs)
        actions = jax.vmap(distribution.sample)(keys)
        return jnp.sum(jax.vmap(distribution.log_prob)(jax.lax.stop_gradient(actions)) ** 2)

    for leaf in jax.tree.leaves(jax.grad(total)(params)):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0)


def test_tabular_params_are_logits():
    policy = policies.tabular(3, 2)
    params = policy.init(jax.random.key(0), jnp.int32(0))
    assert params.shape == (3, 2) and jnp.all(params == 0)
    params = params.at[1].set(jnp.array([0.0, jnp.log(3.0)]))
    _, distribution = policy.step(params, (), jnp.int32(1))
    np.testing.assert_allclose(distribution.probs, [0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("distribution", "x", "probs"),
    [
        (distributions.categorical(jnp.array([[0.0, 2.0, 1.0]])), [[0], [1], [2]], [[0, 1, 0]]),
        (distributions.bernoulli(jnp.array([-1.0])), [[1], [0]], [0]),
        (
            distributions.independent(distributions.bernoulli(jnp.array([[2.0, -3.0]]))),
            [[[1, 1]], [[1, 0]], [[0, 0]]],
            None,
        ),
    ],
)
def test_all_mass_of_a_greedy_policy_is_on_the_mode(distribution, x, probs):
    greedy = distributions.Greedy(distribution)
    found = greedy.log_prob(jnp.array(x))
    np.testing.assert_array_equal(found, [[-np.inf], [0], [-np.inf]][: len(x)])
    if probs is not None:
        np.testing.assert_array_equal(greedy.probs, probs)


def test_a_greedy_policy_has_no_probability_outside_the_table():
    policy = policies.greedy(policies.tabular(2, 2))
    greedy = policy.unroll(jnp.eye(2), (), jnp.array([1, 2]), jnp.zeros(2, bool))
    np.testing.assert_array_equal(greedy.log_prob(jnp.array([2, 0])), [np.nan, np.nan])


def test_a_greedy_continuous_policy_has_no_density():
    greedy = distributions.Greedy(distributions.normal(jnp.zeros(3), 1.0))
    np.testing.assert_array_equal(greedy.log_prob(jnp.ones(3)), np.zeros(3))
    assert not hasattr(greedy, "probs")


def test_initial_log_std_is_in_units_of_half_the_range():
    policy, params, obs, _ = build("mlp", "normal", "Pendulum-v1", initial_log_std=-1.0)
    _, distribution = policy.step(params, (), obs)
    actions = jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(jnp.std(actions), 2 * np.exp(-1), rtol=0.03)


def test_initialisation_vmapped_over_seeds_terminates():
    """Orthogonal initialisation under vmap can deadlock jaxlib on CPU; ours must not need QR."""
    policy, _, obs, _ = build("mlp", "auto", "CartPole-v1")
    init = jax.vmap(policy.init, (0, None))
    keys = jax.random.split(jax.random.key(0), 8)
    primitives = re.findall(r"= (\w+)", str(jax.make_jaxpr(init)(keys, obs)))
    assert "erf_inv" in primitives and not {"geqrf", "qr", "householder_product"} & set(primitives)
    assert all(x.shape[0] == 8 for x in jax.tree.leaves(jax.jit(init)(keys, obs)))


@pytest.mark.parametrize("kind", ["tabular", "linear", "mlp"])
def test_value_functions(kind):
    env, env_params = environments.make("FrozenLake-misc")
    value = policies.make_value(kind, env, env_params)
    obs, _ = env.reset(jax.random.key(0), env_params)
    assert value.apply(value.init(jax.random.key(0), obs), obs).shape == ()


def test_a_table_of_another_shape_is_refused():
    policy, value = policies.tabular(3, 2), policies.tabular_value(3)
    with pytest.raises(ValueError, match=r"table have shape \(2, 2\); expected \(3, 2\)"):
        policy.step(jnp.zeros((2, 2)), (), jnp.int32(0))
    with pytest.raises(ValueError, match=r"table have shape \(4,\); expected \(3,\)"):
        value.apply(jnp.zeros(4), jnp.int32(0))
    assert value.apply(np.arange(3.0), jnp.int32(2)) == 2  # tables of numpy are as good


@pytest.mark.parametrize("num_actions", [None, 2])
def test_what_is_not_in_a_table_has_no_value(num_actions):
    value = policies.tabular_value(3, num_actions=num_actions)
    table = value.init(jax.random.key(0), jnp.int32(0))
    assert jnp.all(jnp.isnan(value.apply(table, jnp.int32(3))))
    assert jnp.all(value.apply(table, jnp.int32(2)) == 0)


def test_everything_is_float64_with_x64():
    with jax.enable_x64(True):
        policy, params, obs, _ = build("mlp", "normal", "MountainCarContinuous-v0")
        _, distribution = policy.step(params, (), obs)
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float64")}
        assert distribution.log_prob(distribution.mode()).dtype == jnp.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mpl", "auto", "CartPole-v1"), "did you mean 'mlp'"),
        (("mlp", "normall", CONTINUOUS), "did you mean 'normal'"),
        (("mlp", "categorical", CONTINUOUS), "does not fit the actions"),
        (("mlp", "normal", "CartPole-v1"), "does not fit the actions"),
        (("mlp", "bernoulli", "FrozenLake-misc"), "does not fit the actions"),
        (("tabular", "auto", "CartPole-v1"), "needs discrete observations"),
        (("tabular", "normal", "FrozenLake-misc"), "does not go with"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"hidden": (64, 0)}, "hidden=0"), ({"activation": "tan"}, "did you mean 'tanh'")],
)
def test_bad_network(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build("mlp", "auto", "CartPole-v1", **kwargs)


@pytest.mark.parametrize("outputs", [2, 4, 5])  # narrower than what goes in, wider, not few
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_the_product_has_all_the_derivatives_of_one(shape, outputs):
    key = jax.random.key(0)
    x, kernel = jax.random.normal(key, shape), jax.random.normal(key, (3, outputs))
    of = lambda product: lambda x, kernel: jnp.sum(jnp.tanh(product(x, kernel)) ** 2)
    ours, plain = of(networks.matmul), of(jnp.matmul)
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        both = [derivative(function, argnums=(0, 1)) for function in (ours, plain)]
        found, expected = jax.jit(lambda *at, both=both: [each(*at) for each in both])(x, kernel)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
        )


@pytest.mark.parametrize(
    "space", [spaces.Dict({"x": spaces.Box(-1, 1, (2,))}), spaces.Tuple((spaces.Discrete(2),))]
)
def test_observations_that_are_no_arrays_need_a_function(space):
    env, env_params = environments.make("CartPole-v1")
    env.observation_space = lambda env_params: space
    for make in (policies.make, policies.make_value):
        for kind in ("linear", "mlp"):
            with pytest.raises(ValueError, match=f"a {type(space).__name__}.*features="):
                make(kind, env, env_params)
