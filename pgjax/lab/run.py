"""A run from start to finish: train, record, checkpoint, evaluate, draw."""

import contextlib
import dataclasses
import hashlib
import json
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
    evaluation,
    experiment,
    interrupts,
    loggers,
    parallel,
    plots,
    records,
)
from pgjax.lab.advance import Progress
from pgjax.lab.config import Config
from pgjax.lab.directory import Directory
from pgjax.lab.experiment import Experiment, Inputs
from pgjax.train import TrainState


class Run(NamedTuple):
    """A run that is ready to go: all checked, nothing trained yet by this process."""

    directory: Directory
    config: Config
    experiment: Experiment  # over seeds
    inputs: Inputs  # of each seed
    restored: Progress | None  # None at the start


def start(config: Config) -> Run:
    """Checks a config, then makes the directory of its run.

    Raises:
      ValueError: a choice that cannot be, or a directory that exists; nothing is written then.
    """
    with _fitting(config):
        trainer = parallel.over_runs(experiment.build(config), parallel.block(config))
        directory.vacant(config)
        loggers.check(config.loggers)
        inputs = experiment.inputs(experiment.each_seed(config))
        # Tracing finds what does not fit together, and compiling uses the trace again.
        state = jax.eval_shape(trainer.init, inputs)
        trainer.train.trace(inputs, state, num_steps=next(_sizes(config, 0)))
    return Run(directory.create(config), config, trainer, inputs, None)


def resume(path: str | Path) -> Run:
    """A run picked up at its newest intact checkpoint, or at its start without one.

    Records of what comes after it are dropped.

    Raises:
      ValueError: there is no run, another process follows it, its checkpoints are not its own or
        all damaged, or its records are.
    """
    found, _ = directory.find(path)
    with directory.locked(found.path):
        run = _look(path)
        for file in (found.metrics, found.timings):
            records.truncate(file, 0 if run.restored is None else run.restored.update)
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
    return done and run.directory.evaluation.is_file()


def follow(run: Run) -> int | None:
    """Carries a run to its end, or to a first Ctrl-C or SIGTERM.

    The last finished call is always saved. Screen: a progress bar, what was noticed, the
    evaluation, and where things are.

    Returns:
      The number of the signal that stopped it; None at the end.

    Raises:
      ValueError: another process follows the run.
    """
    print(experiment.describe(run.config), flush=True)
    with directory.locked(run.directory.path), ThreadPoolExecutor(1) as worker:
        # XLA compiles without holding Python up, so the smaller programs compile beside it.
        beginning = worker.submit(_begin, run)
        ready = worker.submit(_compile_evaluation, run)
        with interrupts.noted() as signals, _loggers(run) as log:
            progress = _train(run, beginning, signals, log)
        # All of the training is saved by now: nothing is left for a signal to wait for.
        try:
            if not signals:
                ready.result()
                _conclude(run, progress)
        except KeyboardInterrupt:
            signals.append(signal.SIGINT)
    if not signals:
        return None
    print(f"stopped after update {progress.update} of {run.config.num_updates}")
    print(f"continue with: pgjax train --resume {run.directory.path}", flush=True)
    return signals[0]


