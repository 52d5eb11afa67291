"""Rows shared out over devices."""

import os
import subprocess
import sys

import jax
import pytest

from pgjax import environments, estimators, gradients, policies, rollout, sharding

ON_MANY_DEVICES = """
import logging

import jax
import jax.numpy as jnp
import numpy as np

from pgjax import audit, environments, estimators, gradients, policies, sharding

env, env_params = environments.make("CartPole-v1")
policy = policies.make("mlp", env, env_params, hidden=(8,))
value_function = policies.make_value("mlp", env, env_params, hidden=(8,))
key = jax.random.key(0)
value = value_function.init(key, jnp.zeros(4))
params = {"policy": policy.init(key, jnp.zeros(4)), "value": value}
hyper = estimators.Hyper(discount=0.9, entropy_cost=0.1)


def episodes(mesh, form, baseline):
    own = value_function if form == "gae" else None
    gradient_fn = gradients.policy_gradient(
        env, env_params, policy, estimators.estimator(form, baseline), hyper,
        num_episodes=16, horizon=50, value_function=own, mesh=mesh,
    )
    return gradient_fn(key, params if own else params["policy"])


def segments(mesh, form, baseline):
    gradient_fn = gradients.segment_gradient(
        env, env_params, policy, estimators.estimator(form, baseline, "uniform"), hyper,
        num_rows=16, horizon=40, value_function=value_function, mesh=mesh,
    )
    _, state, _ = gradient_fn.step(key, params, gradient_fn.init(key, params))
    gradient, _, metrics = gradient_fn.step(key, params, state)
    return gradient, metrics


cases = [
    (episodes, "reward_to_go", "leave_one_out"),
    (episodes, "reward_to_go", "standardise"),
    (episodes, "gae", "value"),
    (segments, "gae", "standardise"),
    (segments, "n_step", "time_mean"),
]
for case, *names in cases:
    expected = jax.jit(lambda: case(None, *names))()
    for num in (1, 2, 8):
        mesh = sharding.mesh(jax.devices()[:num])
        found = jax.jit(lambda: case(mesh, *names))()
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-10), found, expected)
keys = jax.random.split(key, 3)
many = lambda mesh: jax.vmap(lambda key: gradients.policy_gradient(
    env, env_params, policy, estimators.estimator(), hyper, num_episodes=16, horizon=50, mesh=mesh
)(key, params["policy"]))(keys)
found, expected = (jax.jit(many, static_argnums=0)(mesh) for mesh in (mesh, None))
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-10), found, expected)

# Devices wait for each other once an update, and twice more where the baseline is of all rows.
mesh = sharding.mesh(jax.devices())
for names, num_waits in ((("gae", "value"), 1), (("reward_to_go", "leave_one_out"), 3)):
    compiled = jax.jit(lambda: episodes(mesh, *names)).lower().compile()
    assert compiled.as_text().count(" all-reduce(") == num_waits, names

# Counts stay exact among single precision numbers, which are so below 2^24 only.
with jax.enable_x64(False):
    rows = 2**27 + jnp.arange(8, dtype="int32")
    both = lambda _, rows: (jnp.sum(rows), jnp.mean(rows % 8))
    total, mean = jax.jit(sharding.over_rows(both, mesh, mean=True))((), rows)
    assert (total.dtype, int(total), float(mean)) == (rows.dtype, 2**30 + 28, 3.5)

# Rows may be shared out over one axis of a mesh with others.
square = jax.sharding.Mesh(np.reshape(jax.devices()[:4], (2, 2)), (sharding.AXIS, "models"))
sums = lambda _, rows: (jnp.sum(rows), jnp.mean(1.0 * rows))
total, mean = jax.jit(sharding.over_rows(sums, square, mean=True))((), jnp.arange(8))
assert (int(total), float(mean)) == (28, 3.5)

# An audit compiles its program once, wherever what it has summed so far lies.
messages, handler = [], logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("jax").addHandler(handler)
with jax.log_compiles():
    found, expected = (
        audit.audit(
            key,
            params["policy"],
            gradients.policy_gradient(
                env, env_params, policy, estimators.estimator(), hyper,
                num_episodes=16, horizon=50, mesh=mesh,
            ),
            num_replicates=4,
            chunk_size=1,
        ).mean
        for mesh in (mesh, None)
    )
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-10), found, expected)
assert sum("XLA compilation of jit(add)" in x for x in messages) == 2
"""


def test_one_two_and_eight_devices_give_the_same_gradients():
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    }
    subprocess.run([sys.executable, "-c", ON_MANY_DEVICES], check=True, env=environment)


def test_rows_must_fit_the_devices():
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params)
    mesh = jax.sharding.AbstractMesh((3,), (sharding.AXIS,))
    common = (env, env_params, policy, estimators.estimator(), estimators.Hyper())
    with pytest.raises(ValueError, match="num_episodes=8 must be a multiple of the 3 devices"):
        gradients.policy_gradient(*common, num_episodes=8, horizon=4, mesh=mesh)
    params = policy.init(jax.random.key(0), jax.numpy.zeros(4))
    rows = rollout.start(jax.random.key(0), env, env_params, policy, num_rows=8)
    with pytest.raises(ValueError, match="num_rows=8 must be a multiple of the 3 devices"):
        rollout.segments(
            jax.random.key(0), env, env_params, policy, params, rows, horizon=4, mesh=mesh
        )
    other = jax.sharding.AbstractMesh((2,), ("runs",))
    with pytest.raises(ValueError, match="axes .'runs',. and none named 'rows'"):
        gradients.policy_gradient(*common, num_episodes=8, horizon=4, mesh=other)
