"""Squared norms of single trajectories, against the gradients they are norms of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax import environments, estimators, gradients, heads, policies, rollout
from pgjax.distributions import categorical, normal
from pgjax.estimators import Hyper, estimator
from pgjax.gradients import norms
from pgjax.policies import Policy

NUM_ROWS = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def remembering():
    """A policy whose logits see a running sum of what was observed."""

    def step(params, carry, obs):
        carry = carry + jnp.sum(obs)
        return carry, categorical(params * jnp.tanh(carry))

    def unroll(params, carry, obs, boundary):
        sums = carry + jnp.cumsum(jnp.sum(obs, axis=1))
        return categorical(params[None, :] * jnp.tanh(sums)[:, None])

    return Policy(lambda key, obs: jnp.array([0.3, -0.2]), lambda: jnp.zeros(()), step, unroll)


def mixed():
    """A network and a table of its own beside it, whose scale is no dense layer's."""
    inner = policies.mlp(heads.normal((1,)), hidden=(16,))

    def apply(params, obs):
        _, law = inner.step(params["net"], (), obs)
        scale = jnp.exp(params["shift"])
        return law._replace(distribution=normal(law.distribution.loc, scale))

    init = lambda key, obs: {"net": inner.init(key, obs), "shift": jnp.array([0.2])}
    return policies.memoryless(init, apply)


CASES = {
    # Name: environment, policy, horizon; wide layers and short episodes take the pairs of times.
    "pairs": ("CartPole-v1", policies.mlp(heads.categorical(2), hidden=(64, 48)), 6),
    "products": ("CartPole-v1", policies.mlp(heads.categorical(2), hidden=(8,)), 40),
    "table": ("ShortCorridor", policies.tabular(1, 2), 9),
    "memory": ("CartPole-v1", remembering(), 12),
    "mixed": ("Pendulum-v1", mixed(), 7),
}


@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_the_rows_gradients(case):
    name, policy, horizon = CASES[case]
    env, env_params = environments.make(name)
    key = jax.random.key(0)
    obs, _ = env.reset_env(key, env_params)
    params = policy.init(key, obs)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), params)
    choice, hyper = estimator("reward_to_go", "constant"), Hyper(discount=0.9, constant=0.5)

    def both(params):
        trajectory = rollout.episodes(
            key, env, env_params, policy, params, num_episodes=NUM_ROWS, horizon=horizon
        )
        use = dict(policy=policy, estimator=choice, hyper=hyper)
        found = gradients.squared_norms(params, trajectory, **use, chunk_size=2 * horizon)
        one = lambda row: gradients.trajectory_gradient(params, row, **use)
        rows = jax.vmap(one)(jax.tree.map(lambda x: x[:, None], trajectory))
        return found, rows

    found, rows = jax.jit(both)(params)
    norm = sum(
        np.sum(np.asarray(x).reshape(NUM_ROWS, -1) ** 2, axis=1) for x in jax.tree.leaves(rows)
    )
    assert np.all(norm > 0)
    np.testing.assert_allclose(found, norm, rtol=1e-10)


def test_a_memory_may_start_elsewhere():
    env, env_params = environments.make("CartPole-v1")
    policy, key = remembering(), jax.random.key(0)
    params = policy.init(key, jnp.zeros(4))
    rows = rollout.start(key, env, env_params, policy, num_rows=NUM_ROWS)
    rows = rows._replace(policy_state=jnp.linspace(-2.0, 2.0, NUM_ROWS))
    use = {
        "policy": policy,
        "estimator": estimator("reward_to_go", "none", "uniform"),
        "hyper": Hyper(discount=0.9),
    }

    def both(rows):
        window, _ = rollout.segments(key, env, env_params, policy, params, rows, horizon=6)
        found = gradients.squared_norms(
            params, window, policy_state=rows.policy_state, **use, chunk_size=12
        )
        one = lambda row, start: gradients.trajectory_gradient(
            params, row, policy_state=start, **use
        )
        split = lambda tree: jax.tree.map(lambda x: x[:, None], tree)
        fresh = gradients.squared_norms(params, window, **use)
        return found, jax.vmap(one)(split(window), split(rows.policy_state)), fresh

    found, expected, fresh = jax.jit(both)(rows)
    np.testing.assert_allclose(found, np.sum(expected**2, axis=1), rtol=1e-10)
    assert np.all(np.abs(found - fresh)[[0, -1]] > 1e-3)


