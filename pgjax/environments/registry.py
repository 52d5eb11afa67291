"""Environments by name, with overrides of their parameters."""

import dataclasses
import inspect
from typing import Any
from urllib.error import URLError

import gymnax
from gymnax import registration
from gymnax.environments.environment import Environment, EnvParams

from pgjax import checks
from pgjax.environments.short_corridor import short_corridor
from pgjax.environments.tabular import UNLIMITED

_FACTORIES = {"ShortCorridor": short_corridor}


def names() -> list[str]:
    """Every environment `make` knows: gymnax's own and registered ones, and pgjax's."""
    return [*gymnax.registered_envs, *_FACTORIES]


def make(name: str, **overrides: Any) -> tuple[Environment, EnvParams]:
    """An environment and its parameters.

    Args:
      name: any gymnax id, anything registered with `gymnax.register`, or one of pgjax's own.
      **overrides: fields of the environment's parameters (`gravity=9.0`) or arguments of its
        constructor (`size=16` for DeepSea-bsuite).

    Raises:
      ValueError: an unknown name or override, or an environment whose data cannot be had.
    """
    checks.choice("env", name, names())
    factory = _FACTORIES.get(name) or registration._registry[name]
    arguments = _constructor_arguments(factory)
    chosen = {key: value for key, value in overrides.items() if key in arguments}
    env = _construct(name, factory, chosen)
    params: Any = env.default_params
    fields = [field.name for field in dataclasses.fields(params)]
    for key in overrides:
        checks.choice(f"{name}: override", key, [*fields, *arguments])
    changes = {key: value for key, value in overrides.items() if key not in chosen}
    for key, value in changes.items():
        _check_type(name, key, value, getattr(params, key))
    return env, params.replace(**changes)


def time_limit(env_params: EnvParams) -> int | None:
    """Steps after which an episode is truncated; None without a limit."""
    limit = int(env_params.max_steps_in_episode)
    return None if limit >= UNLIMITED else limit


def _construct(name, factory, arguments):
    try:
        return factory(**arguments)
    except (URLError, OSError) as error:
        raise ValueError(
            f"env={name!r} downloads a data set when it is made, and that failed: {error}"
        ) from error
    except (TypeError, AssertionError) as error:
        raise ValueError(f"env={name!r} refuses {arguments}: {error}") from error


def _constructor_arguments(factory) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _check_type(name, key, value, default) -> None:
    if isinstance(default, bool | int | float) and not isinstance(value, bool | int | float):
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{name}: {key}={value!r} must be a number, as its default {default}")
