"""From a config to the pure functions of a run, each for one seed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgjax import environments, estimators, gradients, policies, rollout, score, train
from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.train import TrainState


class Experiment(NamedTuple):
    """What a run does, for one seed as `build` gives it, for many after `over_seeds`."""

    init: Callable[[jax.Array], TrainState]  # key -> state
    train: Callable[..., tuple[TrainState, score.Metrics]]  # (key, state, *, num_steps) -> ...
    evaluate: Callable[..., score.Metrics]  # (key, params, *, num_episodes, ...) -> [N] each


class Keys(NamedTuple):
    """What the key of a seed is split into, one key a purpose."""

    init: jax.Array
    train: jax.Array
    evaluation: jax.Array


class Setting(NamedTuple):
    """What a run acts in and with, whatever it estimates the gradient by."""

    env: Any
    env_params: Any
    policy: policies.Policy
    value_function: policies.ValueFunction
    hyper: estimators.Hyper
    horizon: int


def setting(config: Config) -> Setting:
    """Checks every choice and makes environment, policy and value function.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    configs.validate(config)
    env, env_params = environments.make(config.env, **config.env_params)
    horizon = _horizon(config, env_params)
    network = {"hidden": config.hidden, "activation": config.activation}
    policy = policies.make(
        config.policy,
        env,
        env_params,
        distribution=config.distribution,
        initial_log_std=config.initial_log_std,
        **network,
    )
    value_function = policies.make_value(config.policy, env, env_params, **network)
    return Setting(env, env_params, policy, value_function, _hyper(config), horizon)


def blank_observation(env: Any, env_params: Any) -> jax.Array:
    """Zeros shaped like what the environment shows."""
    obs, _ = jax.eval_shape(env.reset_env, jax.random.key(0), env_params)
    return jnp.zeros(obs.shape, obs.dtype)


def build(config: Config) -> Experiment:
    """Checks every choice and puts the experiment together.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    env, env_params, policy, values, hyper, horizon = setting(config)
    estimator = estimators.estimator(config.form, config.baseline, config.state_weighting)
    value_function = values if estimators.needs_value(estimator) else None
    gradient_fn = gradients.policy_gradient(
        env,
        env_params,
        policy,
        estimator,
        hyper,
        num_episodes=config.num_episodes,
        horizon=horizon,
        value_function=value_function,
        chunk_size=config.chunk_size,
    )
    ascent = optimizer(config, with_value=value_function is not None)

    def init(key: jax.Array) -> TrainState:
        policy_key, value_key, gradient_key = jax.random.split(key, 3)
        obs = blank_observation(env, env_params)
        params = policy.init(policy_key, obs)
        if value_function is not None:
            params = {"policy": params, "value": value_function.init(value_key, obs)}
        return train.init(gradient_key, params, ascent, gradient_fn)

    def run(key: jax.Array, state: TrainState, *, num_steps: int):
        return train.train(key, state, gradient_fn, ascent, num_steps=num_steps)

    def evaluate(
        key: jax.Array, params: Any, *, num_episodes: int, draw: int = 0, greedy: bool = False
    ):
        trajectory = rollout.episodes(
            jax.random.fold_in(key, draw),
            env,
            env_params,
            policies.greedy(policy) if greedy else policy,
            params if value_function is None else params["policy"],
            num_episodes=num_episodes,
            horizon=horizon,
        )
        return {
            "return": jnp.sum(trajectory.reward, axis=1),
            "episode_length": jnp.sum(trajectory.mask, axis=1),
        }

    return Experiment(init, run, evaluate)


def describe(config: Config) -> str:
    """One line that says what a run ascends, and whether it is biased."""
    estimator = estimators.estimator(config.form, config.baseline, config.state_weighting)
    unbiased, reason = estimators.is_unbiased(estimator, _hyper(config))
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    verdict = "unbiased" if unbiased else "biased"
    return (
        f"{config.env}, {' + '.join(estimator)} ({verdict}: {reason}), "
        f"{config.num_updates} updates of {config.num_episodes} episodes, {seeds}"
    )


def over_seeds(experiment: Experiment) -> Experiment:
    """The same for many seeds in one compiled program; every array leads with an axis of seeds.

    The state given to `train` is donated. Each function compiles once a shape.
    """

    def train(key: jax.Array, state: TrainState, *, num_steps: int):
        return jax.vmap(partial(experiment.train, num_steps=num_steps))(key, state)

    def evaluate(
        key: jax.Array, params: Any, *, num_episodes: int, draw: int = 0, greedy: bool = False
    ):
        one = partial(experiment.evaluate, num_episodes=num_episodes, draw=draw, greedy=greedy)
        return jax.vmap(one)(key, params)

    return Experiment(
        init=_compiled(jax.vmap(experiment.init), effort=0),
        train=_compiled(train, effort=1, static_argnames="num_steps", donate_argnums=1),
        evaluate=_compiled(evaluate, effort=0, static_argnames=("num_episodes", "greedy")),
    )


def _compiled(function: Callable[..., Any], *, effort: int, **kwargs: Any) -> Callable[..., Any]:
    """`function`, jitted with as much effort on machine code as pays.

    On CPU a level of one runs as fast as XLA's own three and compiles a quarter faster; zero is
    for what runs once. Elsewhere XLA knows better.
    """
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": effort} if cpu else None
    return jax.jit(function, compiler_options=options, **kwargs)


def keys(config: Config) -> Keys:
    """The keys of every seed of a run, each split once by purpose."""

    @jax.jit
    @jax.vmap
    def split(seed: jax.Array) -> Keys:
        return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))

    return split(config.seed + np.arange(config.seeds, dtype=np.uint32))


def optimizer(config: Config, *, with_value: bool) -> optax.GradientTransformation:
    """The optax transformation of a config; policy and value function never mix in it."""
    policy = _optimizer(config, config.learning_rate)
    if not with_value:
        return policy
    value = _optimizer(config, config.value_learning_rate)
    labels = {"policy": "policy", "value": "value"}
    return optax.partition({"policy": policy, "value": value}, labels)


def _optimizer(config: Config, learning_rate: float) -> optax.GradientTransformation:
    ascent = getattr(optax, config.optimizer)(_schedule(config, learning_rate))
    if config.max_grad_norm is None:
        return ascent
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), ascent)


def _schedule(config: Config, learning_rate: float) -> optax.ScalarOrSchedule:
    if config.schedule == "linear":
        return optax.linear_schedule(learning_rate, 0.0, config.num_updates)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, config.num_updates)
    return learning_rate


def _hyper(config: Config) -> estimators.Hyper:
    return estimators.Hyper(
        **{field: float(getattr(config, field)) for field in estimators.Hyper._fields}
    )


def _horizon(config: Config, env_params: Any) -> int:
    if config.horizon is not None:
        return config.horizon
    limit = environments.time_limit(env_params)
    if limit is None:
        raise ValueError(f"horizon=None must be a number: {config.env} has no time limit")
    return limit
