"""How good a policy is: fresh episodes, summed up over seeds."""

from typing import Any

import numpy as np

from pgjax.lab import statistics
from pgjax.lab.experiment import Experiment, Inputs


def evaluate(
    experiment: Experiment,
    inputs: Inputs,
    params: Any,
    *,
    num_episodes: int,
    draw: int = 0,
    greedy: bool = False,
) -> dict[str, Any]:
    """Mean return of fresh episodes of every seed, and what the seeds say together.

    Args:
      experiment: over seeds.
      inputs: of every seed.
      params: of every seed.
      num_episodes: episodes a seed.
      draw: which fresh episodes; the same number gives the same ones.
      greedy: act by the mode instead of by sampling.

    Returns:
      Plain numbers: `return` and `episode_length`, each with `per_seed`, `centre` (their
      interquartile mean; of fewer than four seeds, the mean) and its 95% `interval`, which
      one seed does not have (None).
    """
    found = experiment.evaluate(inputs, params, num_episodes=num_episodes, draw=draw, greedy=greedy)
    measures = {name: _summary(np.asarray(x)) for name, x in found.items()}
    return {"episodes": num_episodes, "draw": draw, "greedy": greedy, **measures}


def describe(found: dict[str, Any]) -> str:
    """One line that says how it went."""
    result = found["return"]
    seeds = len(result["per_seed"])
    acting = "greedy return" if found["greedy"] else "return"
    if seeds == 1:
        return f"{acting} {result['centre']:.4g}, mean of {found['episodes']} fresh episodes"
    low, high = result["interval"]
    return (
        f"{acting} {result['centre']:.4g} (95% interval {low:.4g} to {high:.4g}), "
        f"{statistics.centre_name(seeds)} of {seeds} seeds, {found['episodes']} fresh episodes each"
    )


def _summary(values: np.ndarray) -> dict[str, Any]:
    per_seed = values.astype(np.float64).mean(axis=1)
    summary = statistics.summarise(per_seed)
    return {
        "per_seed": per_seed.tolist(),
        "centre": float(summary.centre),
        "interval": None if len(per_seed) == 1 else [float(summary.low), float(summary.high)],
    }
