"""A chunk: runs of one program side by side, from start to finish, or from where a kill left it."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.lab import advance, checkpoints, directory, experiment, machine, records
from pgjax.lab.advance import Progress
from pgjax.lab.config import Config
from pgjax.lab.sweep.program import Program

METRICS, RESULT, CHECKPOINTS = "metrics.jsonl", "result.json", "checkpoints"

LARGE = 100.0
"""A run whose parameters have at least this root mean square counts as diverged."""

Observer = Callable[[int, dict[str, np.ndarray]], None]
"""Called with the updates done before and what a call gave, `[R, updates]` each."""


Index = tuple[int, int]
"""Which run of a sweep: its configuration's index and its seed's."""


class Result(NamedTuple):
    """What the runs of a chunk gave."""

    runs: list[Index]
    curves: dict[str, np.ndarray]  # [R, updates] each
    final: dict[str, np.ndarray]  # [R] each
    seconds: float  # of the whole chunk, evaluation included
    device: str


def name(runs: Sequence[Config], indices: Sequence[Index] = ()) -> str:
    """The name of a chunk's directory, from all that it computes and which runs it is."""
    content = json.dumps([[asdict(run) for run in runs], list(indices)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def carry_out(
    program: Program,
    runs: Sequence[Config],
    where: Path,
    *,
    indices: Sequence[Index],
    observe: Observer = lambda update, metrics: None,
    stopped: Callable[[], Any] = lambda: False,
    save_every: float = 60.0,
) -> Result | None:
    """Trains and evaluates the runs of a chunk, picking up what `where` holds of them.

    Args:
      program: of the group.
      runs: configs of one seed each, at most as many as the program is wide.
      where: directory of the chunk.
      indices: which runs of the sweep they are.
      observe: told of every call.
      stopped: whether to save and leave, once the calls that have begun are done.
      save_every: seconds between checkpoints.

    Returns:
      What they gave, which `where` then holds too; None if it was stopped before its end.
    """
    config, identity = runs[0], name(runs)
    # A program has one width, so the last run stands in for those that are missing.
    filled = [*runs, *[runs[-1]] * (program.width - len(runs))]
    inputs = jax.device_put(experiment.inputs(filled), program.placed.sharding)
    where.mkdir(parents=True, exist_ok=True)
    progress = _begin(program, inputs, where, identity)
    before = progress.update
    sizes = () if stopped() else advance.sizes(config, before)
    begun = saved = time.perf_counter()
    hold = lambda: stopped() or time.perf_counter() - saved >= save_every
    calls = advance.calls(program.placed.experiment, inputs, progress, sizes, hold)
    with records.Records(where / METRICS) as metrics:
        for progress, found in calls:
            found = {key: values[: len(runs)] for key, values in found.items()}
            now = time.perf_counter()
            metrics.append(_rows(found, before, now - begun))
            observe(before, found)
            begun, before = now, progress.update
            if progress.state is not None and hold():
                metrics.sync()
                checkpoints.save(where / CHECKPOINTS, progress.update, progress.state, identity)
                saved = time.perf_counter()
                if stopped():
                    break
    if progress.update < config.num_updates:
        return None
    scores = final(program, inputs, progress, config)
    scores = {key: values[: len(runs)] for key, values in scores.items()}
    seconds = time.perf_counter() - begun
    _conclude(where, Result(list(indices), {}, scores, seconds, machine.describe()))
    shutil.rmtree(where / CHECKPOINTS, ignore_errors=True)
    return read(where)


def read(where: Path) -> Result | None:
    """What a finished chunk left in its directory; None if it is not finished.

    Raises:
      ValueError: records that are damaged.
    """
    if not (where / RESULT).is_file():
        return None
    try:
        content = json.loads((where / RESULT).read_text(encoding="utf-8"))
        if content.pop("digest") != _digest(where / METRICS):
            raise ValueError(f"{METRICS} is not as it was written")
        runs = [(index, seed) for index, seed in content.pop("runs")]
        device, seconds = content.pop("device"), content.pop("seconds")
        rows = records.read(where / METRICS)
        seconds += sum(row.pop("seconds") for row in rows)
        curves = {key: _array([row[key] for row in rows]).T for key in rows[0] if key != "update"}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{where} does not hold the results of a chunk: {error}") from error
    return Result(runs, curves, {key: _array(x) for key, x in content.items()}, seconds, device)


def write(where: Path, result: Result) -> None:
    """Writes what was carried out elsewhere, so that `read` gives it back; whole or not at all."""
    with directory.whole(where) as part:
        part.mkdir(parents=True)
        with records.Records(part / METRICS) as metrics:
            metrics.append(_rows(result.curves, 0, 0.0))
        _conclude(part, result)


def _conclude(where: Path, result: Result) -> None:
    """Writes what a finished chunk has besides its curves, which marks it as finished."""
    content = {key: records.plain(values) for key, values in result.final.items()}
    content |= {"runs": result.runs, "seconds": result.seconds, "device": result.device}
    content["digest"] = _digest(where / METRICS)
    directory.write(where / RESULT, json.dumps(content) + "\n")


def _begin(program: Program, inputs: Any, where: Path, identity: str) -> Progress:
    """The newest checkpoint, or the start where it is damaged or of another width.

    Records of what comes after it are dropped.
    """
    template = jax.eval_shape(program.placed.over_runs.init, inputs)
    try:
        restored = checkpoints.restore(where / CHECKPOINTS, template, identity)
        if restored is not None:
            return _restored(program, where, *restored)
    except (ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(where / CHECKPOINTS, ignore_errors=True)
    (where / METRICS).unlink(missing_ok=True)
    return advance.begin(program.placed.experiment, inputs)


def _restored(program: Program, where: Path, update: int, state: Any) -> Progress:
    """A checkpoint with what the records say of it.

    Raises:
      ValueError: the records do not lead up to the checkpoint.
    """
    records.truncate(where / METRICS, update)
    rows = records.read(where / METRICS)
    if [row["update"] for row in rows] != list(range(1, update + 1)):
        raise ValueError(f"{where / METRICS} does not lead up to update {update}")
    counts = (np.array(rows[-1][key], np.int64) for key in ("env_steps", "skipped"))
    missing = program.width - len(rows[-1]["env_steps"])
    env_steps, skipped = (np.pad(count, (0, missing), mode="edge") for count in counts)
    return Progress(update, jax.device_put(state, program.placed.sharding), env_steps, skipped)


def _rows(found: dict[str, np.ndarray], update: int, seconds: float) -> list[dict[str, Any]]:
    """One record for each update, with a list over runs for each metric."""
    num = found["env_steps"].shape[1]
    return [
        {"update": update + 1 + index, "seconds": seconds / num}
        | {key: values[:, index] for key, values in found.items()}
        for index in range(num)
    ]


def final(
    program: Program, inputs: Any, progress: Progress, config: Config
) -> dict[str, np.ndarray]:
    """Fresh episodes of the final policies, and whether they diverged, `[R]` each."""
    params = progress.state.params
    # Called just as it was compiled, or it would be compiled once more.
    found = program.placed.experiment.evaluate(
        inputs, params, num_episodes=config.evaluation_episodes, draw=0, greedy=False
    )
    means = {
        f"evaluation_{key}": np.asarray(values).astype(np.float64).mean(axis=1)
        for key, values in found.items()
    }
    squares = [
        np.square(np.asarray(x, np.float64)).reshape(len(x), -1) for x in jax.tree.leaves(params)
    ]
    with np.errstate(over="ignore"):
        rms = np.sqrt(np.concatenate(squares, axis=1).mean(axis=1))
    skipped = progress.skipped > 0
    return means | {"diverged": skipped | ~(rms < LARGE)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _array(values: Any) -> np.ndarray:
    """Numbers as JSON has them, null being NaN."""
    return np.array(values, dtype=float)
