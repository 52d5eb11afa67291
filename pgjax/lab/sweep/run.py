"""A sweep from start to finish: plan, carry out what is missing, keep the results together."""

import contextlib
import dataclasses
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from pgjax.lab import config as configs
from pgjax.lab import directory, interrupts, loggers, machine, statistics
from pgjax.lab.sweep import axes, dataset, design
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import plan as plans
from pgjax.lab.sweep.chunk import Index, Result
from pgjax.lab.sweep.plan import Chunk, Plan
from pgjax.lab.sweep.settings import Sweep

SHARE = 0.05
"""Share of the time that writing the dataset may take while a sweep goes on."""

MOST_NAMED = 10
"""Diverged configurations that are named one by one on the screen."""


class Store(NamedTuple):
    """Where a sweep keeps what it leaves."""

    SWEEP, WIDTHS = "sweep.yaml", "widths.json"

    path: Path

    @property
    def sweep(self) -> Path:
        """What the sweep is, the first thing written."""
        return self.path / self.SWEEP

    @property
    def widths(self) -> Path:
        """How many runs of each group go side by side, for a resumed sweep to go on so."""
        return self.path / self.WIDTHS

    @property
    def chunks(self) -> Path:
        """One folder a chunk: its records as they come in, its results once it is finished."""
        return self.path / "chunks"

    @property
    def dataset(self) -> Path:
        """All results so far."""
        return self.path / "sweep.nc"

    @property
    def best(self) -> Path:
        """The config that did best, for `pgjax train --config`."""
        return self.path / "best.yaml"

    @property
    def study(self) -> Path:
        """The study of a search."""
        return self.path / "study.db"

    def chunk(self, name: str) -> Path:
        """The folder of a chunk."""
        return self.chunks / name


class Started(NamedTuple):
    """A sweep that is ready to go: all checked, nothing carried out yet by this process."""

    store: Store
    plan: Plan


Launcher = Callable[["Job"], bool]
"""Carries out the chunks of a job; whether all of them were."""


class Job(NamedTuple):
    """Chunks that are to be carried out, and whom to tell."""

    plan: Plan
    todo: Sequence[Chunk]
    where: Callable[[Chunk], Path]
    observe: Callable[[Chunk, int, dict[str, np.ndarray]], None]  # a call: updates before, metrics
    finish: Callable[[Result], None]
    stopped: Callable[[], Any]
    save_every: float


def prepare(sweep: Sweep, **limits: Any) -> Plan:
    """Lays a sweep out and compiles its programs; nothing is written.

    Args:
      sweep: what to run.
      **limits: `memory_limit`, `at_once` and `devices` of `plan.make`; without devices, all that
        this process has.

    Raises:
      ValueError: a choice that cannot be, or a directory that exists.
    """
    design.validate(sweep)
    check(sweep)
    return _plan(sweep, limits)


def start(plan: Plan) -> Started:
    """Makes the directory of a new sweep.

    Raises:
      ValueError: a directory of its name exists.
    """
    base = plan.sweep.base
    widths = json.dumps([program.width for program in plan.programs])
    files = {Store.SWEEP: design.dump(plan.sweep), Store.WIDTHS: widths}
    name = base.name or f"sweep-{base.env}-{directory.stamp()}"
    return Started(Store(directory.make(base, name, files)), plan)


def find(path: str | Path) -> tuple[Store, Sweep]:
    """The directory of a sweep that exists, and what it is.

    Raises:
      ValueError: there is no sweep, or it cannot be read.
    """
    found = Store(Path(path))
    if not found.sweep.is_file():
        raise ValueError(f"no sweep at {path}: there is no {found.sweep}")
    return found, design.parse(design.load(found.sweep))


def resume(path: str | Path, **limits: Any) -> Started:
    """A sweep picked up where it stopped; what is finished is not carried out again.

    Raises:
      ValueError: there is no sweep, or it cannot be read.
    """
    store, sweep = find(path)
    with directory.locked(store.path):
        pass  # better refused before anything is compiled
    # Chunks that were under way are found again only if they are as wide as they were.
    if limits.get("at_once") is None and store.widths.is_file():
        limits["at_once"] = json.loads(store.widths.read_text(encoding="utf-8"))
    return Started(store, _plan(sweep, limits))