def identity(config: Config) -> str:
    """Names what a run computes: the same for configs that differ only in names and lengths."""
    what = dataclasses.asdict(config)
    for field in (
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
    """Lays what Python and JAX cannot do with the numbers of a config to the config."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"a number is too large: {error}") from error
    except TypeError as error:
        if not config.env_params:
            raise
        raise ValueError(f"env_params={config.env_params!r} do not fit: {error}") from error


def _look(path: str | Path) -> Run:
    found, config = directory.find(path)
    with _fitting(config):
        trainer = parallel.over_runs(experiment.build(config), parallel.block(config))
        inputs = experiment.inputs(experiment.each_seed(config))
        template = jax.eval_shape(trainer.init, inputs)
    return Run(found, config, trainer, inputs, _restore(found, config, template))


def _conclude(run: Run, progress: Progress) -> None:
    """Evaluates, draws, and says where things are."""
    _report_skipped(run)
    found = evaluation.evaluate(
        run.experiment,
        run.inputs,
        progress.state.params,
        num_episodes=run.config.evaluation_episodes,
    )
    print(evaluation.describe(found), flush=True)
    plots.learning_curves({run.directory.path.name: run.directory.metrics}, run.directory.figure)
    directory.write(run.directory.evaluation, json.dumps(found, indent=2) + "\n")
    names = sorted(path.name for path in run.directory.path.iterdir())
    print(f"{run.directory.path}: {', '.join(names)}", flush=True)


def _restore(found: Directory, config: Config, template: TrainState) -> Progress | None:
    restored = checkpoints.restore(found.checkpoints, template, identity(config))
    if restored is None:
        return None
    update, state = restored
    last = [row for row in records.read(found.metrics) if row.get("update") == update]
    if len(last) != config.seeds:
        raise ValueError(f"{found.metrics} does not hold update {update}, where a checkpoint is")
    env_steps, skipped = (
        np.array([row[name] for row in last], np.int64) for name in ("env_steps", "skipped")
    )
    return Progress(update, state, env_steps, skipped)


def _begin(run: Run) -> Progress:
    if run.restored is not None:
        return run.restored
    return advance.begin(run.experiment, run.inputs)


def _compile_evaluation(run: Run) -> None:
    state = jax.eval_shape(run.experiment.init, run.inputs)
    run.experiment.evaluate.lower(
        run.inputs,
        state.params,
        num_episodes=run.config.evaluation_episodes,
        draw=0,
        greedy=False,
    ).compile()


def _sizes(config: Config, update: int) -> Iterator[int]:
    """Updates of each call left: all alike, but for what remains in the last."""
    while update < config.num_updates:
        size = min(config.updates_per_call, config.num_updates - update)
        yield size
        update += size


@contextlib.contextmanager
def _loggers(run: Run) -> Iterator[Callable[[loggers.Rows], None]]:
    """Opens the loggers of a run, and sends them what it has done so far."""
    path, config = run.directory.path, run.config
    with loggers.opened(config.loggers, path, path.name, dataclasses.asdict(config)) as log:
        if run.restored is not None:
            log(records.read(run.directory.metrics))
        yield log


def _train(
    run: Run,
    beginning: Future[Progress],
    signals: list[int],
    log: Callable[[loggers.Rows], None],
) -> Progress:
    config, files = run.config, run.directory
    state = jax.eval_shape(run.experiment.init, run.inputs)
    update = 0 if run.restored is None else run.restored.update
    size = next(_sizes(config, update), None)
    if size is not None:
        run.experiment.train.lower(run.inputs, state, num_steps=size).compile()
    progress, saved = beginning.result(), update
    seeds = config.seed + np.arange(config.seeds)
    with records.Records(files.metrics) as metrics, records.Records(files.timings) as timings:
        with tqdm(total=config.num_updates, initial=update, unit="update", file=sys.stderr) as bar:
            for size in _sizes(config, update):
                if signals:
                    break
                begun = time.perf_counter()
                before = progress
                progress, found = advance.call(run.experiment, run.inputs, progress, size)
                rows = advance.rows(found, first_update=before.update + 1, seeds=seeds)
                metrics.append(rows)
                log(rows)
                seconds = time.perf_counter() - begun
                steps = int(np.sum(progress.env_steps - before.env_steps))
                timings.append(
                    [{"update": progress.update, "seconds": seconds, "env_steps": steps}]
                )
                if _is_due(config, before.update, progress.update):
                    _save(run, progress)
                    saved = progress.update
                mean = np.mean(found["return"][:, -1])
                bar.set_postfix_str(f"return {mean:.4g}, {steps / seconds / 1e6:.2f} M steps/s")
                bar.update(size)
    # Whenever a signal came, what it stopped is kept.
    if progress.update != saved:
        _save(run, progress)
    return progress


def _is_due(config: Config, before: int, after: int) -> bool:
    crossed = after // config.checkpoint_every > before // config.checkpoint_every
    return crossed or after == config.num_updates


def _save(run: Run, progress: Progress) -> None:
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
