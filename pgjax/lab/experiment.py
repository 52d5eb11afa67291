"""From a config to the pure functions of a run, and to their inputs."""

import dataclasses
import functools
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pgjax import (
    backends,
    checks,
    environments,
    estimators,
    gradients,
    policies,
    rollout,
    score,
    train,
)
from pgjax.lab import config as configs
from pgjax.lab.config import ENV_PARAMS, Config
from pgjax.train import TrainState

NUMBERS = (
    "learning_rate",
    "value_learning_rate",
    "discount",
    "lambda_",
    "n",
    "constant",
    "entropy_cost",
    "max_grad_norm",
    "initial_log_std",
)
"""Numbers that a compiled program takes as arguments, besides those of the environment."""


class Inputs(NamedTuple):
    """All that tells runs of one program apart: keys, one for each purpose, and numbers."""

    init: jax.Array
    train: jax.Array
    evaluation: jax.Array
    numbers: Mapping[str, Any]


class Experiment(NamedTuple):
    """What a run does, for one run as `build` gives it, for many after `parallel.over_runs`."""

    init: Callable[[Inputs], TrainState]
    train: Callable[..., tuple[TrainState, score.Metrics]]  # (inputs, state, *, num_steps) -> ...
    evaluate: Callable[..., score.Metrics]  # (inputs, params, *, num_episodes, ...) -> [N] each


class Setting(NamedTuple):
    """What a run acts in and with, however it estimates the gradient."""

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
    _check_precision(config.precision)
    import_modules(config)
    env, env_params = environments.make(config.env, **config.env_params)
    horizon = _horizon(config, env_params)
    value_function = policies.make_value(config.policy, env, env_params, **_network(config))
    policy = _policy(config, env, env_params, config.initial_log_std)
    return Setting(env, env_params, policy, value_function, _hyper(config), horizon)


def import_modules(config: Config) -> None:
    """Imports what a config names, also from the working directory, so that it can register.

    Raises:
      ValueError: no name of a module, or one that cannot be imported.
    """
    if config.modules and "" not in sys.path:
        sys.path.append("")
    for name in config.modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"modules={name!r} must be the name of a module, as in package.module")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"modules={name!r} cannot be imported: {error}") from error
        except Exception as error:  # whatever the user's own code may raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"modules={name!r} cannot be imported: {type(error).__name__}: {error} "
                f"({last.filename}, line {last.lineno})"
            ) from error


def as_possible(config: Config) -> Config:
    """A run's config as this device can go on with it: in float32 if it lacks the precision.

    It warns of the change.
    """
    own = backends.current().precisions
    if config.precision in own or not backends.kinds_with(config.precision):
        return config
    warnings.warn(
        f"the run has precision={config.precision!r}, which this device lacks: it computes in "
        f"{own[0]} here",
        stacklevel=2,
    )
    return dataclasses.replace(config, precision=own[0])


