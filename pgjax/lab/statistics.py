"""What seeds say together: a centre that one odd seed does not move, and how sure it is."""

from typing import NamedTuple

import numpy as np
from scipy import stats

CUT = 0.25
"""Share of the values left out at either end."""

ENOUGH_FOR_IQM = 4
"""Seeds from which on anything is left out."""


class Summary(NamedTuple):
    """A centre over seeds and its bootstrap interval, each of the shape of one seed's values."""

    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis: the mean without the lowest and highest quarter.

    Of fewer than four values nothing is left out, and it is the mean. Source: Agarwal et al. 2021.

    Args:
      values: `[seeds, ...]`.
    """
    return np.asarray(stats.trim_mean(values, CUT, axis=0))


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
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(values), size=(num_resamples, len(values)))
    centres = stats.trim_mean(values[draws], CUT, axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(centres, [tail, 1 - tail], axis=0)
    return Summary(iqm(values), low, high)


def centre_name(num_seeds: int) -> str:
    """What `iqm` of so many seeds is called."""
    return "IQM" if num_seeds >= ENOUGH_FOR_IQM else "mean"
