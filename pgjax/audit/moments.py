"""Moments of a gradient from the sums over its replicates, and how each block moves them."""

from typing import NamedTuple

import jax
import numpy as np

from pgjax.audit import intervals
from pgjax.audit.intervals import Estimate
from pgjax.audit.replicates import Blocks, Sums, pilots


class Moments(NamedTuple):
    """Estimates in the units of the gradient; `log_...` are influences of blocks on logarithms."""

    count: np.float64  # replicates, N
    mean: np.ndarray  # [D]
    influences: np.ndarray  # [B, D] of blocks on the mean, I; I^T I is its covariance
    variance: np.ndarray  # [D] of each coordinate of a replicate
    covariance: np.ndarray | None  # [D, D] of a replicate
    trace: float
    log_trace: np.ndarray  # [B]
    fourth: float  # mean of |g - mean|^4
    cv2: float
    log_cv2: np.ndarray  # [B]
    env_steps: float | None
    log_env_steps: np.ndarray | None  # [B]

    def along(self, vector: np.ndarray) -> np.ndarray:
        """Influences of the blocks on the mean along a vector, `[B]`."""
        return self.influences @ direction(vector)

    def variance_along(self, vector: np.ndarray) -> float:
        """Variance of the mean along a vector."""
        if self.covariance is None:
            return float(np.sum(self.along(vector) ** 2))
        unit = direction(vector)
        return float(unit @ self.covariance @ unit) / self.count

    def pulled(self, vector: np.ndarray) -> np.ndarray:
        """V v, for the covariance V of the mean, `[D]`."""
        if self.covariance is None:
            return self.influences.T @ (self.influences @ vector)
        return self.covariance @ vector / self.count

    def squared_covariance(self) -> float:
        """tr V^2 for the covariance V of the mean, corrected for its own noise."""
        if self.covariance is None:
            return gram_square(self.influences)
        naive = np.sum(self.covariance**2)
        unbiased = (self.count * naive - self.fourth) / (self.count - 1)
        return float(max(unbiased, self.trace**2 / len(self.mean)) / self.count**2)


@np.errstate(divide="ignore", invalid="ignore")
def moments(blocks: Blocks) -> Moments:
    """The moments of the replicates behind the sums; undefined ones are NaN."""
    sums, unit = blocks.sums, blocks.unit
    total = jax.tree.map(lambda x: x.sum(0), sums)
    left = jax.tree.map(lambda x: x.sum(0) - x, sums)
    count = np.float64(total.count)  # A Python float would raise on division by zero.
    centre, outer = total.x / count, blocks.scatter / count
    whole = outer.ndim == 2
    diagonal = np.diag(outer) if whole else outer
    scale = unit**2 * count / (count - 1) if count > 1 else np.nan
    spread = centre @ outer @ centre if whole else _spread(blocks, centre)
    found = Moments(
        count=count,
        mean=blocks.pilot + unit * centre,
        influences=unit * intervals.influence(left.x / left.count[:, None]),
        variance=scale * np.maximum(diagonal - centre**2, 0),
        covariance=scale * (outer - centre[:, None] * centre[None, :]) if whole else None,
        trace=unit**2 * float(_trace(total)),
        log_trace=intervals.influence(np.log(_trace(left))),
        fourth=unit**4 * float(_fourth(total, spread)) / count,
        cv2=float(_cv2(total, spread)),
        log_cv2=intervals.influence(np.log(_cv2(left, spread))),
        env_steps=None,
        log_env_steps=None,
    )
    if sums.env_steps is None:
        return found
    return found._replace(
        env_steps=float(total.env_steps / count),
        log_env_steps=intervals.influence(np.log(left.env_steps / left.count)),
    )


def squared_length(
    vector: np.ndarray, found: Moments, other: Moments | None, t_quantile: float
) -> Estimate:
    """|E v|^2 for a mean v, or a difference v of two independent means, without bias.

        |v|^2 - tr V,   V the covariance of v

    The linear part of its variance, 4 v^T V v, is followed along V v, the direction in which v
    moves, and not along v: where the noisy part of v has come out small, v says little about how
    much larger it may be.
    """
    noise, square = found.trace / found.count, found.squared_covariance()
    pulled = found.pulled(vector)
    if other is not None:
        noise += other.trace / other.count
        square += other.squared_covariance() + 2 * _cross(found, other)
        pulled = pulled + other.pulled(vector)
    along, value = float(vector @ pulled), float(np.sum(vector**2)) - noise
    slopes = ((float(pulled @ pulled), along), (square, noise))
    steepest = max((up / run for up, run in slopes if run > 0), default=0.0)
    return intervals.quadratic(value, 4 * (along - square), 4 * steepest, 2 * square, t_quantile)