def check_numbers(config: Config) -> None:
    """Refuses numbers that no run can have; choices that shape its program are left to `build`.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    configs.validate(config)
    import_modules(config)
    estimators.check_hyper(_hyper(config))
    _check_env_params(config.env, tuple(config.env_params.items()))


def numbers(config: Config) -> dict[str, float]:
    """The numbers of a run that its program takes as arguments, by name.

    Runs that differ in nothing else share a program. An entropy cost of zero and a clipping norm of
    None are not among them: such programs have no bonus, or clip nothing.
    """
    own = {name: getattr(config, name) for name in NUMBERS}
    if own["entropy_cost"] == 0:
        del own["entropy_cost"]
    theirs = {
        ENV_PARAMS + name: x
        for name, x in config.env_params.items()
        if _can_be_traced(config.env, name)
    }
    return {name: float(x) for name, x in (own | theirs).items() if x is not None}


def blank_observation(env: Any, env_params: Any) -> jax.Array:
    """Zeros shaped like what the environment shows."""
    obs, _ = jax.eval_shape(env.reset_env, jax.random.key(0), env_params)
    return jnp.zeros(obs.shape, obs.dtype)


def build(config: Config, mesh: Mesh | None = None) -> Experiment:
    """Checks every choice and puts the experiment together.

    The config's own numbers and seed are not looked at again: a run takes them from its `Inputs`.

    Args:
      config: of the run.
      mesh: devices that the episodes are shared out over (`sharding.mesh`); None for one.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    base = setting(config)
    estimator = estimators.estimator(config.form, config.baseline, config.state_weighting)
    value_function = base.value_function if estimators.needs_value(estimator) else None

    def gradient(own: Setting) -> Callable[..., Any]:
        return gradients.policy_gradient(
            own.env,
            own.env_params,
            own.policy,
            estimator,
            own.hyper,
            num_episodes=config.num_episodes,
            horizon=own.horizon,
            value_function=value_function,
            chunk_size=config.chunk_size,
            mesh=mesh,
        )

    def parts(numbers: Mapping[str, Any]):
        own = _at(base, config, numbers)
        ascent = optimizer(config, numbers, with_value=value_function is not None)
        return own, gradient(own), ascent

    gradient(base)  # refuses what cannot be, before anything is traced

    def init(inputs: Inputs) -> TrainState:
        own, gradient_fn, ascent = parts(inputs.numbers)
        policy_key, value_key, gradient_key = jax.random.split(inputs.init, 3)
        obs = blank_observation(own.env, own.env_params)
        params = own.policy.init(policy_key, obs)
        if value_function is not None:
            params = {"policy": params, "value": value_function.init(value_key, obs)}
        return train.init(gradient_key, params, ascent, gradient_fn)

    def run(inputs: Inputs, state: TrainState, *, num_steps: int):
        _, gradient_fn, ascent = parts(inputs.numbers)
        return train.train(inputs.train, state, gradient_fn, ascent, num_steps=num_steps)

    def evaluate(
        inputs: Inputs, params: Any, *, num_episodes: int, draw: int = 0, greedy: bool = False
    ):
        own, _, _ = parts(inputs.numbers)
        # The first episodes do not depend on how many follow: enough for all devices are played.
        num_devices = 1 if mesh is None else mesh.size
        trajectory = rollout.episodes(
            jax.random.fold_in(inputs.evaluation, draw),
            own.env,
            own.env_params,
            policies.greedy(own.policy) if greedy else own.policy,
            params if value_function is None else params["policy"],
            num_episodes=-(-num_episodes // num_devices) * num_devices,
            horizon=own.horizon,
            fields=("reward", "mask"),
            mesh=mesh,
        )
        return {
            "return": jnp.sum(trajectory.reward, axis=1)[:num_episodes],
            "episode_length": jnp.sum(trajectory.mask, axis=1)[:num_episodes],
        }

    return Experiment(*(in_precision(config.precision, each) for each in (init, run, evaluate)))


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


def each_seed(config: Config) -> list[Config]:
    """The runs of a config, one per seed."""
    alone = dataclasses.replace(config, seeds=1)
    return [dataclasses.replace(alone, seed=config.seed + index) for index in range(config.seeds)]


def inputs(runs: Sequence[Config]) -> Inputs:
    """What the runs of one program are given, each array with a leading axis of runs.

    Args:
      runs: configs of one seed each, that differ in their numbers and seeds only.
    """

    @jax.jit
    @jax.vmap
    def split(seed: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jax.random.split(jax.random.key(seed), 3))

    first, following, last = split(np.array([run.seed for run in runs], np.uint32))
    rows = [numbers(run) for run in runs]
    dtype = jnp.result_type(float)
    stacked = {name: np.array([row[name] for row in rows], dtype) for name in rows[0]}
    return Inputs(first, following, last, stacked)


def optimizer(
    config: Config, numbers: Mapping[str, Any], *, with_value: bool
) -> optax.GradientTransformation:
    """The optax transformation of a config; policy and value function never mix in it."""
    policy = _optimizer(config, numbers, "learning_rate")
    if not with_value:
        return policy
    value = _optimizer(config, numbers, "value_learning_rate")
    labels = {"policy": "policy", "value": "value"}
    return optax.partition({"policy": policy, "value": value}, labels)


def in_precision(precision: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its matrix products in a precision, where there is one to choose."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with backends.matmul_precision(precision):
            return function(*args, **kwargs)

    return call


def _check_precision(precision: str) -> None:
    own, kinds = backends.current().precisions, backends.kinds_with(precision)
    if precision not in own and kinds:
        raise ValueError(
            f"precision={precision!r} needs a {kinds[0].upper()}; this device has {', '.join(own)}"
        )
    checks.choice("precision", precision, own)


def _optimizer(
    config: Config, numbers: Mapping[str, Any], learning_rate: str
) -> optax.GradientTransformation:
    ascent = getattr(optax, config.optimizer)(_schedule(config, numbers[learning_rate]))
    if "max_grad_norm" in numbers:
        ascent = optax.chain(optax.clip_by_global_norm(numbers["max_grad_norm"]), ascent)
    return optax.flatten(ascent)  # few operations, whatever the network


def _schedule(config: Config, learning_rate: Any) -> optax.ScalarOrSchedule:
    if config.schedule == "linear":
        return optax.linear_schedule(learning_rate, 0.0, config.num_updates)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, config.num_updates)
    return learning_rate


def _at(base: Setting, config: Config, numbers: Mapping[str, Any]) -> Setting:
    """A setting with the given numbers, which may be traced, in place of the config's own."""
    theirs = {
        name.removeprefix(ENV_PARAMS): x
        for name, x in numbers.items()
        if name.startswith(ENV_PARAMS)
    }
    env_params = base.env_params.replace(**theirs)
    hyper = {name: numbers.get(name, getattr(base.hyper, name)) for name in base.hyper._fields}
    return base._replace(
        env_params=env_params,
        policy=_policy(config, base.env, env_params, numbers["initial_log_std"]),
        hyper=estimators.Hyper(**hyper),
    )


def _policy(config: Config, env: Any, env_params: Any, initial_log_std: Any) -> policies.Policy:
    return policies.make(
        config.policy,
        env,
        env_params,
        distribution=config.distribution,
        initial_log_std=initial_log_std,
        **_network(config),
    )


def _network(config: Config) -> dict[str, Any]:
    return {"hidden": config.hidden, "activation": config.activation}


def _hyper(config: Config) -> estimators.Hyper:
    return estimators.Hyper(
        **{field: float(getattr(config, field)) for field in estimators.Hyper._fields}
    )


@functools.lru_cache(maxsize=2**16)
def _check_env_params(env: str, env_params: tuple[tuple[str, Any], ...]) -> None:
    environments.make(env, **dict(env_params))


@functools.cache
def _can_be_traced(env: str, name: str) -> bool:
    """Whether a parameter of an environment is a number that no shape and no choice depends on."""
    made, params = environments.make(env)
    default: Any = params
    value = getattr(default, name, None)
    if not isinstance(value, float):
        return False

    def look(key, number):
        env_params = default.replace(**{name: number})
        policies.make("linear", made, env_params)
        obs, state = made.reset_env(key, env_params)
        action = made.action_space(env_params).sample(key)
        return obs, made.step_env(key, state, action, env_params)

    try:
        jax.eval_shape(look, jax.random.key(0), jnp.float32(value))
    except jax.errors.JAXTypeError:
        return False
    return True


def _horizon(config: Config, env_params: Any) -> int:
    if config.horizon is not None:
        return config.horizon
    limit = environments.time_limit(env_params)
    if limit is None:
        raise ValueError(f"horizon=None must be a number: {config.env} has no time limit")
    return limit