def follow(
    started: Started, launcher: Launcher | None = None, *, save_every: float = 60.0
) -> int | None:
    """Carries a sweep to its end, or to a first Ctrl-C or SIGTERM.

    Screen: a progress bar, what diverged, the best configuration, and where things are.

    Args:
      started: the sweep.
      launcher: what carries out its chunks; None does so here, one after the other.
      save_every: seconds between checkpoints of a chunk.

    Returns:
      The number of the signal that stopped it; None at the end.

    Raises:
      ValueError: another process follows the sweep.
    """
    store, plan = started
    with directory.locked(store.path), interrupts.noted() as signals:
        kept = Kept(store, plan)
        kept.recall()
        done = carry_out(
            store, kept, plan.chunks(kept.finished()), signals, launcher or here, save_every
        )
        kept.write()
    return conclude(store, kept, signals) if done else left(store, kept, signals)


def carry_out(
    store: Store,
    kept: "Kept",
    todo: Sequence[Chunk],
    signals: Sequence[int],
    launcher: Launcher,
    save_every: float,
) -> bool:
    """Has chunks carried out, shown, logged and kept; whether all of them were."""
    if not todo:
        return True
    plan = kept.plan
    with progress_bar(plan, todo) as bar, _logging(store, plan) as log:

        def observe(chunk: Chunk, update: int, found: dict[str, np.ndarray]) -> None:
            show(bar, len(chunk.runs), found)
            if plan.sweep.base.loggers:
                log(_rows(plan, chunk, update, found))

        return launcher(
            Job(
                plan=plan,
                todo=todo,
                where=lambda chunk: store.chunk(plan.name(chunk.runs)),
                observe=observe,
                finish=kept.enter,
                stopped=lambda: signals,
                save_every=save_every,
            )
        )


def here(job: Job) -> bool:
    """Carries out chunks in this process, one after the other."""
    for chunk in job.todo:
        result = chunks.carry_out(
            job.plan.programs[chunk.group],
            job.plan.configs(chunk.runs),
            job.where(chunk),
            indices=chunk.runs,
            observe=lambda update, found, chunk=chunk: job.observe(chunk, update, found),
            stopped=job.stopped,
            save_every=job.save_every,
        )
        if result is None:
            return False
        job.finish(result)
    return True


def left(store: Store, kept: "Kept", signals: Sequence[int]) -> int | None:
    """Says how to go on with a sweep that was stopped; the signal that did."""
    finished = kept.table.final["finished"]
    print(f"stopped with {int(finished.sum()):,} of {finished.size:,} runs finished")
    print(f"continue with: pgjax sweep --resume {store.path}", flush=True)
    return signals[0] if signals else None


def conclude(store: Store, kept: "Kept", signals: Sequence[int] = ()) -> None:
    """Says what diverged and what did best, and where things are."""
    tidy(store)
    plan, found = kept.plan, kept.dataset()
    print(diverged(plan, found) or "no run diverged")
    values, summary = best(plan, found)
    if values is not None:
        seeds = plan.sweep.base.seeds
        config = dataclasses.replace(
            design.runs_of(plan.sweep, values)[0],
            seed=plan.sweep.base.seed,
            seeds=seeds,
            name=None,
        )
        directory.write(store.best, configs.dump(config))
        centre = statistics.centre_name(seeds)
        print(
            f"best: {design.describe(values) or 'the one configuration'}: evaluation return "
            f"{float(summary.centre):.4g} (95% interval {float(summary.low):.4g} to "
            f"{float(summary.high):.4g}), {centre} of {_seeds(seeds)}; chosen on these seeds, so "
            "judge it on others"
        )
    print(f"{store.path}: {', '.join(sorted(x.name for x in store.path.iterdir()))}", flush=True)


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

    With several environments there is no such one: None.
    """
    if "env" in plan.sweep.axes:
        return None, None
    scores = _flat(plan, found["evaluation_return"])
    complete = np.flatnonzero(np.isfinite(scores).all(axis=1))
    if not len(complete):
        return None, None
    index = complete[np.argmax(statistics.iqm(scores[complete].T))]
    return plan.configurations[index], statistics.summarise(scores[index])


class Kept:
    """Results as they come in, on disk now and then."""

    def __init__(self, store: Store, plan: Plan):
        updates = max(group.config.num_updates for group in plan.groups)
        self.plan = plan
        self.table = dataset.empty(len(plan.configurations), plan.sweep.base.seeds, updates)
        self._store = store
        self._cost, self._written = 0.0, time.perf_counter()

    def follow_on(self, plan: Plan) -> None:
        """Goes on with a plan that has more configurations."""
        known = len(self.plan.configurations)
        self.plan, self.table = plan, dataset.grown(self.table, len(plan.configurations))
        if not known:
            self.recall()

    def recall(self) -> None:
        """Enters what is finished on disk, whatever chunks it was made in."""
        for where in sorted(self._store.chunks.iterdir()) if self._store.chunks.is_dir() else ():
            result = _intact(where)
            if result is not None and self._is_own(where, result):
                dataset.enter(self.table, result)

    def finished(self) -> set[Index]:
        """The runs that have results."""
        return {(int(c), int(s)) for c, s in np.argwhere(self.table.final["finished"])}

    def enter(self, result: Result) -> None:
        """Enters the results of a chunk."""
        dataset.enter(self.table, result)
        if SHARE * (time.perf_counter() - self._written) >= self._cost:
            self.write()

    def _is_own(self, where: Path, result: Result) -> bool:
        """Whether results are those of the plan's configurations."""
        num_configurations, num_seeds, _ = self.table.shape
        known = all(c < num_configurations and s < num_seeds for c, s in result.runs)
        return known and self.plan.name(result.runs) == where.name

    def dataset(self) -> xr.Dataset:
        """All results so far."""
        return dataset.build(self.plan.sweep, self.plan.configurations, self.table)

    def write(self) -> None:
        """Writes them, whole or not at all."""
        begun = time.perf_counter()
        dataset.write(self.dataset(), self._store.dataset)
        self._written = time.perf_counter()
        self._cost = self._written - begun


