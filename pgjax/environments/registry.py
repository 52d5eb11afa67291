"""Environments by name, with overrides of their parameters."""

import dataclasses
import inspect
import math
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams

from pgjax import checks
from pgjax.environments.linear_quadratic import point_mass
from pgjax.environments.short_corridor import short_corridor
from pgjax.environments.tabular import UNLIMITED

_FACTORIES = {"LinearQuadratic": point_mass, "ShortCorridor": short_corridor}

BINARY = ("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")
"""gymnax environments whose observations are zeros and ones, as floats."""
DEFAULT_INTEGERS = ("DiscountingChain-bsuite",)
"""gymnax environments that want actions as JAX's default integers, not as their space says."""


def names() -> list[str]:
    """Every environment `make` knows: gymnax's own and registered ones, and pgjax's."""
    return [*gymnax.registered_envs, *_FACTORIES]


def make(name: str, **overrides: Any) -> tuple[Environment, EnvParams]:
    """An environment and its parameters.

    Environments that observe only zeros and ones (`BINARY`) give booleans, which take a quarter of
    the memory in a trajectory; policies convert them to floats.

    Args:
      name: any gymnax id, anything registered with `gymnax.register`, or one of pgjax's own.
      **overrides: fields of the environment's parameters (`gravity=9.0`) or arguments of its
        constructor (`size=16` for DeepSea-bsuite).

    Raises:
      ValueError: an unknown name or override, a value of the wrong type, or an environment whose
        data is not available.
    """
    checks.choice("env", name, names())
    env = _construct(name, {})
    fields = [field.name for field in dataclasses.fields(env.default_params)]
    constructor = inspect.signature(_FACTORIES.get(name, type(env))).parameters
    for key in overrides:
        checks.choice(f"{name}: parameter", key, [*fields, *constructor])
    arguments = {key: value for key, value in overrides.items() if key not in fields}
    if arguments:
        env = _construct(name, arguments)
    params: Any = env.default_params
    changes = {key: value for key, value in overrides.items() if key in fields}
    for key, value in changes.items():
        _check_override(f"{name}: {key}", value, getattr(params, key))
    return env, params.replace(**changes)


def time_limit(env_params: EnvParams) -> int | None:
    """Steps after which an episode is truncated; None without a limit."""
    limit = int(getattr(env_params, "max_steps_in_episode", UNLIMITED))
    return None if limit >= UNLIMITED else limit


def _construct(name: str, arguments: dict[str, Any]) -> Environment:
    try:
        env = (
            _FACTORIES[name](**arguments)
            if name in _FACTORIES
            else gymnax.make(name, **arguments)[0]
        )
        if name in BINARY:
            _show_booleans(env)
        if name in DEFAULT_INTEGERS:
            _take_default_integers(env)
        jax.eval_shape(env.reset_env, jax.random.key(0), env.default_params)
        return env
    except OSError as error:
        raise ValueError(
            f"env={name!r} downloads a data set when it is made, and that failed: {error}"
        ) from error
    except Exception as error:
        # Constructors differ in what they raise for an argument they cannot use.
        if not arguments:
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"env={name!r} refuses {arguments}: {reason}") from error


def _show_booleans(env: Any) -> None:
    get_obs = env.get_obs
    env.get_obs = lambda *args, **kwargs: get_obs(*args, **kwargs).astype(bool)


def _take_default_integers(env: Any) -> None:
    action_space = env.action_space
    space = lambda params=None: spaces.Discrete(action_space(params).n, dtype=jnp.result_type(int))
    env.action_space = space


def _check_override(what: str, value: Any, default: Any) -> None:
    """Refuses a plain value of another type than the default's; arrays, traced or not, pass."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{what}={value!r} must be true or false")
    elif jnp.ndim(default) > 0:
        raise ValueError(f"{what}={value!r} must be an array of shape {jnp.shape(default)}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what}={value!r} must be a number, as its default {default}")
    elif (isinstance(value, int) and abs(value) > UNLIMITED) or not math.isfinite(value):
        raise ValueError(f"{what}={value!r} must be a finite number, a whole one of 32 bits")
    elif isinstance(default, int) and (value != int(value) or abs(value) > UNLIMITED):
        raise ValueError(f"{what}={value!r} must be a whole number of 32 bits")
