"""Confidence intervals from block sums: the delete-one-block jackknife and what goes with it.

The effect of one block on a statistic is its influence, `[B]`. The squared influences on one
statistic sum to its variance, the products of those on two statistics to their covariance.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return float(self.value)


def check_level(level: float) -> None:
    """Raises `ValueError` unless the level is strictly between 0 and 1."""
    if not (isinstance(level, float | int | np.number) and 0 < level < 1):
        raise ValueError(f"level={level!r} must be a number strictly between 0 and 1")


def quantile(level: float, degrees: float) -> float:
    """Half-width of a two-sided interval of this level in standard errors: Student's t."""
    return float(stats.t.ppf(0.5 + 0.5 * level, max(degrees, 1)))


def influence(left_out: Any) -> np.ndarray:
    """Influences of the blocks on a statistic, from its values without each block in turn.

    Args:
      left_out: `[B, ...]`.

    Source: Efron and Stein 1981, "The Jackknife Estimate of Variance".
    """
    left_out = np.asarray(left_out, np.float64)
    return np.sqrt(1 - 1 / len(left_out)) * (left_out - left_out.mean(0))


def positive(value: float, influences: np.ndarray, t_quantile: float) -> Estimate:
    """Interval of a positive quantity, on a log scale and corrected for skewness.

    Squared gradients have long tails: the largest has often not been seen yet, and an interval
    that is symmetric about the estimate lies too low.

    Args:
      value: the estimate.
      influences: influences on its logarithm, `[B]`.
      t_quantile: half-width in standard errors, before the correction.

    Source: Hall 1992, "On the Removal of Skewness by Transformation", on jackknife values.
    """
    if value == 0:
        return Estimate(0.0, 0.0, 0.0)
    error = np.sqrt(np.sum(influences**2))
    if not np.isfinite(error):
        return Estimate(float(value), 0.0, np.inf)
    bend = _skewness(-influences) / np.sqrt(len(influences))

    def unbent(score):
        if abs(bend) < 1e-6:
            return score
        return 3 / bend * (np.cbrt(1 + bend * (score - bend / 6)) - 1)

    with np.errstate(over="ignore"):
        low, high = np.exp(-error * unbent(t_quantile)), np.exp(-error * unbent(-t_quantile))
    return Estimate(float(value), float(value * low), float(value * high))


def log_linear(value: float, influences: np.ndarray, t_quantile: float) -> Estimate:
    """Interval of a ratio, symmetric on a log scale.

    Args:
      value: the estimate, positive.
      influences: influences on its logarithm, `[B]`.
      t_quantile: half-width in standard errors.
    """
    error = np.sqrt(np.sum(influences**2))
    with np.errstate(over="ignore"):
        factor = np.exp(t_quantile * error) if np.isfinite(error) else np.inf
    return Estimate(float(value), float(value / factor), float(value * factor))


def _skewness(x: np.ndarray) -> float:
    x = x - np.mean(x)
    spread = np.mean(x**2)
    return float(np.mean(x**3) / spread**1.5) if spread > 0 else 0.0


def quadratic(
    value: float, linear: float, slope: float, floor: float, t_quantile: float
) -> Estimate:
    """Interval of a squared length that is estimated without bias.

        { tau : (value - tau)^2 <= t^2 (max(linear + slope (tau - value), 0) + floor) }

    The variance is evaluated at the hypothesis tau, not at the estimate. That keeps the level where
    the truth, and with it the linear part of the variance, is zero.

    Args:
      value: estimate of |mu|^2, possibly negative.
      linear: variance of the linear part, 4 mu^T V mu, with V the covariance of the estimate of
        mu; estimated, and possibly negative.
      slope: change of that variance per unit of |mu|^2.
      floor: variance that remains at mu = 0: 2 tr V^2.
      t_quantile: half-width in standard errors, t.
    """
    half, middle = t_quantile * np.sqrt(floor), 0.5 * t_quantile**2 * slope
    # Negative only where the root is not used: there the linear part is zero at both ends.
    root = np.sqrt(max(middle**2 + t_quantile**2 * (linear + floor), 0.0))
    low = middle - root if linear > slope * half else -half
    high = middle + root if linear > -slope * half else half
    return Estimate(float(value), float(value + low), float(value + high))


def cosine(value: float, slope: float, floor: float, t_quantile: float) -> Estimate:
    """Interval of a cosine whose variance is slope (1 - c^2) + floor at the hypothesis c.

        { c : (value - c)^2 <= t^2 (slope max(1 - c^2, 0) + floor) }

    `t_quantile` is its half-width in standard errors, t.
    """
    steep, half = 1 + t_quantile**2 * slope, t_quantile * np.sqrt(floor)
    root = np.sqrt(max(value**2 - steep * (value**2 - t_quantile**2 * slope - half**2), 0.0))
    low, high = (value - root) / steep, (value + root) / steep
    low = value - half if abs(low) > 1 else low
    high = value + half if abs(high) > 1 else high
    return Estimate(float(value), float(low), float(high))


def combined(
    value: float,
    below: tuple[float, float],
    above: tuple[float, float],
    correlated: float,
) -> Estimate:
    """Interval of a combination of two estimates, from how far each moves it down and up.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a
    general approach".
    """

    def length(first, second):
        if not (np.isfinite(first) and np.isfinite(second)):
            return np.inf
        return np.sqrt(max(first**2 + second**2 + 2 * correlated * first * second, 0.0))

    return Estimate(float(value), float(value - length(*below)), float(value + length(*above)))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two statistics from their influences; zero where one does not vary."""
    size = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / size) if size > 0 else 0.0


def ratio(top: Estimate, bottom: Estimate, correlated: float) -> Estimate:
    """Interval of top / bottom, bottom positive."""
    (value, low, high), (size, least, most) = np.asarray(top), np.asarray(bottom)
    quotient = value / size
    return combined(
        quotient,
        ((value - low) / size, abs(quotient) * (1 - size / most)),
        ((high - value) / size, abs(quotient) * (size / least - 1)),
        -correlated,
    )


def inverse(of: Estimate) -> Estimate:
    """One over something positive."""
    value, low, high = 1 / np.asarray(of)
    return Estimate(float(value), float(high), float(low))


def product(one: Estimate, two: Estimate) -> Estimate:
    """Product of two independent positive numbers, by their logarithms."""
    logs = np.log(np.array([one, two]))  # value, low, high
    below = np.hypot(*(logs[:, 0] - logs[:, 1]))
    above = np.hypot(*(logs[:, 2] - logs[:, 0]))
    value = one.value * two.value
    return Estimate(value, float(value * np.exp(-below)), float(value * np.exp(above)))


def geometric_mean(values: np.ndarray, level: float) -> Estimate:
    """Geometric mean of independent positive numbers `[n]`; NaN where there are none."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    logs = np.log(values)
    size = len(logs)
    influences = np.full(1, np.nan)
    if size > 1:
        influences = (np.mean(logs) - logs) / np.sqrt(size * (size - 1))
    return positive(float(np.exp(np.mean(logs))), influences, quantile(level, size - 1))
