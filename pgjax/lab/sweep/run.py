"""A sweep from start to finish: plan, carry out what is missing, keep the results together."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pgjax.lab import advance, directory, interrupts, loggers, machine
from pgjax.lab import config as configs
from pgjax.lab.refusals import RefusalError
from pgjax.lab.sweep import axes, design, outcome
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import plan as plans
from pgjax.lab.sweep.chunk import Index, Result
from pgjax.lab.sweep.plan import Chunk, Plan
from pgjax.lab.sweep.settings import Sweep
from pgjax.lab.sweep.store import Kept, Store


class Started(NamedTuple):
    """A sweep that is ready to go: all checked, nothing carried out yet by this process."""

    store: Store
    plan: Plan


Launcher = Callable[["Job"], bool]
"""Carries out the chunks of a job; returns whether all of them were."""


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
      ValueError: an impossible choice, or a directory that exists.
    """
    design.validate(sweep)
    check(sweep)
    devices = limits.pop("devices", None) or machine.devices()
    return plans.make(sweep, devices=devices, **limits)


def start(plan: Plan) -> Started:
    """Makes the directory of a new sweep.

    Raises:
      ValueError: a directory of its name exists.
    """
    base = plan.sweep.base
    widths = json.dumps([program.width for program in plan.programs.values()])
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
    return found, design.parse(configs.read(found.sweep))


def resume(path: str | Path, **limits: Any) -> Started:
    """A sweep picked up where it stopped; what is finished is neither compiled nor carried out.

    Args:
      path: directory of the sweep.
      **limits: as in `prepare`; by default runs go side by side as they did.

    Raises:
      ValueError: there is no sweep, or it cannot be read.
    """
    store, sweep, limits = reopen(path, limits)
    outline = plans.outline(sweep, memory_limit=limits.pop("memory_limit", None))
    kept = Kept(store, outline)
    kept.recall()
    devices = limits.pop("devices", None) or machine.devices()
    plan = plans.compiled(outline, devices=devices, finished=kept.finished(), **limits)
    return Started(store, plan)


def reopen(path: str | Path, limits: dict[str, Any]) -> tuple[Store, Sweep, dict[str, Any]]:
    """A sweep or a search that nobody follows, and limits, by default with the widths that it had.

    Raises:
      ValueError: there is no sweep, it cannot be read, or another process follows it.
    """
    store, sweep = find(path)
    with directory.locked(store.path):
        pass  # better refused before anything is compiled
    # What was under way is found again only if it is as wide as it was.
    if limits.get("at_once") is None and store.widths.is_file():
        limits = limits | {"at_once": json.loads(store.widths.read_text(encoding="utf-8"))}
    return store, sweep, limits


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
      RefusalError: another process follows the sweep, or results that it had are gone.
    """
    store, plan = started
    with directory.locked(store.path), interrupts.noted() as signals:
        kept = Kept(store, plan)
        kept.recall()
        if not plan.finished <= kept.finished():
            raise RefusalError(f"results in {store.chunks} are gone by now; resume the sweep again")
        done = carry_out(
            store, kept, plan.chunks(kept.finished()), signals, launcher or here, save_every
        )
        kept.write()
    return outcome.conclude(store, kept) if done else outcome.left(store, kept, signals)


def carry_out(
    store: Store,
    kept: Kept,
    todo: Sequence[Chunk],
    signals: Sequence[int],
    launcher: Launcher,
    save_every: float,
) -> bool:
    """Has chunks carried out, shown, logged and kept; returns whether all of them were."""
    if not todo:
        return True
    plan = kept.plan
    total = sum(len(x.runs) * plan.groups[x.group].config.num_updates for x in todo)
    with progress_bar(total) as bar, logging_to(store, plan) as log:

        def observe(chunk: Chunk, update: int, found: dict[str, np.ndarray]) -> None:
            show(bar, len(chunk.runs), found)
            if plan.sweep.base.loggers:
                log(rows(plan, chunk.runs, update, found))

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


@contextlib.contextmanager
def logging_to(store: Store, plan: Plan) -> Iterator[Callable[[loggers.Rows], None]]:
    """The loggers of a sweep, with a series for each run."""
    by = (*map(axes.name_of, plan.sweep.axes), "seed")
    content = configs.read(store.sweep)
    path, names = store.path, plan.sweep.base.loggers
    with loggers.opened(names, path, path.name, content, by=by) as log:
        yield log


def rows(
    plan: Plan, runs: Sequence[Index], update: int, metrics: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The metrics of a call as records, one per update and run."""
    labels = [
        {axes.name_of(key): axes.coordinate(x) for key, x in plan.configurations[index].items()}
        | {"seed": plan.sweep.base.seed + seed}
        for index, seed in runs
    ]
    return advance.rows(metrics, labels, first_update=update + 1)


def progress_bar(num_updates: int) -> Any:
    """Counts the updates of all runs."""
    return tqdm(total=num_updates, unit="update", unit_scale=True, file=sys.stderr)


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
        raise ValueError(
            f"{taken} holds this sweep already; continue it with --resume {directory.quoted(taken)}"
        )
    directory.vacant(sweep.base)
