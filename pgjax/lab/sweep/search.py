"""An adaptive search: what Optuna asks for is carried out side by side, and it is told scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgjax.lab import directory, interrupts, machine, statistics
from pgjax.lab.sweep import axes, design, outcome, pruning, run, study
from pgjax.lab.sweep import plan as plans
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.design import Values
from pgjax.lab.sweep.plan import Plan, Programs
from pgjax.lab.sweep.run import Started
from pgjax.lab.sweep.settings import Sweep
from pgjax.lab.sweep.store import Kept, Store
from pgjax.lab.sweep.study import Trial


def prepare(sweep: Sweep, **limits: Any) -> Plan:
    """Compiles the programs that a search will need; nothing is written but to its storage.

    The configurations of the plan are every combination of the choices, with ranges at their
    upper ends, and their programs are as wide as a batch.

    Raises:
      ValueError: an impossible choice, a storage that cannot be reached, or a directory that
        exists.
    """
    design.validate(sweep)
    run.check(sweep)
    study.check(sweep)
    return _laid_out(sweep, **limits)


def resume(path: str | Path, **limits: Any) -> Started:
    """A search picked up where it stopped; trials that were told are not run again.

    Raises:
      ValueError: there is no search, it cannot be read, or its storage cannot be reached.
    """
    store, sweep, limits = run.reopen(path, limits)
    study.check(sweep)
    return Started(store, _laid_out(sweep, **limits))


def follow(started: Started, *, save_every: float = 60.0) -> int | None:
    """Carries a search to its end, or to a first Ctrl-C or SIGTERM.

    Without pruning, every batch of trials is asked for together, carried out as a sweep is, and
    told together, so that a search which was killed ends as if it had not been. With pruning,
    trials that end early make room for others at once; those under way when it was killed start
    anew. The score of a trial is the interquartile mean over seeds of its evaluation.

    Returns:
      The number of the signal that stopped it; None at the end.

    Raises:
      RefusalError: another process follows the search.
    """
    store, corners = started
    sweep = corners.sweep
    with directory.locked(store.path), interrupts.noted() as signals:
        opened = study.opened(sweep, store.study)
        programs = Programs(corners, num_runs=sweep.batch * sweep.base.seeds)
        kept = Kept(store, corners._replace(configurations=[]))
        if sweep.prune:
            done = pruning.carry_out(opened, store, kept, programs, signals)
        else:
            done = _batches(opened, store, kept, programs, signals, save_every)
        kept.write()
    if done and not kept.plan.configurations:
        return print(f"{store.path}: other workers have had all {sweep.trials:,} trials")
    return outcome.conclude(store, kept) if done else outcome.left(store, kept, signals)


def _batches(
    opened: Any,
    store: Store,
    kept: Kept,
    programs: Programs,
    signals: Sequence[int],
    save_every: float,
) -> bool:
    """Asks, carries out and tells, batch by batch; returns whether it came to the end."""
    sweep = kept.plan.sweep
    while not signals:
        trials = study.own(opened, sweep, store.path)
        # A batch that was asked for in part is completed; one that was told in part is not.
        missing = -len(trials) % sweep.batch
        if not missing and not any(trial.is_running for trial in trials):
            missing = sweep.batch
        study.ask(opened, sweep, store.path, missing)
        trials = study.own(opened, sweep, store.path)
        running = [index for index, trial in enumerate(trials) if trial.is_running]
        kept.follow_on(_plan(sweep, trials, running, programs))
        if not running:
            return True
        todo = kept.plan.chunks(kept.finished())
        if not run.carry_out(store, kept, todo, signals, run.here, save_every):
            return False
        scores = kept.table.final["evaluation_return"]
        for index in running:
            study.tell(opened, trials[index].number, float(statistics.iqm(scores[index])))
    return False


def _plan(
    sweep: Sweep, trials: Sequence[Trial], running: Sequence[int], programs: Programs
) -> Plan:
    """The trials so far as configurations, those that are running in groups."""
    configurations = [trial.values for trial in trials]
    groups = plans.group(sweep, configurations, running)
    compiled = {index: programs.of(group.config) for index, group in enumerate(groups)}
    return Plan(sweep, configurations, groups, compiled, programs.memory_limit)


def _laid_out(
    sweep: Sweep, *, memory_limit: int | None = None, at_once: int | Sequence[int] | None = None
) -> Plan:
    plans.group(sweep, _corners(sweep, 0.0))  # refuses what cannot be
    corners = _corners(sweep, 1.0)  # most in memory, longest curves
    plan = plans.compiled(
        plans.outline(sweep, corners, memory_limit=memory_limit),
        devices=machine.devices(),
        at_once=at_once,
        num_runs=sweep.batch * sweep.base.seeds,
    )
    if sweep.prune:
        pruning.check(plan)
    return plan


def _corners(sweep: Sweep, end: float) -> list[Values]:
    """Every combination of the choices, with ranges at one of their ends."""
    ends = {
        name: (axes.at(name, axis, end),) if isinstance(axis, Range) else axis
        for name, axis in sweep.axes.items()
    }
    return design.lay_out(dataclasses.replace(sweep, axes=ends, design="grid", search=None))
