"""What seeds say together: a centre that one odd seed does not move, and how sure it is.

Intervals are percentile bootstrap intervals, from runs resampled within each task. Source of the
measures: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice"; they are those of its library, rliable.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CUT = 0.25
"""Share of the values left out at either end."""

ENOUGH_FOR_IQM = 4
"""With fewer seeds than these, none is left out."""

AT_ONCE = 2**22
"""Numbers resampled at a time; it bounds the memory and changes no result."""

Scores = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]
"""Scores `[runs, tasks, ...]`, or one `[runs, ...]` a task, which may then differ in runs."""


class Summary(NamedTuple):
    """A centre over seeds and its bootstrap interval, each of the shape of one seed's values."""

    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis: the mean without the lowest and highest quarter.

    With fewer than four values, nothing is left out: it is the mean. Source: Agarwal et al. 2021.

    Args:
      values: `[seeds, ...]`.
    """
    return np.asarray(stats.trim_mean(values, CUT, axis=0))


def iqm_of_rows(values: np.ndarray) -> np.ndarray:
    """Interquartile mean of every row, gaps left out; NaN for a row without a number.

    Args:
      values: `[..., runs]`, NaN where there is no run.
    """
    ordered = np.sort(values, axis=-1)  # NaN goes last.
    made = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    cut = (CUT * made).astype(int)
    rank = np.arange(values.shape[-1])
    kept = (rank >= cut) & (rank < made - cut)
    with np.errstate(invalid="ignore"):
        return np.where(kept, ordered, 0.0).sum(-1) / kept.sum(-1)


def summarise(
    values: np.ndarray, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Summary:
    """Interquartile mean over seeds with its percentile bootstrap interval.

    Seeds are drawn whole, so that a curve keeps what its points have in common.

    Args:
      values: `[seeds, ...]`.
      level: how often the interval should hold the truth.
      num_resamples: bootstrap samples.
      seed: of the resampling; the same values give the same interval.
    """
    return aggregate([values], level=level, num_resamples=num_resamples, seed=seed)


def centre_name(num_seeds: int) -> str:
    """What `iqm` is called for a number of seeds."""
    return "IQM" if num_seeds >= ENOUGH_FOR_IQM else "mean"


# A metric takes one `[..., runs]` a task and gives `[...]`: the bootstrap asks for many at once.
def pooled_iqm(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Interquartile mean of the runs of all tasks, pooled."""
    return np.asarray(stats.trim_mean(np.concatenate(tasks, axis=-1), CUT, axis=-1))


