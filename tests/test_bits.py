"""Boolean observations as bits: the same observations, and the same gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import bits, environments, estimators, gradients, policies, rollout, sharding

from .test_segments import remembers

BREAKOUT = environments.make("Breakout-MinAtar")


@pytest.mark.parametrize("shape", [(), (7,), (8,), (9,), (3, 5), (10, 10, 4), (10, 10, 7)])
def test_unpacked_is_what_was_packed(shape):
    batch = jax.random.bernoulli(jax.random.key(0), 0.3, (6, 4, *shape))
    packed = jax.vmap(jax.vmap(bits.pack))(batch)
    size = np.prod(shape, dtype=int)
    assert sum(x.nbytes for x in jax.tree.leaves(packed)) == 24 * (
        size if size < 8 else -(-size // 8)
    )
    unpacked = bits.unpack(packed)
    assert unpacked.dtype == jnp.bool_
    np.testing.assert_array_equal(unpacked, batch)


def test_only_booleans_are_packed():
    obs = {"seen": jnp.ones((4, 4), bool), "speed": jnp.arange(9.0), "count": jnp.arange(9)}
    packed = bits.pack(obs)
    assert isinstance(packed["seen"], bits.Bits)
    assert packed["speed"] is obs["speed"] and packed["count"] is obs["count"]
    jax.tree.map(np.testing.assert_array_equal, bits.unpack(packed), obs)


def test_bits_are_told_apart():
    """Each entry has a bit of its own."""
    unpacked = bits.unpack(jax.vmap(bits.pack)(jnp.eye(21, dtype=bool)))
    np.testing.assert_array_equal(unpacked, np.eye(21, dtype=bool))


@pytest.mark.parametrize("play", ["episodes", "segments"])
def test_rollouts_hold_the_same_observations(play):
    env, env_params = BREAKOUT
    policy = policies.make("linear", env, env_params)
    params = policy.init(jax.random.key(0), env.reset_env(jax.random.key(1), env_params)[0])

    def roll(packed):
        common = (jax.random.key(2), env, env_params, policy, params)
        if play == "episodes":
            return rollout.episodes(*common, num_episodes=6, horizon=12, packed=packed)
        rows = rollout.start(jax.random.key(3), env, env_params, policy, num_rows=6)
        return rollout.segments(*common, rows, horizon=12, packed=packed)[0]

    plain, packed = jax.jit(roll, static_argnums=0)(False), jax.jit(roll, static_argnums=0)(True)
    for field in ("obs", "final_obs"):
        assert getattr(packed, field).data.nbytes * 8 == getattr(plain, field).nbytes
    jax.tree.map(np.testing.assert_array_equal, bits.unpack(packed), plain)


def remembers_breakout():
    """A policy with memory that is linear in the observation."""
    policy = remembers(lambda params, obs: jnp.ravel(obs) @ params)
    return policy._replace(init=lambda key, obs: 0.1 * jax.random.normal(key, (obs.size, 3)))


@pytest.mark.parametrize(("name", "num_devices"), [("mlp", 1), ("mlp", 2), ("memory", 1)])
def test_policy_gradient_of_bits_is_that_of_the_observations(name, num_devices):
    """What `policy_gradient` makes of packed episodes is the gradient of the plain ones."""
    env, env_params = BREAKOUT
    policy = (
        policies.make("mlp", env, env_params, hidden=(8,))
        if name == "mlp"
        else remembers_breakout()
    )
    value_function = policies.make_value("mlp", env, env_params, hidden=(8,))
    estimator, hyper = estimators.estimator("gae", "value"), estimators.Hyper(discount=0.9)
    sizes = {"num_episodes": 8, "horizon": 24}
    keys = jax.random.split(jax.random.key(0), 3)
    obs, _ = env.reset_env(keys[0], env_params)
    params = {"policy": policy.init(keys[1], obs), "value": value_function.init(keys[2], obs)}
    key = jax.random.key(4)
    mesh = sharding.mesh(jax.devices()[:num_devices]) if num_devices > 1 else None
    found, _ = jax.jit(
        gradients.policy_gradient(
            env,
            env_params,
            policy,
            estimator,
            hyper,
            value_function=value_function,
            chunk_size=16,
            mesh=mesh,
            **sizes,
        )
    )(key, params)
    trajectory = rollout.episodes(key, env, env_params, policy, params["policy"], **sizes)
    assert 0 < float(jnp.mean(trajectory.mask)) < 1
    value, next_value = gradients.values(value_function, params["value"], trajectory)
    expected = gradients.trajectory_gradient(
        params["policy"],
        trajectory,
        policy=policy,
        estimator=estimator,
        hyper=hyper,
        value=value,
        next_value=next_value,
    )
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found["policy"], expected)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)) > 1e-3
