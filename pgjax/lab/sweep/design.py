"""From what was written down to a sweep, and from a sweep to its configurations."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import yaml
from scipy.stats import qmc

from pgjax import checks
from pgjax.lab import config as configs
from pgjax.lab import experiment
from pgjax.lab.config import ENV_PARAMS, Config
from pgjax.lab.sweep import axes
from pgjax.lab.sweep.axes import Axis, Range
from pgjax.lab.sweep.settings import DESIGNS, OPTIONS, SEARCHES, Sweep

OF_DESIGNS = ("design", "configurations")
"""Options that a search does not use."""

MOST_RUNS = 10**6
"""The most runs of one sweep."""

Values = dict[str, Any]
"""What is particular to a configuration: field or environment parameter -> value."""


def parse(content: Mapping[str, Any]) -> Sweep:
    """Builds a sweep from names and what was written for them.

    Each field of a config takes an axis (`axes.parse`), as does a name such as
    `env_params.gravity`; `env_params` maps names to axes. A single level is no axis: it goes into
    the base.

    Raises:
      ValueError: an unknown name, or an impossible value.
    """
    options, swept, fixed = {}, {}, {}
    env_params: dict[str, Any] = {}
    for field, given in _flat(content).items():
        if field in OPTIONS:
            options[field] = given
        elif field in axes.FIXED:
            fixed[field] = _plain(field, given)
        else:
            axes.check_name(field)
            axis = axes.parse(field, given)
            if isinstance(axis, Range) or len(axis) != 1:
                swept[field] = axis
            elif field.startswith(ENV_PARAMS):
                env_params[field.removeprefix(ENV_PARAMS)] = axis[0]
            else:
                fixed[field] = axis[0]
    base = Config(**fixed, env_params=env_params)
    return Sweep(base, swept, **{key: _option(key, value) for key, value in options.items()})


def dump(sweep: Sweep) -> str:
    """The sweep as YAML, every field named; `parse` reads it back equal."""
    base = yaml.safe_load(configs.dump(sweep.base))
    own = {ENV_PARAMS + key: value for key, value in base.pop("env_params").items()}
    swept = {name: axes.dump(axis) for name, axis in sweep.axes.items()}
    fixed = {name: value for name, value in (base | own).items() if name not in swept}
    options = {name: getattr(sweep, name) for name in OPTIONS}
    # The order of axes is the order of configurations.
    return yaml.safe_dump(fixed | options | swept, sort_keys=False)


def validate(sweep: Sweep) -> None:
    """Refuses what no sweep can be, before anything is laid out.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    checks.choice("design", sweep.design, DESIGNS)
    _check_together(sweep)
    configs.count("design_seed", sweep.design_seed, least=0)
    configs.validate(sweep.base)
    for name, axis in sweep.axes.items():
        axes.check_name(name)
        axes.parse(name, axis)
    if sweep.search is not None:
        _validate_search(sweep)
    elif sweep.design == "grid" and sweep.configurations is not None:
        raise ValueError(
            f"configurations={sweep.configurations!r} goes with design=random and design=sobol; "
            "a grid has as many as its axes say"
        )
    elif sweep.design != "grid":
        if sweep.configurations is None:
            raise ValueError(f"design={sweep.design!r} needs a number of configurations")
        configs.count("configurations", sweep.configurations)
        if not sweep.axes:
            raise ValueError(f"design={sweep.design!r} needs something to sweep")
    runs = num_configurations(sweep) * sweep.base.seeds
    if runs > MOST_RUNS:
        raise ValueError(f"the sweep has {runs:,} runs: at most {MOST_RUNS:,} can be laid out")


def num_configurations(sweep: Sweep) -> int:
    """How many configurations a sweep has, without laying them out."""
    if sweep.search is not None:
        return sweep.trials
    if sweep.design != "grid":
        return sweep.configurations or 0
    return math.prod(shape(sweep))


def shape(sweep: Sweep) -> tuple[int, ...]:
    """Levels of each axis of a grid."""
    return tuple(len(axes.levels(name, axis)) for name, axis in sweep.axes.items())


def lay_out(sweep: Sweep) -> list[Values]:
    """The configurations of a design, in order; those of a grid with the last axis fastest.

    Random points are independent and uniform on every axis (in the logarithm where it is a log
    range), Sobol points scrambled: Owen 1998, by `scipy.stats.qmc`.
    """
    return list(_grid(sweep) if sweep.design == "grid" else _drawn(sweep))


def runs_of(sweep: Sweep, values: Values) -> list[Config]:
    """The configs of a configuration, one per seed."""
    fields = {key: x for key, x in values.items() if not key.startswith(ENV_PARAMS)}
    theirs = {key.removeprefix(ENV_PARAMS): values[key] for key in values if key not in fields}
    env_params = sweep.base.env_params | theirs
    return experiment.each_seed(dataclasses.replace(sweep.base, **fields, env_params=env_params))


