"""How far runs have come, and the compiled calls that take them further."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.lab.config import Config
from pgjax.lab.experiment import Experiment, Inputs
from pgjax.score import Metrics
from pgjax.train import TrainState


class Progress(NamedTuple):
    """How far runs have come; arrays lead with an axis of runs."""

    update: int
    state: Any  # a `TrainState`; None where `calls` has begun the next call with it
    env_steps: np.ndarray  # [R] int64
    skipped: np.ndarray  # [R] updates whose gradient was not finite


def begin(experiment: Experiment, inputs: Inputs) -> Progress:
    """Runs before their first update."""
    none = np.zeros(inputs.init.shape, np.int64)
    return Progress(0, experiment.init(inputs), none, none)


def call(
    experiment: Experiment, inputs: Inputs, before: Progress, num_updates: int
) -> tuple[Progress, dict[str, np.ndarray]]:
    """One compiled call.

    Returns:
      How far the runs are then, and their metrics, `[R, num_updates]` each; `env_steps` and
      `skipped` count from the start of a run.
    """
    return next(calls(experiment, inputs, before, [num_updates]))


def calls(
    experiment: Experiment,
    inputs: Inputs,
    before: Progress,
    sizes: Iterable[int],
    hold: Callable[[], Any] = lambda: False,
) -> Iterator[tuple[Progress, dict[str, np.ndarray]]]:
    """Compiled calls of the given numbers of updates, one after another, as `call` gives each.

    A call begins before the results of the last one are fetched, so that devices wait neither for
    the host nor for each other. It takes over the state of the last one, unless `hold`, which is
    asked first, says that this state is wanted: then the call begins only when it is asked for.
    """
    train = lambda state, size: experiment.train(inputs, state, num_steps=size)
    progress, begun = before, None
    for size, following in itertools.pairwise(itertools.chain(sizes, [0])):
        state, metrics = begun or train(progress.state, size)
        begun = train(state, following) if following and not hold() else None
        progress, metrics = fetch(progress, size, None if begun else state, metrics)
        yield progress, metrics


def fetch(
    before: Progress, num_updates: int, state: TrainState | None, metrics: Metrics
) -> tuple[Progress, dict[str, np.ndarray]]:
    """Waits for a call, and adds its results to the progress before it."""
    found = {name: np.asarray(x) for name, x in jax.device_get(metrics).items()}
    env_steps = before.env_steps[:, None] + np.cumsum(found["env_steps"], axis=1, dtype=np.int64)
    skipped = before.skipped[:, None] + np.cumsum(~found["finite"], axis=1)
    found |= {"env_steps": env_steps, "skipped": skipped}
    after = Progress(before.update + num_updates, state, env_steps[:, -1], skipped[:, -1])
    return after, found


def sizes(config: Config, update: int = 0) -> Iterator[int]:
    """Updates of each remaining call: all alike, but for the last, which makes what is left."""
    for begun in range(update, config.num_updates, config.updates_per_call):
        yield min(config.updates_per_call, config.num_updates - begun)


def rows(
    metrics: dict[str, np.ndarray], labels: Sequence[dict[str, Any]], *, first_update: int
) -> list[dict[str, Any]]:
    """The metrics of a call as records, one per update and run, under the labels of the run."""
    return [
        {"update": first_update + index}
        | label
        | {name: values[run, index] for name, values in metrics.items()}
        for index in range(metrics["env_steps"].shape[1])
        for run, label in enumerate(labels)
    ]
