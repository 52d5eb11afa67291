"""The programs that stand beside pgjax: fair ones, that learn, and timed in turn."""

import functools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pgjax_reinforce, plain_reinforce, rounds, side_by_side
from pgjax import environments, estimators, gradients, policies, rollout


def test_smoke(capsys, monkeypatch):
    monkeypatch.setattr(rounds, "XLA_FLAGS", os.environ["XLA_FLAGS"])  # compiled as tests are
    side_by_side.main(["--smoke"])
    printed = capsys.readouterr().out
    for program in ("pgjax, segments", "pgjax, episodes", "plain"):
        assert program in printed
    assert "not run, rejax: give --venv" in printed


@pytest.fixture
def as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("as_users_have_it")
def test_plain_gradient_is_that_of_pgjax():
    num_rows, horizon, discount = 6, 40, 0.9
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params)
    key = jax.random.key(3)
    params = policy.init(key, jnp.zeros(4))
    rows = rollout.start(key, env, env_params, policy, num_rows=num_rows)
    trajectory, _ = rollout.segments(key, env, env_params, policy, params, rows, horizon=horizon)
    ours = gradients.trajectory_gradient(
        params,
        trajectory,
        policy=policy,
        estimator=estimators.estimator("reward_to_go", "standardise", "uniform"),
        hyper=estimators.Hyper(discount=discount),
    )
    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), trajectory)
    done = time_first.terminated | time_first.truncated
    assert jnp.sum(done[:-1]) > 0
    returns = plain_reinforce.reward_to_go(time_first.reward, done, discount)
    theirs = jax.grad(plain_reinforce.loss)(
        layers(params),
        time_first.obs,
        time_first.action,
        (returns - jnp.mean(returns)) / jnp.std(returns),
    )
    for own, other in zip(layers(ours), theirs, strict=True):
        for x, y in zip(own, other, strict=True):
            np.testing.assert_allclose(x / horizon, -y, rtol=1e-3, atol=1e-5)


def layers(params):
    """Kernels and biases of pgjax's network, as the plain one has them."""
    return [(layer["kernel"], layer["bias"]) for _, layer in sorted(params["params"].items())]


@pytest.mark.usefixtures("as_users_have_it")
def test_plain_learns():
    train = functools.partial(
        plain_reinforce.train, num_envs=64, num_steps=128, num_updates=40, discount=0.99
    )
    mean_return = jax.jit(plain_reinforce.mean_return)
    before = mean_return(jax.random.key(1), plain_reinforce.init(jax.random.key(0)))
    after = mean_return(jax.random.key(1), jax.jit(train)(jax.random.key(0), 1e-2))
    assert before < 60
    assert after > 150


def test_window_gradient_goes_on_where_it_stopped():
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params)
    gradient_fn = pgjax_reinforce.window_gradient(
        env,
        env_params,
        policy,
        estimators.estimator("reward_to_go", "standardise", "uniform"),
        estimators.Hyper(),
        num_rows=4,
        horizon=5,
        mesh=None,
    )
    key = jax.random.key(0)
    params = policy.init(key, jnp.zeros(4))
    rows = gradient_fn.init(key, params)
    _, rows, metrics = gradient_fn.step(key, params, rows)
    assert metrics["env_steps"] == 20
    assert rows.time == 5
    assert jnp.all(rows.elapsed == 5)


def test_first_round_is_not_counted_and_programs_take_turns(monkeypatch):
    asked = []

    def ask(side, what):
        if what == "evaluate":
            return {"returns": [float(len(asked))]}
        asked.append((side.process, what))
        return {"seconds": float(len(asked)), "cpu_seconds": 0.0}

    def start(command):
        return rounds.Side(command.module, {"versions": {}, "compile_seconds": {"run": 1.0}})

    monkeypatch.setattr(rounds, "start", start)
    monkeypatch.setattr(rounds, "ask", ask)
    monkeypatch.setattr(rounds, "stop", lambda side: None)
    commands = {name: rounds.Command("", name, {}) for name in "ab"}
    first, second = rounds.compare(commands, num_rounds=2)
    assert asked == 3 * [("a", "run"), ("b", "run")]
    assert first.seconds == [3.0, 5.0]
    assert second.seconds == [4.0, 6.0]
    assert second.evaluation == {"returns": [6.0]}


def test_ratio_is_taken_within_a_round(monkeypatch):
    def timed(name, seconds):
        evaluation = {"env_steps": 100, "returns": [1.0]}
        return rounds.Timed(name, "run", {}, 1.0, seconds, seconds, evaluation)

    both = [timed("a", [1.0, 10.0, 1.0]), timed("b", [2.0, 20.0, 3.0])]
    monkeypatch.setattr(rounds, "compare", lambda *_: both)
    first, second = side_by_side.measure("some", {}, 3)
    assert first["measured"]["ratio"]["rounds"] == [1, 1, 1]
    assert second["measured"]["ratio"]["rounds"] == [2, 2, 3]
    assert second["measured"]["steps_per_second"]["rounds"] == pytest.approx([50, 5, 100 / 3])


def test_what_differs_is_said_of_every_program():
    for comparison in side_by_side.COMPARISONS:
        for program in side_by_side.commands(comparison, side_by_side.SETTINGS, "rejax", "sb3"):
            row = side_by_side.kept.row({"program": program}, {})
            lines = side_by_side.differences([row])
            assert lines
            assert all(program.startswith(line.partition(":")[0]) for line in lines)


def test_process_that_ends_is_reported():
    command = rounds.Command(sys.executable, "benchmarks.plain_reinforce", {"num_devices": 1})
    with pytest.raises(RuntimeError, match="plain_reinforce.*ended with status 1"):
        rounds.start(command)
