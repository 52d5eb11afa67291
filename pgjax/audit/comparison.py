"""Comparison of audits on common random numbers."""

from typing import NamedTuple

import numpy as np

from pgjax.audit import intervals
from pgjax.audit.intervals import Estimate
from pgjax.audit.measure import Audit, deviation
from pgjax.audit.moments import moments
from pgjax.audit.replicates import Blocks


class Comparison(NamedTuple):
    """Ratios, first over second, with intervals that use the common random numbers."""

    trace: Estimate
    mse: Estimate | None
    work_env_steps: Estimate | None
    work_seconds: Estimate


def compare(first: Audit, second: Audit) -> Comparison:
    """Ratios of two audits on common random numbers, first over second.

        trace_1 / trace_2,   mse_1 / mse_2,   work_1 / work_2,   work = trace x cost

    Blocks are left out of both at once, so that what the two have in common cancels.

    Args:
      first: an audit.
      second: another, with the same key, number of replicates, level and reference.

    Returns:
      A `Comparison`; the mean squared errors need a reference, and the environment steps
      gradients that report them. Ratios below one are in favour of the first.

    Raises:
      ValueError: audits whose key, number of replicates, level or reference differ.
    """
    for what in ("key", "num_replicates"):
        if getattr(first.blocks, what) != getattr(second.blocks, what):
            raise ValueError(f"audits can be compared only if they were made with the same {what}")
    if first.level != second.level:
        raise ValueError(f"audits have levels {first.level!r} and {second.level!r}")
    if not _same(first.reference, second.reference):
        raise ValueError("audits can be compared only if they have the same reference")
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = moments(first.blocks), moments(second.blocks)
        t_quantile = intervals.quantile(first.level, len(one.influences) - 1)
        ratio, influences = float(np.divide(one.trace, two.trace)), one.log_trace - two.log_trace
        trace = intervals.log_linear(ratio, influences, t_quantile)
        mse, work = None, None
        if first.mse is not None and second.mse is not None:
            both = _log_mse(first) - _log_mse(second)
            mean_squares = float(np.divide(first.mse.value, second.mse.value))
            mse = intervals.log_linear(mean_squares, both, t_quantile)
        if first.env_steps is not None and second.env_steps is not None:
            both = influences + np.asarray(one.log_env_steps) - np.asarray(two.log_env_steps)
            steps = np.divide(first.env_steps.value, second.env_steps.value)
            work = intervals.log_linear(float(ratio * steps), both, t_quantile)
        seconds = intervals.product(first.seconds, intervals.inverse(second.seconds))
        return Comparison(trace, mse, work, intervals.product(trace, seconds))


def _same(one: np.ndarray | Blocks | None, two: np.ndarray | Blocks | None) -> bool:
    """Whether two references agree, if both are given; audits must share key and size."""
    if one is None or two is None:
        return True
    if isinstance(one, Blocks) and isinstance(two, Blocks):
        return one.key == two.key and one.num_replicates == two.num_replicates
    if isinstance(one, Blocks) or isinstance(two, Blocks):
        return False
    return np.array_equal(one, two)


def _log_mse(audit: Audit) -> np.ndarray:
    """Influences of the audit's own blocks, then of the reference's, on the log of its mse."""
    found, (difference, influences) = moments(audit.blocks), deviation(audit)
    linear = 2 * influences @ difference
    linear[: len(found.influences)] += found.trace * found.log_trace
    return linear / float(audit.mse or np.nan)