def test_layers_are_found_where_there_are_any():
    _, policy, _ = CASES["pairs"]
    params = policy.init(jax.random.key(0), jnp.zeros(4))
    layers = norms._dense_layers(policy, params, jnp.zeros(4), jnp.zeros((), int))
    assert list(layers.values()) == [64, 48, 2]
    assert norms._split(params, layers)[0] == []
    policy = mixed()
    params = policy.init(jax.random.key(0), jnp.zeros(3))
    layers = norms._dense_layers(policy, params, jnp.zeros(3), jnp.zeros(1))
    assert list(layers.values()) == [16, 1]
    rest, _ = norms._split(params, layers)
    assert {x.shape for x in rest} == {(1,)}


def of_network(apply):
    """A policy over two actions whose network is a compact call."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, obs):
            return apply(obs)

    network = Network()
    return policies.memoryless(
        network.init, lambda params, obs: categorical(network.apply(params, obs))
    )


class Tied(nn.Module):
    """A layer whose kernel is also read to map back."""

    @nn.compact
    def __call__(self, obs):
        layer = nn.Dense(3, name="layer")
        hidden = jnp.tanh(layer(obs))
        back = layer.variables["params"]["kernel"] @ hidden
        return nn.Dense(2)(back)


def mapped(axes, **options):
    apart = {"params": axes is not None}
    return nn.vmap(nn.Dense, variable_axes={"params": axes}, split_rngs=apart, **options)


ODD = {
    "mapped": lambda obs: mapped(0, in_axes=None, out_axes=0, axis_size=3)(2)(obs).mean(0),
    "mapped over inputs": lambda obs: mapped(None)(2)(obs.reshape(2, -1)).mean(0),
    "normalised": lambda obs: nn.Dense(2)(nn.WeightNorm(nn.Dense(8))(obs)),
    "tied": lambda obs: Tied()(obs),
    "by name": lambda obs: nn.Dense(2)(inputs=obs),
    "remembered": lambda obs: nn.Dense(2)(jnp.tanh(nn.remat(nn.Dense)(8)(obs))),
    "twice": lambda obs: (lambda layer: layer(jnp.tanh(layer(obs)))[:2])(nn.Dense(4)),
    "with another": lambda obs: nn.Dense(2)(obs) + nn.Dense(2)(obs[None])[0],
}


@pytest.mark.parametrize("name", ODD)
def test_layers_of_any_kind_have_the_norms_of_their_gradients(name):
    policy = of_network(ODD[name])
    env, env_params = environments.make("CartPole-v1")
    key = jax.random.key(0)
    params = jax.tree.map(lambda x: x.astype(float), policy.init(key, jnp.ones(4)))
    use = dict(policy=policy, estimator=estimator("reward_to_go", "none"), hyper=Hyper())

    def both(params):
        trajectory = rollout.episodes(
            key, env, env_params, policy, params, num_episodes=1, horizon=10
        )
        gradient = gradients.trajectory_gradient(params, trajectory, **use)
        return gradients.squared_norms(params, trajectory, **use)[0], gradient

    found, gradient = jax.jit(both)(params)
    np.testing.assert_allclose(found, optax.tree.norm(gradient, squared=True), rtol=1e-10)


def test_pairs_of_times_form_no_gradient():
    size = 512
    x, back = jnp.ones((4, size)), jnp.ones((4, size))
    compiled = jax.jit(norms._dense_norm).lower(x, back).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * size * size / 4
    long = jax.jit(norms._dense_norm).lower(*[jnp.ones((600, size))] * 2).compile()
    assert long.memory_analysis().temp_size_in_bytes >= 8 * size * size


def test_an_entropy_bonus_is_refused():
    with pytest.raises(ValueError, match="entropy_cost=0.1"):
        gradients.squared_norms(
            None,
            None,
            policy=policies.tabular(1, 2),
            estimator=estimators.estimator(),
            hyper=Hyper(entropy_cost=0.1),
        )