def cosine(found: Moments, other: Moments | None, truth: np.ndarray, t_quantile: float) -> Estimate:
    """Cosine of the expected gradient and another, corrected for bias to second order.

    Where the two are parallel the first-order variance vanishes, and the second-order one remains.
    Where the length of either is lost in its noise, the interval holds all cosines.
    """
    one, two = direction(found.mean), direction(truth)
    sides = [(found, one, two, found.mean)]
    if other is not None:
        sides.append((other, two, one, truth))
    plain = float(np.sum(one * two))
    value, slope, across = plain, 0.0, []
    for side, own, opposite, mean in sides:
        noise, square = side.trace / side.count, np.sum(mean**2)
        if not squared_length(mean, side, None, t_quantile).low > noise:
            return Estimate(plain, -1.0, 1.0)
        own_influences, sideways = side.influences @ own, opposite - plain * own
        value += 0.5 * plain * (noise - side.variance_along(own)) / square
        value += np.sum(own_influences * (side.influences @ sideways)) / square
        slope += np.sum(side.along(sideways) ** 2) / square
        across.append((side.influences - own_influences[:, None] * own[None, :]) / np.sqrt(square))
    floor = sum(map(gram_square, across))
    if other is not None:
        floor += 2 * np.sum((across[0] @ across[1].T) ** 2)
    return intervals.cosine(value, slope, 0.5 * floor, t_quantile)


def gram_square(rows: np.ndarray) -> float:
    """tr V^2 of a covariance V = rows^T rows, without the bias from sampling the rows.

    Unbiased for Gaussian rows; block means are nearly Gaussian.

    Source: Srivastava 2005, "Some Tests Concerning the Covariance Matrix in High Dimensional
    Data".
    """
    degrees = len(rows) - 1
    gram = rows @ rows.T
    least = np.trace(gram) ** 2 / rows.shape[1]
    if degrees < 2:
        return float(np.sum(gram**2))
    unbiased = np.sum(gram**2) - np.trace(gram) ** 2 / degrees
    return float(max(unbiased * degrees**2 / ((degrees + 2) * (degrees - 1)), least))


def direction(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length one; zero stays zero."""
    length = np.sqrt(np.sum(vector**2))
    return vector / length if length > 0 else vector


def _trace(sums: Sums) -> np.ndarray:
    spread = sums.square - np.sum(sums.x**2, axis=-1) / sums.count
    return np.maximum(spread, 0) / (sums.count - 1)  # below zero is rounding


def _cv2(sums: Sums, spread: float) -> np.ndarray:
    square = _trace(sums) * (sums.count - 1) / sums.count
    return _fourth(sums, spread) / sums.count / square**2 - 1


def _fourth(sums: Sums, spread: float) -> np.ndarray:
    """Sum of |x - m|^4 = (|x|^2 - 2 x'm + |m|^2)^2 for the mean m.

    Args:
      sums: of x.
      spread: m^T E[x x^T] m.
    """
    mean = sums.x / np.asarray(sums.count)[..., None]
    norm = np.sum(mean**2, axis=-1)
    cross = np.sum(mean * sums.weighted, axis=-1)
    return (
        sums.fourth
        - 4 * cross
        + 2 * norm * sums.square
        + 4 * sums.count * spread
        - 3 * sums.count * norm**2
    )


def _spread(blocks: Blocks, centre: np.ndarray) -> float:
    """centre^T E[x x^T] centre from the means of blocks, without those that the pilot saw."""
    sums, num_blocks = blocks.sums, len(blocks.sums.count)
    first = -(-pilots(blocks.num_replicates) * num_blocks // blocks.num_replicates)
    first = first if first < num_blocks // 2 else 0
    means = (sums.x @ centre)[first:] / sums.count[first:]
    variance = np.var(means, ddof=1) * np.mean(sums.count[first:])
    return float(variance + np.sum(centre**2) ** 2)


def _cross(one: Moments, two: Moments) -> float:
    """tr V W of the covariances of two independent means."""
    if one.covariance is None or two.covariance is None:
        return float(np.sum((one.influences @ two.influences.T) ** 2))
    return float(np.sum(one.covariance * two.covariance) / (one.count * two.count))
