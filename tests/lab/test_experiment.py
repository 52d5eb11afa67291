"""From a config to pure functions: seeds, keys, optimisers, refusals."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.lab import experiment, parallel
from pgjax.lab.config import Config


def test_many_seeds_in_one_program_are_many_runs_of_one_seed(tiny):
    built = experiment.build(tiny)
    together = parallel.over_runs(built)
    seeds = experiment.each_seed(tiny)
    inputs = experiment.inputs(seeds)
    states, metrics = together.train(inputs, together.init(inputs), num_steps=3)
    for index, seed in enumerate(seeds):
        alone = jax.tree.map(lambda x: x[0], experiment.inputs([seed]))
        train = jax.jit(built.train, static_argnames="num_steps")
        state, expected = train(alone, built.init(alone), num_steps=3)
        for name, values in expected.items():
            np.testing.assert_allclose(metrics[name][index], values, rtol=1e-5, err_msg=name)
        for many, one in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(many[index], one, rtol=1e-5, atol=1e-6)
    first, second = jax.tree.map(lambda x: np.asarray(x), metrics["discounted_return"])
    assert np.any(first != second)


def test_a_run_says_whether_what_it_ascends_is_biased():
    assert "(unbiased: always)" in experiment.describe(Config())
    assert "(biased: without gamma^t" in experiment.describe(
        Config(discount=0.9, state_weighting="uniform")
    )


def test_no_key_serves_two_purposes():
    inputs = experiment.inputs(experiment.each_seed(Config(seed=3, seeds=4)))
    keys = (inputs.init, inputs.train, inputs.evaluation)
    data = np.concatenate([jax.random.key_data(key) for key in keys])
    assert len(np.unique(data, axis=0)) == 3 * 4


def test_seeds_overlap_where_their_numbers_do():
    first, second = (
        experiment.inputs(experiment.each_seed(config))
        for config in (Config(seed=0, seeds=3), Config(seed=2))
    )
    assert first.train[2] == second.train[0]
    assert first.train[1] != second.train[0]


def test_the_value_function_has_an_optimiser_of_its_own():
    config = Config(optimizer="sgd", learning_rate=0.0, value_learning_rate=0.5, max_grad_norm=1.0)
    optimizer = experiment.optimizer(config, experiment.numbers(config), with_value=True)
    gradient = {"policy": jnp.array([300.0, 400.0]), "value": jnp.array([0.6, 0.8])}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_array_equal(updates["policy"], 0)
    # Its own norm is one: a norm over both would have scaled it to nothing.
    np.testing.assert_allclose(updates["value"], [-0.3, -0.4], rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    config = Config(optimizer="sgd", learning_rate=1.0, max_grad_norm=1.0)
    optimizer = experiment.optimizer(config, experiment.numbers(config), with_value=False)
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


def test_evaluation_acts_by_the_mode_only_when_told(tiny):
    built = parallel.over_runs(experiment.build(tiny))
    inputs = experiment.inputs(experiment.each_seed(tiny))
    params = built.init(inputs).params
    sampled = built.evaluate(inputs, params, num_episodes=16)
    greedy = built.evaluate(inputs, params, num_episodes=16, greedy=True)
    # A uniform policy's mode goes left for ever, and the corridor has no other luck in it.
    np.testing.assert_array_equal(greedy["return"], -tiny.horizon)
    assert np.any(sampled["return"] != -tiny.horizon)


def test_runs_of_other_numbers_share_a_program_and_are_what_they_are_alone(tiny):
    others = {"learning_rate": 0.3, "discount": 0.5, "lambda_": 0.2, "max_grad_norm": 0.1, "n": 2}
    configs = [
        dataclasses.replace(config, seeds=1)
        for config in (tiny, dataclasses.replace(tiny, seed=4, value_learning_rate=1.0, **others))
    ]
    together = parallel.over_runs(experiment.build(tiny))
    inputs = experiment.inputs(configs)
    states, _ = together.train(inputs, together.init(inputs), num_steps=3)
    for index, config in enumerate(configs):
        own = parallel.over_runs(experiment.build(config))
        alone = experiment.inputs([config])
        state, _ = own.train(alone, own.init(alone), num_steps=3)
        for many, one in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(many[index], one[0])
    first, second = (jax.tree.leaves(experiment.inputs([x]).numbers) for x in configs)
    assert first != second


CARTPOLE = {"env": "CartPole-v1"}
UNEVEN = CARTPOLE | {"num_episodes": 64, "hidden": (32,), "learning_rate": 0.1}
PENDULUM = {"env": "Pendulum-v1", "form": "gae", "baseline": "value"}


@pytest.mark.parametrize(
    ("choices", "block"),
    [
        (CARTPOLE, 1),
        (UNEVEN, 2),
        (PENDULUM, 2),
        pytest.param(CARTPOLE, 2, marks=pytest.mark.slow),
        pytest.param(UNEVEN, 1, marks=pytest.mark.slow),
        pytest.param(PENDULUM, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_network_ends_with_the_same_bits_whatever_runs_beside_it(choices, block):
    config = Config(**{"num_episodes": 8, "horizon": 40, "num_updates": 3, "seeds": 5} | choices)
    seeds = experiment.each_seed(config)
    built = experiment.build(config)

    def params(runs, block):
        program, inputs = parallel.over_runs(built, block), experiment.inputs(runs)
        state, _ = program.train(inputs, program.init(inputs), num_steps=3)
        return jax.tree.leaves(state.params)

    for many, one in zip(params(seeds, block), params(seeds[3:4], None), strict=True):
        np.testing.assert_array_equal(many[3], one[0])


ON_DEVICES = """
from pgjax.lab import machine
devices = machine.devices()
import jax, numpy as np
from pgjax.lab import experiment, parallel
from pgjax.lab.config import Config
config = Config(num_episodes=8, horizon=40, num_updates=3, seeds=4)
inputs = experiment.inputs(experiment.each_seed(config))
alone = parallel.over_runs(experiment.build(config))
state, _ = alone.train(inputs, alone.init(inputs), num_steps=3)
assert len(devices) == 2, devices
shared = parallel.over_devices(alone, devices)
placed = jax.device_put(inputs, parallel.sharding(devices))
other, _ = shared.train(placed, shared.init(placed), num_steps=3)
for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
    assert len(two.sharding.device_set) == 2
    np.testing.assert_array_equal(one, two)