def tidy(store: Store) -> None:
    """Removes what was begun and then carried out in other chunks, and what a kill left over."""
    for where in store.chunks.iterdir():
        if _intact(where) is None:
            shutil.rmtree(where)
        else:
            shutil.rmtree(where / chunks.CHECKPOINTS, ignore_errors=True)


def _intact(where: Path) -> Result | None:
    """The results of a chunk, unless it is not finished; a damaged one is to be made again."""
    try:
        return chunks.read(where)
    except ValueError as error:
        warnings.warn(f"passed over damaged results: {error}", stacklevel=2)
        return None


@contextlib.contextmanager
def _logging(store: Store, plan: Plan) -> Iterator[Callable[[loggers.Rows], None]]:
    """The loggers of a sweep, with a series a run."""
    by = (*map(axes.name_of, plan.sweep.axes), "seed")
    content = design.load(store.sweep)
    path, names = store.path, plan.sweep.base.loggers
    with loggers.opened(names, path, path.name, content, by=by) as log:
        yield log


def _rows(
    plan: Plan, chunk: Chunk, update: int, found: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """What a call gave as records, one an update and run."""
    names = [
        {axes.name_of(key): axes.coordinate(x) for key, x in plan.configurations[index].items()}
        | {"seed": plan.sweep.base.seed + seed}
        for index, seed in chunk.runs
    ]
    return [
        {"update": update + 1 + step} | own | {key: x[run, step] for key, x in found.items()}
        for step in range(found["env_steps"].shape[1])
        for run, own in enumerate(names)
    ]


def progress_bar(plan: Plan, todo: Sequence[Chunk]) -> Any:
    """Counts the updates of all runs."""
    updates = sum(len(x.runs) * plan.groups[x.group].config.num_updates for x in todo)
    return tqdm(total=updates, unit="update", unit_scale=True, file=sys.stderr)


def show(bar: Any, num_runs: int, found: dict[str, np.ndarray]) -> None:
    """Shows a call on the bar."""
    bar.set_postfix_str(f"{num_runs} runs at once, return {np.nanmean(found['return']):.4g}")
    bar.update(found["return"].size)


def check(sweep: Sweep) -> None:
    """Refuses loggers that are missing and a name that is taken, by this sweep or another.

    Raises:
      ValueError: says which.
    """
    loggers.check(sweep.base.loggers)
    taken = Path(sweep.base.directory) / str(sweep.base.name)
    if sweep.base.name is not None and (taken / Store.SWEEP).is_file():
        _, other = find(taken)
        if design.identity(other) != design.identity(sweep):
            raise ValueError(f"{taken} holds a different sweep; choose another --name")
        raise ValueError(f"{taken} holds this sweep already; continue it with --resume {taken}")
    directory.vacant(sweep.base)


def _plan(sweep: Sweep, limits: dict[str, Any]) -> Plan:
    devices = limits.pop("devices", None) or machine.devices()
    return plans.make(sweep, devices=devices, **limits)


def _flat(plan: Plan, values: xr.DataArray) -> np.ndarray:
    return values.values.reshape(len(plan.configurations), plan.sweep.base.seeds)


def _seeds(num: int) -> str:
    return "1 seed" if num == 1 else f"{num} seeds"
