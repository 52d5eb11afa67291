"""How far runs have come, and one compiled call further."""

from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.lab.experiment import Experiment, Inputs
from pgjax.train import TrainState


class Progress(NamedTuple):
    """How far runs have come; arrays lead with an axis of runs."""

    update: int
    state: TrainState
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
    state, metrics = experiment.train(inputs, before.state, num_steps=num_updates)
    metrics = jax.device_get(metrics)
    env_steps = before.env_steps[:, None] + np.cumsum(metrics["env_steps"], axis=1, dtype=np.int64)
    skipped = before.skipped[:, None] + np.cumsum(~metrics["finite"], axis=1)
    metrics |= {"env_steps": env_steps, "skipped": skipped}
    after = Progress(before.update + num_updates, state, env_steps[:, -1], skipped[:, -1])
    return after, metrics


def rows(
    metrics: dict[str, np.ndarray], *, first_update: int, seeds: np.ndarray
) -> list[dict[str, Any]]:
    """The metrics of a call as records, one an update and run."""
    return [
        {"update": first_update + index, "seed": seed}
        | {name: values[run, index] for name, values in metrics.items()}
        for index in range(metrics["env_steps"].shape[1])
        for run, seed in enumerate(seeds)
    ]