def describe(values: Values) -> str:
    """A configuration in one line, its numbers rounded."""
    short = lambda value: f"{value:.4g}" if isinstance(value, float) else axes.label(value)
    return ", ".join(f"{axes.name_of(key)}={short(value)}" for key, value in values.items())


def identity(sweep: Sweep) -> str:
    """Names what a sweep computes; the same for sweeps that differ only in where they stand."""
    base = dataclasses.replace(
        sweep.base, name=None, directory="", checkpoint_every=1, keep_checkpoints=1, loggers=()
    )
    content = yaml.safe_load(dump(dataclasses.replace(sweep, base=base, storage=None)))
    return json.dumps({key: value for key, value in content.items() if key != "modules"})


def digest(sweep: Sweep) -> str:
    """A short name for what a sweep computes, however many trials of it are made."""
    content = identity(dataclasses.replace(sweep, trials=1))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _grid(sweep: Sweep) -> Iterator[Values]:
    names = list(sweep.axes)
    levels = [axes.levels(name, axis) for name, axis in sweep.axes.items()]
    for index in np.ndindex(*map(len, levels)):
        yield {name: levels[axis][index[axis]] for axis, name in enumerate(names)}


def _drawn(sweep: Sweep) -> Iterator[Values]:
    num, dimensions = sweep.configurations or 0, len(sweep.axes)
    rng = np.random.default_rng(sweep.design_seed)
    if sweep.design == "sobol":
        # SciPy warns of any number that is no power of two; the points are the same.
        points = qmc.Sobol(dimensions, rng=rng).random_base2(math.ceil(math.log2(num)))[:num]
    else:
        points = rng.random((num, dimensions))
    for point in points:
        pairs = zip(sweep.axes.items(), point, strict=True)
        yield {name: axes.at(name, _leveled(name, axis), float(x)) for (name, axis), x in pairs}


def _leveled(name: str, axis: Axis) -> Axis:
    """A range with a number of levels as those levels: not only grids keep to them."""
    return axis if isinstance(axis, Range) and axis.num is None else axes.levels(name, axis)


def _check_together(sweep: Sweep) -> None:
    """Refuses options that would have no effect."""
    idle = ("trials", "batch", "prune", "storage") if sweep.search is None else OF_DESIGNS
    goes_with = "a search" if sweep.search is None else "designs that are laid out beforehand"
    for field in dataclasses.fields(Sweep):
        if field.name in idle and getattr(sweep, field.name) != field.default:
            value = getattr(sweep, field.name)
            raise ValueError(f"{field.name}={value!r} goes with {goes_with}")


def _validate_search(sweep: Sweep) -> None:
    checks.choice("search", str(sweep.search), SEARCHES)
    configs.count("trials", sweep.trials)
    configs.count("batch", sweep.batch)
    if not sweep.axes:
        raise ValueError(f"search={sweep.search!r} needs something to sweep")
    leveled = [axes.name_of(name) for name, axis in sweep.axes.items() if getattr(axis, "num", 0)]
    if leveled:
        raise ValueError(
            f"search={sweep.search!r} moves through whole ranges: {leveled[0]} needs no number of "
            "levels; give them one by one, as in a,b,c, to choose among them"
        )
    if sweep.search == "cmaes":
        choices = [name for name, axis in sweep.axes.items() if not isinstance(axis, Range)]
        if choices:
            raise ValueError(
                f"search='cmaes' moves in ranges, and {axes.name_of(choices[0])} is a list of "
                "choices; take search=tpe"
            )
        if len(sweep.axes) == 1:
            raise ValueError("search='cmaes' needs two ranges at least; take search=tpe for one")


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every key as a field is called; parameters of the environment under names of their own."""
    flat: dict[str, Any] = {}
    for key, given in content.items():
        if key != "env_params":
            flat["lambda_" if key == "lambda" else str(key)] = given
        elif isinstance(given, dict):
            flat |= {f"{ENV_PARAMS}{name}": x for name, x in given.items()}
        else:
            raise ValueError(f"env_params={given!r} must map names to values")
    return flat


def _plain(field: str, given: Any) -> Any:
    """The one value of a field that cannot be swept, possibly given as text."""
    value = given
    if isinstance(given, str) and field in ("loggers", "modules"):
        value = [name.strip() for name in given.split(",")]
    elif isinstance(given, str) and (given == "None" or not configs.accepts(field, str)):
        value = axes.scalar(given)
    try:
        return getattr(configs.parse({field: value}), field)
    except ValueError as error:
        raise ValueError(f"{error} (it cannot be swept)") from error


def _option(key: str, value: Any) -> Any:
    hint = {x.name: x.type for x in dataclasses.fields(Sweep)}[key]
    allowed: Any = {int: int, bool: bool, str: str}.get(hint) or hint
    if type(value) is bool and allowed is not bool or not isinstance(value, allowed):
        raise ValueError(f"{key}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    return value
