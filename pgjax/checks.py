"""Refusals of user choices: one clear `ValueError` before anything is traced."""

import difflib
import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Whether any leaf of a pytree is only known to JAX: inside jit, vmap or grad."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def choice(argument: str, value: str, allowed: Collection[str]) -> None:
    """Raises `ValueError`, with the nearest match, unless `value` is one of `allowed`."""
    if isinstance(value, str) and value in allowed:
        return
    near = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{argument}={value!r} is unknown{hint}; choose from: {', '.join(allowed)}")


def at_least(argument: str, value: int, least: int, reason: str = "") -> None:
    """Raises `ValueError` unless `value` is a whole number, of an integer type, from `least` on."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and value >= least):
        kind = " (an int)" if isinstance(value, float | np.floating) else ""
        because = f" ({reason})" if reason else ""
        raise ValueError(f"{argument}={value!r} must be a whole number{kind} >= {least}{because}")


def as_whole(value: Any) -> Any:
    """A known number of any dtype as an int where it is whole; else as it is, for `at_least`."""
    number = np.asarray(value).tolist()
    return int(number) if isinstance(number, float) and number.is_integer() else number


def within(argument: str, value: Any, low: float, high: float) -> None:
    """Raises `ValueError` unless `low <= value <= high`; values traced by JAX pass unseen."""
    if is_traced(value):
        return
    for number in np.ravel(value).tolist():
        if isinstance(number, str | None) or not (math.isfinite(number) and low <= number <= high):
            raise ValueError(f"{argument}={number!r} must be {_described(low, high)}")


def _described(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"a number from {low:g} to {high:g}"
    return f"a finite number >= {low:g}" if math.isfinite(low) else "a finite number"
