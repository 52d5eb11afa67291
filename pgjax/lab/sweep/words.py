"""How the numbers and the configurations of a sweep are put in words."""

import math
from typing import Any

import numpy as np

from pgjax.lab.statistics import Summary
from pgjax.lab.sweep.scores import Ranking


def number(ranking: Ranking, configuration: int) -> int:
    """The number a sweep gives a configuration, or else its place in the grid."""
    numbers = ranking.data.coords.get("configuration")
    return configuration if numbers is None else int(numbers.values[configuration])


def named(ranking: Ranking, configuration: int) -> str:
    """The values a configuration has, in words."""
    values = [f"{name}={short(x[configuration])}" for name, x in ranking.hyper.items()]
    return ", ".join(values) or "the only configuration"


def counted(number: int, noun: str) -> str:
    """A number of things: 1 run, 2 runs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: Any) -> str:
    """A value as people read it: numbers by four digits."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def in_words(summary: Summary, index: int | tuple[()] = ()) -> str:
    """A centre and its interval, where there is one."""
    centre, low, high = (float(np.asarray(x)[index]) for x in summary)
    return f"{centre:.4g}" + ("" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]")