"""


def test_params_are_the_same_bits_on_two_devices():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_DEVICES], check=True, env=environment)


def test_numbers_of_the_environment_are_traced_where_they_can_be():
    config = Config(env="Pendulum-v1", env_params={"g": 9, "max_torque": 1.0, "max_speed": 5.0})
    numbers = experiment.numbers(config)
    assert numbers["env_params.g"] == 9.0 and numbers["env_params.max_speed"] == 5.0
    # The bounds of actions decide what the policy is.
    assert "env_params.max_torque" not in numbers


def test_what_is_switched_off_is_no_number():
    numbers = experiment.numbers(Config(entropy_cost=0.0, max_grad_norm=None))
    assert not {"entropy_cost", "max_grad_norm"} & set(numbers)
    assert {"entropy_cost", "max_grad_norm"} <= set(
        experiment.numbers(Config(entropy_cost=0.1, max_grad_norm=1.0))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "CartPole"}, "did you mean 'CartPole-v1'"),
        ({"env_params": {"gravty": 9.0}}, "did you mean 'gravity'"),
        ({"form": "reward_to_come"}, "did you mean 'reward_to_go'"),
        ({"baseline": "leave_on_out"}, "did you mean 'leave_one_out'"),
        ({"policy": "mpl"}, "did you mean 'mlp'"),
        ({"distribution": "normal"}, "does not fit"),
        ({"env": "Pendulum-v1", "distribution": "categorical"}, "does not fit"),
        ({"env": "Pendulum-v1", "policy": "tabular"}, "tabular"),
        ({"activation": "tan"}, "did you mean 'tanh'"),
        ({"state_weighting": "discount"}, "did you mean 'discounted'"),
        ({"discount": 1.5}, "discount"),
        ({"discount": float("nan")}, "discount"),
        ({"lambda_": -0.1}, "lambda"),
        ({"entropy_cost": float("inf")}, "entropy_cost"),
        ({"num_episodes": 1}, "num_episodes"),
        ({"horizon": 0}, "horizon"),
        ({"form": "total_return", "baseline": "value"}, "total_return"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(dataclasses.replace(Config(), **change))
