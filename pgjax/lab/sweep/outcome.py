"""What a sweep says at its end: what diverged, what did best, and where things are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pgjax.lab import config as configs
from pgjax.lab import directory, statistics
from pgjax.lab.config import ENV_PARAMS
from pgjax.lab.sweep import axes, design, words
from pgjax.lab.sweep.plan import Plan
from pgjax.lab.sweep.store import Kept, Store, tidy

MOST_NAMED = 10
"""Diverged configurations that are named one by one on the screen."""


def left(store: Store, kept: Kept, signals: Sequence[int]) -> int | None:
    """Says how to go on with a sweep that was stopped; returns the signal that stopped it."""
    finished = kept.table.final["finished"]
    print(f"stopped with {int(finished.sum()):,} of {finished.size:,} runs finished")
    print(f"continue with: pgjax sweep --resume {directory.quoted(store.path)}", flush=True)
    return signals[0] if signals else None


def conclude(store: Store, kept: Kept) -> None:
    """Says what diverged and what did best, and where things are."""
    tidy(store)
    plan, found = kept.plan, kept.dataset()
    print(diverged(plan, found) or "no run diverged")
    values, summary = best(plan, found)
    if values is not None:
        seeds = plan.sweep.base.seeds
        first = plan.sweep.base.seed + seeds
        config = dataclasses.replace(
            design.runs_of(plan.sweep, values)[0],
            # Others than those it was chosen on, which flatter it.
            seed=first if first + seeds <= 2**32 else 0,
            seeds=seeds,
            name=None,
        )
        directory.write(store.best, configs.dump(config))
        centre = statistics.centre_name(seeds)
        over = f", {centre} of {words.counted(seeds, 'seed')}"
        if seeds > 1:
            over = f" (95% interval {float(summary.low):.4g} to {float(summary.high):.4g}){over}"
        print(
            f"best: {design.describe(values) or 'the one configuration'}: evaluation return "
            f"{float(summary.centre):.4g}{over}; chosen on these seeds, so judge it on others, as "
            f"{store.best.name} does{_caveat(plan)}"
        )
    print(directory.listing(store.path), flush=True)


def diverged(plan: Plan, found: xr.Dataset) -> str:
    """The configurations and seeds of runs that diverged, in words; empty if none did."""
    flags = _flat(plan, found["diverged"]) == 1
    lines = [
        f"diverged: {design.describe(plan.configurations[index]) or 'the one configuration'}, "
        f"seed{'s' if flags[index].sum() > 1 else ''} "
        f"{', '.join(str(found['seed'].values[seed]) for seed in np.flatnonzero(flags[index]))}"
        for index in np.flatnonzero(flags.any(axis=1))
    ]
    more = len(lines) - MOST_NAMED
    return "\n".join(lines[:MOST_NAMED] + ([f"... and {more} more"] if more > 0 else []))


def best(plan: Plan, found: xr.Dataset) -> tuple[Any, Any]:
    """The configuration of the highest interquartile mean over seeds, and its summary.

    None of either with several environments, or if no configuration has all of its scores.
    """
    if "env" in plan.sweep.axes:
        return None, None
    scores = _flat(plan, found["evaluation_return"])
    complete = np.flatnonzero(np.isfinite(scores).all(axis=1))
    if not len(complete):
        return None, None
    index = complete[np.argmax(statistics.iqm(scores[complete].T))]
    return plan.configurations[index], statistics.summarise(scores[index])


def _caveat(plan: Plan) -> str:
    """Scores at other values of the environment's parameters are scores of other tasks."""
    theirs = [x for x in map(axes.name_of, plan.sweep.axes) if x.startswith(ENV_PARAMS)]
    return f"; tasks differ in {', '.join(theirs)}: this may be the easiest" if theirs else ""


def _flat(plan: Plan, values: xr.DataArray) -> np.ndarray:
    return values.values.reshape(len(plan.configurations), plan.sweep.base.seeds)
