"""What is swept: lists and ranges, written as text on the command line and in YAML files.

1e-4..1e-1:log:16      sixteen levels, evenly spaced in the logarithm, both ends included
0..1                   all the numbers between, for designs that draw their points
0.95,0.99,1.0          these
gae                    this one: nothing is swept
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml

from pgjax import checks
from pgjax.lab import config as configs
from pgjax.lab.config import ENV_PARAMS, Config
from pgjax.lab.sweep.settings import OPTIONS

SCALES = ("linear", "log")
"""How a range is divided."""

FIXED = (
    "seed",
    "seeds",
    "name",
    "directory",
    "checkpoint_every",
    "keep_checkpoints",
    "updates_per_call",
    "evaluation_episodes",
    "loggers",
    "modules",
)
"""Fields of a config that a sweep takes one value of."""

MOST_LEVELS = 10**6
"""The most levels of one axis."""

_RANGE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(:(?P<scale>[a-z]+))?(:(?P<num>[^:]*))?")


class Range(NamedTuple):
    """Numbers from `low` to `high`: `num` levels of them, or all if that is None."""

    low: float
    high: float
    scale: str = "linear"
    num: int | None = None


Levels: TypeAlias = tuple[Any, ...]
"""Values one by one."""

Axis: TypeAlias = Range | Levels
"""What the values of one hyperparameter are."""


def name_of(field: str) -> str:
    """What an axis is called where people read it: as its flag and its key in a YAML file."""
    return "lambda" if field == "lambda_" else field


def parse(name: str, given: Any) -> Axis:
    """An axis from what was written for it; a single value is an axis of one level.

    Args:
      name: field of a config, or `env_params.` and the name of a parameter.
      given: text as above, or a list or plain value as YAML has it.

    Raises:
      ValueError: names the axis, what was given and what is allowed.
    """
    if isinstance(given, Range):
        return _checked(name, given)
    if isinstance(given, str) and (match := _RANGE.fullmatch(given)):
        return _range(name, given, match)
    if isinstance(given, str):
        items: Sequence[Any] = [item.strip() for item in given.split(",")]
    elif name == "hidden" and isinstance(given, list | tuple) and not _is_nested(given):
        items = [list(given)]
    else:
        items = given if isinstance(given, list | tuple) else [given]
    if not items or "" in items:
        raise ValueError(f"{name_of(name)}={given!r} is empty: it must hold at least one value")
    levels = tuple(_value(name, item) for item in items)
    if len(set(levels)) < len(levels):
        raise ValueError(f"{name_of(name)}={given!r} names a value twice")
    return levels


def dump(axis: Axis) -> Any:
    """An axis as YAML has it; `parse` reads it back equal."""
    if isinstance(axis, Range):
        num = "" if axis.num is None else f":{axis.num}"
        return f"{axis.low!r}..{axis.high!r}:{axis.scale}{num}"
    return [list(level) if isinstance(level, tuple) else level for level in axis]


def levels(name: str, axis: Axis) -> Levels:
    """The values of an axis one by one.

    Raises:
      ValueError: a range without a number of levels.
    """
    if not isinstance(axis, Range):
        return axis
    if axis.num is None:
        raise ValueError(
            f"{name_of(name)}={dump(axis)} needs its number of levels, as in {dump(axis)}:8; only "
            f"designs that draw their points can do without"
        )
    points = np.linspace(0, 1, axis.num)
    found = tuple(at(name, axis, float(point)) for point in points)
    return tuple(dict.fromkeys(found))  # whole numbers may coincide


def at(name: str, axis: Axis, point: float) -> Any:
    """The value at a point of the unit interval."""
    if not isinstance(axis, Range):
        return axis[min(int(point * len(axis)), len(axis) - 1)]
    if point in (0, 1):
        value = axis.high if point else axis.low
    elif axis.scale == "log":
        value = math.exp(math.log(axis.low) + point * math.log(axis.high / axis.low))
    else:
        value = axis.low + point * (axis.high - axis.low)
    return round(value) if is_whole(name) else float(value)


def is_whole(name: str) -> bool:
    """Whether a range is one of whole numbers; parameters of environments are taken for floats."""
    return not (name.startswith(ENV_PARAMS) or configs.accepts(name, float))


def label(value: Any) -> str:
    """A value as text, the same that `parse` reads: 64x64 for widths."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def coordinate(value: Any) -> Any:
    """A value as a coordinate: a number as it is, anything else as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else label(value)


def _range(name: str, given: str, match: re.Match[str]) -> Range:
    low, high = (_number(name, given, match[end]) for end in ("low", "high"))
    num = match["num"]
    if num is not None and not (num.isascii() and num.isdecimal()):
        raise ValueError(f"{name_of(name)}={given!r}: its number of levels must be a whole number")
    return _checked(
        name, Range(low, high, match["scale"] or "linear", None if num is None else int(num))
    )


def _checked(name: str, axis: Range) -> Range:
    shown = f"{name_of(name)}={dump(axis)!r}"
    if not name.startswith(ENV_PARAMS):
        if not (configs.accepts(name, float) or configs.accepts(name, int)):
            raise ValueError(f"{shown}: {name_of(name)} is no number; give a list, as in a,b,c")
    checks.choice(f"{name_of(name)}: scale", axis.scale, SCALES)
    if not (math.isfinite(axis.low) and math.isfinite(axis.high)):
        raise ValueError(f"{shown} must have finite ends")
    if axis.low >= axis.high:
        raise ValueError(f"{shown} is an empty range: it must go from a lower to a higher number")
    if axis.scale == "log" and axis.low <= 0:
        raise ValueError(f"{shown} goes through zero: a log range must lie above it")
    if axis.num is not None and not 2 <= axis.num <= MOST_LEVELS:
        raise ValueError(f"{shown} must have from 2 to {MOST_LEVELS} levels")
    return axis


def _number(name: str, given: str, text: str) -> float:
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise ValueError(f"{name_of(name)}={given!r} must go from a number to a number") from error


def scalar(text: str) -> Any:
    """What text on a command line stands for; text that stands for nothing else is itself."""
    try:
        return None if text == "None" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter for text that only looks like a date
        return text


def _value(name: str, item: Any) -> Any:
    """An item as the type its field declares."""
    if isinstance(item, str) and name == "hidden":
        item = item.split("x")
        item = [int(width) if width.isdecimal() else width for width in item]
    elif isinstance(item, str):
        item = scalar(item)
    elif isinstance(item, tuple):
        item = list(item)
    elif name == "hidden" and isinstance(item, int):
        item = [item]
    if name.startswith(ENV_PARAMS):
        key = name.removeprefix(ENV_PARAMS)
        return configs.parse({"env_params": {key: item}}).env_params[key]
    return getattr(configs.parse({name: item}), name)


def _is_nested(given: Sequence[Any]) -> bool:
    return any(isinstance(item, list | tuple | str) for item in given)


def check_name(name: str) -> None:
    """Raises `ValueError` unless an axis of that name may have several levels."""
    if name in FIXED:
        raise ValueError(f"{name} cannot be swept: a sweep takes one value of it")
    if name == "env_params":
        raise ValueError("env_params cannot be swept as a whole, but each of its parameters can")
    if not name.startswith(ENV_PARAMS):
        checks.choice("key", name, [*Config.__dataclass_fields__, *OPTIONS])
