"""Seconds of programs that are compared, taken in turn."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from benchmarks.rounds import come_to_rest

Name = TypeVar("Name")


def interleaved(
    calls: Mapping[Name, Callable[[], Any]], *, rounds: int, least: float = 0.0
) -> dict[Name, list[float]]:
    """Seconds of one call of each, by round; a machine that drifts drifts for all of them.

    Each is called twice before any round counts: first calls are slower, compiled or not.

    Args:
      calls: by name; what they return is waited for.
      rounds: how often each is timed.
      least: the least seconds of a round: what is quicker is called several times in a row, and
        the median counts. A host that takes a processor away for 40 ms ruins one call, and would
        ruin the mean of all.
    """
    rest = come_to_rest if rounds > 1 else lambda: None
    for call in calls.values():
        seconds(call)
    repeats = {}
    for name, call in calls.items():
        rest()
        repeats[name] = math.ceil(least / seconds(call))
    found: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            rest()
            if repeats[name] > 1:
                seconds(call)  # refills the caches, which what ran before has taken
            found[name].append(
                statistics.median(seconds(call) for _ in range(max(1, repeats[name])))
            )
    return found


def seconds(call: Callable[[], Any]) -> float:
    """Seconds until what a call returns is there."""
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun
