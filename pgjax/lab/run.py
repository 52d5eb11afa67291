"""A run from start to finish: train, record, checkpoint, evaluate, draw."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from pgjax.lab import (
    advance,
    checkpoints,
    directory,
    distributed,
    evaluation,
    experiment,
    interrupts,
    loggers,
    machine,
    parallel,
    plots,
    records,
)
from pgjax.lab import config as configs
from pgjax.lab.advance import Progress
from pgjax.lab.config import Config
from pgjax.lab.directory import Directory
from pgjax.lab.experiment import Experiment, Inputs
from pgjax.lab.parallel import Placed


class Run(NamedTuple):
    """A run that is ready to go: all checked, nothing trained yet by this process."""

    directory: Directory
    config: Config
    placed: Placed  # the seeds, on devices
    inputs: Inputs  # of each seed
    restored: Progress | None  # None at the start

    @property
    def experiment(self) -> Experiment:
        """Of all seeds."""
        return self.placed.experiment


def start(config: Config, *, devices: int | None = None, memory_limit: int | None = None) -> Run:
    """Checks a config, then makes the directory of its run.

    Args:
      config: what the run is.
      devices: how many it may use; None takes all.
      memory_limit: bytes that its programs may take; None sets no limit.

    Raises:
      ValueError: an impossible choice, or a directory that exists; nothing is written then.
    """
    distributed.check_same(f"{configs.dump(config)} {devices} {memory_limit}")

    def check() -> tuple[Placed, Inputs]:
        with _fitting(config):
            directory.vacant(config)
            loggers.check(config.loggers)
            placed, inputs = _place(config, devices, memory_limit)
            # Tracing finds what does not fit together, and compiling uses the trace again.
            own, state = placed.arguments(inputs)[0]
            placed.over_runs.train.trace(own, state, num_steps=next(advance.sizes(config)))
        return placed, inputs

    placed, inputs = distributed.together(check)
    path = distributed.from_leader(lambda: str(directory.create(config).path))
    return Run(Directory(Path(path)), config, placed, inputs, None)


def resume(path: str | Path, *, devices: int | None = None, memory_limit: int | None = None) -> Run:
    """A run picked up at its newest checkpoint that is intact and has its records, or at its start.

    Records of what comes after it are dropped. On other devices than before, or with another limit,
    sums may be rounded differently; on devices that lack its precision it goes on in float32, with
    a warning.

    Args:
      path: directory of the run.
      devices: how many it may use; None takes all.
      memory_limit: bytes that its programs may take; None sets no limit.

    Raises:
      ValueError: there is no run, another process follows it, its checkpoints are not its own,
        none of them can be used, or its records are damaged.
    """
    distributed.check_same(f"{path} {devices} {memory_limit}")
    found, _ = distributed.together(lambda: directory.find(path))
    with _held(found):
        run = distributed.together(lambda: _look(path, devices, memory_limit))
        update = 0 if run.restored is None else run.restored.update
        for file in (found.metrics, found.timings):
            distributed.from_leader(functools.partial(records.truncate, file, update))
    return run


def load(path: str | Path) -> tuple[Run, Progress]:
    """A run to look at, and how far it has come.

    Raises:
      ValueError: there is no run, or it has no checkpoint that can be used.
    """
    run = _look(path)
    if run.restored is None:
        raise ValueError(f"run {run.directory.path} has no checkpoint yet")
    return run, run.restored


def is_finished(run: Run) -> bool:
    """Whether nothing is left to do."""
    done = run.restored is not None and run.restored.update >= run.config.num_updates
    return done and distributed.from_leader(run.directory.evaluation.is_file)


def follow(run: Run) -> int | None:
    """Carries a run to its end, or to a first Ctrl-C or SIGTERM.

    The last finished call is always saved. Screen: a progress bar, what was noticed, the
    evaluation, and where things are.

    Returns:
      The number of the signal that stopped it; None at the end.

    Raises:
      RefusalError: another process follows the run.
    """
    print(experiment.describe(run.config), flush=True)
    with _held(run.directory), ThreadPoolExecutor(1) as worker:
        # XLA compiles without holding Python up, so the smaller programs compile beside it.
        beginning = worker.submit(_begin, run)
        ready = worker.submit(_compile_evaluation, run)
        with interrupts.noted() as signals, _loggers(run) as log:
            progress = _train(run, beginning, signals, log)
        stop = distributed.largest(max(signals, default=0))
        # All of the training is saved by now: nothing is left for a signal to wait for.
        try:
            if not stop:
                ready.result()
                distributed.wait_for_all()
                _conclude(run, progress)
        except KeyboardInterrupt:
            stop = int(signal.SIGINT)
    if not stop:
        return None
    print(f"stopped after update {progress.update} of {run.config.num_updates}")
    path, job = directory.quoted(run.directory.path), jax.process_count() > 1
    flags = (
        " --distributed, in all processes, with the flags that tell them of the job" if job else ""
    )
    print(f"continue with: pgjax train --resume {path}{flags}", flush=True)
    return stop


def identity(config: Config) -> str:
    """Names what a run computes; the same for configs that differ only in names and lengths."""
    what = dataclasses.asdict(config)
    for field in (
        "modules",
        "name",
        "directory",
        "loggers",
        "evaluation_episodes",
        "checkpoint_every",
        "keep_checkpoints",
    ):
        del what[field]
    if config.schedule == "constant":
        del what["num_updates"]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@contextlib.contextmanager
def _fitting(config: Config) -> Iterator[None]:
    """Blames the config for numbers that Python or JAX cannot work with."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"a number is too large: {error}") from error
    except TypeError as error:
        if not config.env_params:
            raise
        raise ValueError(f"env_params={config.env_params!r} do not fit: {error}") from error


@contextlib.contextmanager
def _held(found: Directory) -> Iterator[None]:
    """The lock on a run, which the leader holds for all processes."""
    with contextlib.ExitStack() as stack:
        distributed.from_leader(lambda: stack.enter_context(directory.locked(found.path)))
        yield


def _look(path: str | Path, devices: int | None = None, memory_limit: int | None = None) -> Run:
    found, config = directory.find(path)
    with _fitting(config):
        placed, inputs = _place(experiment.as_possible(config), devices, memory_limit)
    return Run(found, config, placed, inputs, _restore(found, config, placed, inputs))


def _place(config: Config, devices: int | None, memory_limit: int | None) -> tuple[Placed, Inputs]:
    """The seeds of a config on devices, and what they are given there."""
    placed = parallel.fit(config, machine.take(devices), memory_limit)
    inputs = experiment.inputs(experiment.each_seed(config))
    return placed, parallel.put(inputs, placed.sharding)


def _conclude(run: Run, progress: Progress) -> None:
    """Evaluates, draws, and says where things are."""
    found = evaluation.evaluate(
        run.experiment,
        run.inputs,
        progress.state.params,
        num_episodes=run.config.evaluation_episodes,
    )
    if not distributed.is_leader():
        return
    _report_skipped(run)
    print(evaluation.describe(found), flush=True)
    plots.learning_curves({run.directory.path.name: run.directory.metrics}, run.directory.figure)
    directory.write(run.directory.evaluation, json.dumps(found, indent=2) + "\n")
    print(directory.listing(run.directory.path), flush=True)


def _restore(found: Directory, config: Config, placed: Placed, inputs: Inputs) -> Progress | None:
    template = jax.eval_shape(placed.over_runs.init, inputs)
    # Read after a checkpoint is found: a process that follows the run may just have written both.
    rows = functools.cache(lambda: records.read(found.metrics))
    rows_of = lambda update: [row for row in rows() if row.get("update") == update]
    restored = checkpoints.restore(
        found.checkpoints,
        template,
        identity(config),
        recorded=lambda update: len(rows_of(update)) == config.seeds,
    )
    if restored is None:
        return None
    update, state = restored
    env_steps, skipped = (
        np.array([row[name] for row in rows_of(update)], np.int64)
        for name in ("env_steps", "skipped")
    )
    return Progress(update, parallel.put(state, placed.sharding), env_steps, skipped)


def _begin(run: Run) -> Progress:
    if run.restored is not None:
        return run.restored
    return advance.begin(run.experiment, run.inputs)


def _compile_evaluation(run: Run) -> None:
    run.placed.compile_evaluation(run.inputs, run.config.evaluation_episodes)


@contextlib.contextmanager
def _loggers(run: Run) -> Iterator[Callable[[loggers.Rows], None]]:
    """Opens the loggers of a run, and sends them what it has done so far."""
    path, config = run.directory.path, run.config
    names = config.loggers if distributed.is_leader() else ()
    with loggers.opened(names, path, path.name, dataclasses.asdict(config)) as log:
        if names and run.restored is not None:
            log(records.read(run.directory.metrics))
        yield log


def _train(
    run: Run,
    beginning: Future[Progress],
    signals: list[int],
    log: Callable[[loggers.Rows], None],
) -> Progress:
    config, leads = run.config, distributed.is_leader()
    nowhere = Path(os.devnull)
    files = (run.directory.metrics, run.directory.timings) if leads else (nowhere, nowhere)
    update = 0 if run.restored is None else run.restored.update
    size = next(advance.sizes(config, update), None)
    if size is not None:
        run.placed.compile_training(run.inputs, size)
    progress, saved = beginning.result(), update
    labels = [{"seed": config.seed + index} for index in range(config.seeds)]
    distributed.wait_for_all()
    shown = {"initial": update, "unit": "update", "file": sys.stderr, "disable": not leads}
    with records.Records(files[0]) as metrics, records.Records(files[1]) as timings:
        with tqdm(total=config.num_updates, **shown) as bar:
            for size in advance.sizes(config, update):
                if distributed.largest(len(signals)):
                    break
                begun = time.perf_counter()
                before = progress
                progress, found = advance.call(run.experiment, run.inputs, progress, size)
                rows = advance.rows(found, labels, first_update=before.update + 1)
                metrics.append(rows)
                log(rows)
                seconds = time.perf_counter() - begun
                steps = int(np.sum(progress.env_steps - before.env_steps))
                timings.append(
                    [{"update": progress.update, "seconds": seconds, "env_steps": steps}]
                )
                if _is_due(config, before.update, progress.update):
                    _save(run, progress, metrics)
                    saved = progress.update
                mean = np.mean(found["return"][:, -1])
                bar.set_postfix_str(f"return {mean:.4g}, {steps / seconds / 1e6:.2f} M steps/s")
                bar.update(size)
        # Whenever a signal came, what it stopped is kept.
        if progress.update != saved:
            _save(run, progress, metrics)
    return progress


def _is_due(config: Config, before: int, after: int) -> bool:
    crossed = after // config.checkpoint_every > before // config.checkpoint_every
    return crossed or after == config.num_updates


def _save(run: Run, progress: Progress, metrics: records.Records) -> None:
    # A checkpoint is of no use without its records: they must not be lost alone.
    if distributed.is_leader():
        metrics.sync()
    checkpoints.save(
        run.directory.checkpoints,
        progress.update,
        progress.state,
        identity(run.config),
        keep=run.config.keep_checkpoints,
    )


def _report_skipped(run: Run) -> None:
    """Warns of updates that were skipped because their gradient was not finite."""
    rows = [row for row in records.read(run.directory.metrics) if not row["finite"]]
    if not rows:
        return
    first = ", ".join(f"update {row['update']} of seed {row['seed']}" for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    warnings.warn(f"gradients were not finite and skipped: {first}{more}", stacklevel=2)
