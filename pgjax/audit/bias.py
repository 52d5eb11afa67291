"""Tests that an expected gradient is what it should be."""

from typing import NamedTuple

import numpy as np
from scipy import stats

ENOUGH = 10
"""Replicates per dimension from which Hotelling's test is used."""

UNDECIDED = "off where no replicate varies"
"""What a test's name says about a deviation that it cannot judge."""


class BiasTest(NamedTuple):
    """The probability of a deviation this large without bias, and the name of the test.

    NaN where there is a deviation but no replicate varies, so that nothing can be said.
    """

    p_value: float
    name: str


def hotelling(
    deviation: np.ndarray,
    covariance: np.ndarray,
    *,
    degrees: float,
    rounding: np.ndarray,
    precision: float,
) -> BiasTest | None:
    """Hotelling's test on the numerical range of the covariance.

        T^2 = d^T V^+ d,   (nu - k + 1) / (k nu) T^2 ~ F(k, nu - k + 1)

    Shift-invariant logits make V singular. A deviation outside its range is shared by all the
    replicates. It is named but not judged, because it cannot be distinguished from one that a rare
    replicate, from a state seldom visited, would offset.

    Args:
      deviation: d, `[D]`, mean gradient minus reference.
      covariance: V, `[D, D]`, its covariance.
      degrees: nu, degrees of freedom of V.
      rounding: deviation of each coordinate that rounding alone may cause, `[D]`.
      precision: machine epsilon of the sums that V was made from.

    Returns:
      None with fewer than `ENOUGH` replicates per dimension of the range.

    Source: Hotelling 1931; the law is exact for Gaussian replicates, asymptotic for others.
    """
    error = np.sqrt(np.clip(np.diag(covariance), 0, None))
    varies = error * np.sqrt(degrees + 1) > rounding
    off = bool(np.any(np.abs(deviation[~varies]) > rounding[~varies]))
    error, scaled = error[varies], deviation[varies] / error[varies]
    correlation = covariance[np.ix_(varies, varies)] / (error[:, None] * error[None, :])
    least = 10 * precision * max(len(error), 1)
    eigenvalues, vectors = np.linalg.eigh(correlation)
    inside = eigenvalues > least
    rank = int(np.sum(inside))
    if degrees < ENOUGH * rank:
        return None
    along = vectors.T @ scaled
    # Outside the range the variance is at most `least`: up to there a deviation may be noise.
    tolerance = 5 * np.sqrt(least) + np.max(rounding[varies] / error, initial=0)
    off = off or bool(np.any(np.abs(along[~inside]) > tolerance))
    if rank == 0:
        return _unvaried(off)
    squared = np.sum(along[inside] ** 2 / eigenvalues[inside])
    ratio = (degrees - rank + 1) / (rank * degrees) * squared
    return _named("Hotelling", float(stats.f.sf(ratio, rank, degrees - rank + 1)), off)


def holm(
    deviation: np.ndarray, error: np.ndarray, *, degrees: float, rounding: np.ndarray
) -> BiasTest:
    """The smallest p-value of the coordinates, corrected for their number.

        p = min(1, D min_i P(|t_nu| > |d_i| / e_i))

    Conservative where coordinates are correlated. Holm's later steps find further coordinates;
    his first decides whether there is any bias. Coordinates that do not vary are named but not
    judged, as in `hotelling`.

    Args:
      deviation: d, `[D]`.
      error: e, `[D]`, its standard errors.
      degrees: nu.
      rounding: deviation of each coordinate that rounding alone may cause, `[D]`.

    Source: Holm 1979.
    """
    beyond = np.where(np.abs(deviation) > rounding, np.abs(deviation), 0.0)
    varies = error * np.sqrt(degrees + 1) > rounding
    off = bool(np.any(beyond[~varies] > 0))
    if not np.any(varies):
        return _unvaried(off)
    smallest = float(2 * stats.t.sf(np.max(beyond[varies] / error[varies]), degrees))
    return _named("Holm", min(1.0, len(deviation) * smallest), off)


def _unvaried(off: bool) -> BiasTest:
    return BiasTest(np.nan, UNDECIDED) if off else BiasTest(1.0, "equal up to rounding")


def _named(name: str, p_value: float, off: bool) -> BiasTest:
    return BiasTest(p_value, f"{name}, {UNDECIDED}" if off else name)
