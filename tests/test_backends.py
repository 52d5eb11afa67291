"""What is laid out for one kind of device gives what the layout for another gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import backends, environments, estimators, gradients, policies
from pgjax.lab import experiment, parallel
from pgjax.lab.config import Config

LAYOUTS = {
    "accelerator": backends.GPU,
    "small blocks": backends.CPU._replace(
        rows=4, live_rows=4, unroll=2, chunk_size=8, lazy_calls=2
    ),
    "loops of many programs": backends.CPU._replace(fused_loops=False, lazy_calls=None),
    "one chunk": backends.CPU._replace(chunk_size=10**6, rows=None, live_rows=None, in_turn=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", ["episodes", "segments"])
def test_gradients_do_not_depend_on_the_layout(rows, layout, laid_out):
    expected = gradients_by_default(rows)
    laid_out(LAYOUTS[layout])
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, some_gradients(rows), expected)


@functools.cache
def gradients_by_default(rows):
    return some_gradients(rows)


def some_gradients(rows):
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(8, 8))
    value_function = policies.make_value("mlp", env, env_params, hidden=(8,))
    key, obs = jax.random.key(0), jnp.zeros(4)
    params = {"policy": policy.init(key, obs), "value": value_function.init(key, obs)}
    common = (env, env_params, policy, estimators.estimator("gae", "standardise", "uniform"))
    options = {"horizon": 33, "value_function": value_function}
    hyper = estimators.Hyper(discount=0.9, entropy_cost=0.1)

    def gradient(key):
        if rows == "episodes":
            gradient_fn = gradients.policy_gradient(*common, hyper, num_episodes=10, **options)
            return gradient_fn(key, params)
        segment = gradients.segment_gradient(*common, hyper, num_rows=10, **options)
        return segment.step(key, params, segment.init(key, params))[::2]

    return jax.jit(jax.vmap(gradient))(jax.random.split(key, 3))


# By JAX's `lax.Precision`, HIGH is TensorFloat-32 on a GPU, and DEFAULT is bfloat16 on a TPU.
@pytest.mark.parametrize(
    ("kind", "platform", "precision", "said"),
    [
        ("gpu", "cuda", "float32", "HIGHEST"),
        ("gpu", "cuda", "tensorfloat32", "HIGH"),
        ("tpu", "tpu", "float32", "HIGHEST"),
        ("tpu", "tpu", "bfloat16", "DEFAULT"),
    ],
)
def test_precision_of_products_can_be_chosen(kind, platform, precision, said, laid_out):
    laid_out(backends.KINDS[kind])
    config = Config(num_episodes=2, horizon=4, hidden=(4,), precision=precision)
    trainer = parallel.over_runs(experiment.build(config))
    inputs = experiment.inputs(experiment.each_seed(config))
    traced = trainer.train.trace(inputs, jax.eval_shape(trainer.init, inputs), num_steps=1)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "4x4" in line]
    assert products and all(f"precision = [{said}, {said}]" in line for line in products)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"form": "gae", "baseline": "value"},
        {"env": "Pendulum-v1", "distribution": "beta"},
        {"env": "Breakout-MinAtar", "entropy_cost": 0.1},
    ],
    ids=str,
)
def test_training_is_lowered_for_accelerators(choices, platform, laid_out):
    """No device is needed for that; what only some devices have a kernel for is refused."""
    laid_out(backends.TPU if platform == "tpu" else backends.GPU)
    config = Config(**{"num_episodes": 4, "horizon": 40, "hidden": (4,)} | choices)
    trainer = parallel.over_runs(experiment.build(config))
    inputs = experiment.inputs(experiment.each_seed(config))
    traced = trainer.train.trace(inputs, jax.eval_shape(trainer.init, inputs), num_steps=2)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text and "custom_call" not in text


@pytest.mark.parametrize(
    ("kind", "precision", "why"),
    [
        ("cpu", "bfloat16", "needs a TPU; this device has float32"),
        ("cpu", "tensorfloat32", "needs a GPU; this device has float32"),
        ("gpu", "bfloat16", "needs a TPU; this device has float32, tensorfloat32"),
        ("tpu", "tensorfloat32", "needs a GPU; this device has float32, bfloat16"),
        ("cpu", "float16", "is unknown"),
    ],
)
def test_precision_must_be_one_the_device_has(kind, precision, why, laid_out):
    laid_out(backends.KINDS[kind])
    with pytest.raises(ValueError, match=f"precision='{precision}' {why}"):
        experiment.build(Config(precision=precision))
