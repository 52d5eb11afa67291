"""Whether one set of runs does better than another, and how often chance alone would say so."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pgjax.lab import statistics
from pgjax.lab.statistics import Scores, Summary

TEST = "Mann-Whitney U, two-sided"
MOST_SPLITS = 20_000
"""A test with ties goes through all ways to split runs in two, if there are no more than these."""

CORRECTION = "Holm"


class Comparison(NamedTuple):
    """One set of runs, X, against another, Y."""

    other: str
    test: str
    num_runs: tuple[int, int]
    statistic: float
    p_value: float
    corrected: float
    correction: str
    num_comparisons: int
    improvement: Summary


def probability_of_improvement(
    first: Scores,
    second: Scores,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """How likely a run of X scores more than a run of Y, with its stratified bootstrap interval.

        P(X > Y) = mean over tasks of 1/(n m) sum_ij (1[x_i > y_j] + 1/2 1[x_i = y_j])

    Args:
      first: scores of X, `[runs, tasks]` or one `[runs]` a task.
      second: scores of Y, of the same tasks; the number of runs may differ.
      level: how often the interval should hold the truth.
      num_resamples: bootstrap samples, of the runs of either within each task.
      seed: of the resampling.

    Raises:
      ValueError: the numbers of tasks differ.

    Source: Agarwal et al. 2021, section 4.3.
    """
    ours, theirs = statistics.by_task(first), statistics.by_task(second)
    if len(ours) != len(theirs):
        raise ValueError(f"second has {len(theirs)} tasks; it must have {len(ours)}, as first has")
    rng = np.random.default_rng(seed)
    centres, resampled = [], []
    for x, y in zip(ours, theirs, strict=True):
        wins = (1 + np.sign(x[:, None] - y[None, :])) / 2
        mine = statistics.draw_counts(rng, len(x), num_resamples)
        yours = statistics.draw_counts(rng, len(y), num_resamples)
        centres.append(wins.mean())
        resampled.append(np.sum((mine @ wins) * yours, axis=1) / wins.size)
    low, high = statistics.interval(np.mean(resampled, axis=0), level)
    return Summary(np.asarray(np.mean(centres)), low, high)


def holm(p_values: Sequence[float] | np.ndarray, num_comparisons: int | None = None) -> np.ndarray:
    """Holm's corrected p-values: the chance of any false alarm stays below the level.

        q_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),    p_(1) <= p_(2) <= ...

    Args:
      p_values: `[k]`, of some or all of the comparisons.
      num_comparisons: `m`, how many comparisons these were chosen from, even by their results; if
        None, `k`. However the k were chosen, no more hypotheses are rejected before the first true
        one than are false in all, which is what Holm's proof needs.

    Raises:
      ValueError: fewer comparisons than p-values.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    p_values = np.asarray(p_values, np.float64)
    count = len(p_values) if num_comparisons is None else num_comparisons
    if count < len(p_values):
        raise ValueError(f"num_comparisons={count} must be at least {len(p_values)}")
    order = np.argsort(p_values)
    steps = np.minimum(1.0, (count - np.arange(len(p_values))) * p_values[order])
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected


def compare(
    first: np.ndarray, others: Mapping[str, np.ndarray], *, num_comparisons: int | None = None
) -> list[Comparison]:
    """Compares the runs of X with those of others, one by one, and corrects for their number.

    The test takes the runs of the two as independent. What runs with the same seed have in common
    makes it cautious: their difference varies less than the test assumes.

    Args:
      first: scores of X, `[runs]`.
      others: name -> scores, `[runs]`.
      num_comparisons: how many these are chosen from; if None, these are all.
    """
    tests = [_test(first, runs) for runs in others.values()]
    corrected = holm([test.pvalue for test in tests], num_comparisons)
    return [
        Comparison(
            other=name,
            test=TEST,
            num_runs=(len(first), len(runs)),
            statistic=float(test.statistic),
            p_value=float(test.pvalue),
            corrected=float(after),
            correction=CORRECTION,
            num_comparisons=num_comparisons or len(others),
            improvement=probability_of_improvement(first, runs),
        )
        for (name, runs), test, after in zip(others.items(), tests, corrected, strict=True)
    ]


def _test(first: np.ndarray, second: np.ndarray) -> Any:
    """Mann-Whitney U; exact for few runs, with ties too, where SciPy's own choice is not."""
    pooled = np.concatenate([first, second])
    tied = len(np.unique(pooled)) < len(pooled)
    few = math.comb(len(pooled), len(first)) <= MOST_SPLITS
    # With as many resamples as there are splits, each split is looked at once.
    method: Any = stats.PermutationMethod(n_resamples=MOST_SPLITS) if tied and few else "auto"
    return stats.mannwhitneyu(first, second, alternative="two-sided", method=method)


def smallest_p_value(num_first: int, num_second: int) -> float:
    """The p-value of two sets of runs that do not overlap at all: no test of them gives less."""
    return min(1.0, 2 / math.comb(num_first + num_second, num_first))