def task_mean(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return np.mean([runs.mean(-1) for runs in tasks], axis=0)


def task_median(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median([runs.mean(-1) for runs in tasks], axis=0)


def optimality_gap(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """How far runs fall short of a score of 1, where more than 1 counts as 1; lower is better."""
    return 1 - task_mean([np.minimum(runs, 1.0) for runs in tasks])


METRICS: Mapping[str, Callable[[Sequence[np.ndarray]], np.ndarray]] = {
    "IQM": pooled_iqm,
    "mean": task_mean,
    "median": task_median,
    "optimality gap": optimality_gap,
}
"""What tasks say together about scores that are comparable between them."""


def by_task(scores: Scores) -> list[np.ndarray]:
    """Scores as one float64 `[runs, ...]` a task.

    Raises:
      ValueError: a task has no run, or there is no task.
    """
    if isinstance(scores, Mapping):
        scores = list(scores.values())
    elif isinstance(scores, np.ndarray):
        scores = list(np.moveaxis(scores, 1, 0)) if scores.ndim > 1 else [scores]
    tasks = [np.asarray(runs, np.float64) for runs in scores]
    if not tasks or not all(len(runs) for runs in tasks):
        raise ValueError(f"scores={[len(runs) for runs in tasks]} runs a task: each needs one")
    return tasks


def aggregate(
    scores: Scores,
    metric: Callable[[Sequence[np.ndarray]], np.ndarray] = pooled_iqm,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """A metric of the runs of several tasks with its stratified bootstrap interval.

    Runs are resampled within each task, each task by itself; the tasks stay as they are.

    Args:
      scores: `[runs, tasks, ...]`, or one `[runs, ...]` a task.
      metric: one of `METRICS`, or another such function.
      level: how often the interval should hold the truth.
      num_resamples: bootstrap samples.
      seed: of the resampling.
    """
    tasks = [np.moveaxis(runs, 0, -1) for runs in by_task(scores)]
    rng = np.random.default_rng(seed)
    draws = [rng.integers(n, size=(num_resamples, n)) for n in (x.shape[-1] for x in tasks)]
    found = [
        metric(
            [np.moveaxis(x[..., draw[part]], -2, 0) for x, draw in zip(tasks, draws, strict=True)]
        )
        for part in _parts(num_resamples, sum(x.size for x in tasks))
    ]
    return Summary(metric(tasks), *interval(np.concatenate(found), level))


def interval(resampled: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval over the first axis: `[resamples, ...]` to twice `[...]`."""
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def resampled_iqms(values: np.ndarray, *, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Bootstrap samples of the interquartile mean of many configurations at once.

    All configurations draw the same seeds, so that what seeds have in common stays in sums and
    differences of configurations; each task draws its own. Where runs are missing, a configuration
    draws as many as it has from those it has.

    Args:
      values: `[configurations, tasks, seeds]`, NaN where there is no run.

    Returns:
      `[resamples, configurations]`.
    """
    gaps = np.isnan(values)
    packed = np.take_along_axis(values, np.argsort(gaps, axis=-1, kind="stable"), -1)
    made = np.sum(~gaps, axis=-1, keepdims=True)
    count, tasks, seeds = values.shape
    rng = np.random.default_rng(seed)
    # Where no run is missing these are the draws of `aggregate`, and so are the intervals.
    whole = [rng.integers(seeds, size=(num_resamples, seeds)) for _ in range(tasks)]
    whole = np.stack(whole, axis=1)[:, None]
    uniform = (whole + rng.random(whole.shape)) / seeds
    found = []
    for part in _parts(num_resamples, values.size):
        index = np.where(made == seeds, whole[part], (uniform[part] * made).astype(int))
        drawn = np.take_along_axis(packed[None], index, -1)
        drawn = np.where(np.arange(seeds) < made, drawn, np.nan)
        found.append(iqm_of_rows(drawn.reshape(-1, count, tasks * seeds)))
    return np.concatenate(found)


def performance_profile(
    scores: Scores,
    thresholds: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """Share of runs that score more than each threshold, with its pointwise bootstrap band.

        F(tau) = mean over tasks of 1/n sum_n 1[x_n > tau]

    Args:
      scores: `[runs, tasks]`, or one `[runs, ...]` a task. Values along further axes, say those of
        configurations that share a seed, are drawn together; NaN is left out.
      thresholds: `[points]`.

    Returns:
      Shares `[points]`.

    Source: Agarwal et al. 2021, section 4.2.
    """
    rng = np.random.default_rng(seed)
    centres, resampled = [], []
    for runs in by_task(scores):
        flat = runs.reshape(len(runs), -1)
        above = np.stack([np.sum(flat > threshold, axis=1) for threshold in thresholds], axis=1)
        made = np.sum(~np.isnan(flat), axis=1)
        drawn = draw_counts(rng, len(runs), num_resamples)
        with np.errstate(invalid="ignore"):
            resampled.append(drawn @ above / (drawn @ made)[:, None])
            centres.append(above.sum(0) / made.sum())
    shares = np.mean(resampled, axis=0)
    shares = shares[~np.isnan(shares).any(axis=1)]  # Drops draws of seeds without any run.
    return Summary(np.mean(centres, axis=0), *interval(shares, level))


def draw_counts(rng: np.random.Generator, num_runs: int, num_resamples: int) -> np.ndarray:
    """How often each run is drawn in each bootstrap sample, `[resamples, runs]`."""
    drawn = rng.integers(num_runs, size=(num_resamples, num_runs))
    places = drawn + num_runs * np.arange(num_resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts.astype(np.float64)


def _parts(num_resamples: int, size: int) -> Iterator[slice]:
    """Slices of the bootstrap samples, each of `size` numbers, that fit into memory."""
    step = max(1, AT_ONCE // max(size, 1))
    return (slice(start, start + step) for start in range(0, num_resamples, step))
