"""The audit of a `GradientFn`: what is measured, and how."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax import checks, cost
from pgjax.audit import bias, intervals, replicates
from pgjax.audit.bias import BiasTest
from pgjax.audit.intervals import Estimate
from pgjax.audit.moments import Moments, cosine, direction, moments, squared_length
from pgjax.audit.replicates import Blocks
from pgjax.score import GradientFn, Params, StatefulGradientFn, check_returned


class Audit(NamedTuple):
    """A gradient as a random variable: estimates, with confidence intervals at `level`.

    A replicate is one call of the `GradientFn`: for an estimator that couples K episodes, all K.
    """

    mean: Params
    """Mean gradient, float64, shaped like the gradient."""
    standard_error: Params
    """Standard error of every coordinate of the mean."""
    trace: Estimate
    """Trace of the covariance of one replicate. Its interval is too short where
    `effective_sample_size` is small, and where rare but large gradients were not seen at all."""
    squared_norm: Estimate
    """|E g|^2, estimated without bias and therefore possibly negative: |mean|^2 - trace / N."""
    snr: Estimate
    """Signal to noise, squared_norm / trace."""
    cv2: Estimate
    """Var(q) / trace^2 with q = |g - E g|^2: how hard the trace is to estimate. Its own interval
    is too short for heavy tails, because it depends on the eighth moment."""
    effective_sample_size: Estimate
    """N / (1 + cv2): how many equal contributions the trace, a mean of N unequal squared
    deviations, is worth (Kish); the relative error of the trace is about sqrt(cv2 / N)."""
    env_steps: Estimate | None
    """Environment steps per replicate; None where the metrics do not say."""
    seconds: Estimate
    """Seconds per replicate on this machine, in chunks of the audit's size."""
    flops: float | None
    """Floating-point operations per replicate in such a chunk; None unless asked for."""
    work_env_steps: Estimate | None
    """trace x env_steps: variance per unit of work, lower is better."""
    work_seconds: Estimate
    """trace x seconds."""
    num_replicates: int
    nonfinite: int
    """Replicates left out because their gradient was not finite."""
    level: float
    blocks: Blocks
    bias: Params | None = None
    """mean - reference; this and the fields below are None without a reference."""
    squared_bias: Estimate | None = None
    """|E g - reference|^2, estimated without bias and therefore possibly negative. It says how
    large the bias is; `bias_test` says whether there is one."""
    cosine: Estimate | None = None
    """Cosine of E g and the reference, corrected for the noise in |mean|: it may exceed one."""
    mse: Estimate | None = None
    """Mean squared error of one replicate, trace + squared_bias."""
    bias_test: BiasTest | None = None
    """Whether the bias could be chance. Where it and `squared_bias` disagree, it decides: it weighs
    every direction in units of its noise, while the noisiest dominate `squared_bias`."""
    reference: np.ndarray | Blocks | None = None


def audit(
    key: jax.Array,
    params: Params,
    gradient_fn: GradientFn,
    *,
    reference: Params | Audit | None = None,
    num_replicates: int,
    chunk_size: int,
    level: float = 0.95,
    count_flops: bool = False,
) -> Audit:
    """Measures bias, variance and cost of a gradient.

        g_i = gradient_fn(fold_in(key, i), params),   i = 0 ... N - 1
        trace = (sum_i |g_i|^2 - N |mean g|^2) / (N - 1)

    Audits with the same key and number of replicates use common random numbers, on which `compare`
    relies. Results do not depend on `chunk_size`, except for rounding and the seconds.

    Args:
      key: typed PRNG key.
      params: where the gradient is evaluated.
      gradient_fn: what is audited; compiled here, once. It may return a part of the gradient.
      reference: what the expected gradient should be: exact, shaped like the gradient, or an
        audit of an independent run, whose own error is taken into account. With None, nothing is
        said about bias.
      num_replicates: calls of the gradient, N.
      chunk_size: calls made side by side; memory grows with it, not with N.
      level: confidence level of the intervals.
      count_flops: also count floating-point operations, for which one more program is compiled.

    Returns:
      An `Audit`, on the host.

    Raises:
      ValueError: fewer than two replicates, a chunk size below one, a level outside (0, 1), a
        reference shaped unlike the gradient, or a gradient with a state or without metrics.

    Source: Kish 1965 for the effective sample size; Efron and Stein 1981 for the jackknife.
    """
    measure = auditor(
        gradient_fn,
        num_replicates=num_replicates,
        chunk_size=chunk_size,
        level=level,
        count_flops=count_flops,
    )
    return measure(key, params, reference)


def auditor(
    gradient_fn: GradientFn,
    *,
    num_replicates: int,
    chunk_size: int,
    level: float = 0.95,
    count_flops: bool = False,
) -> Callable[..., Audit]:
    """`(key, params, reference=None) -> Audit`, compiled once for many params; see `audit`."""
    if isinstance(gradient_fn, StatefulGradientFn):
        raise ValueError(
            "gradient_fn carries a state from call to call; an audit takes a GradientFn, whose "
            "replicates are independent"
        )
    reason = "an audit needs at least two replicates: variance is their spread"
    checks.at_least("num_replicates", num_replicates, 2, reason)
    checks.at_least("chunk_size", chunk_size, 1)
    intervals.check_level(level)
    chunk_size = min(chunk_size, num_replicates)
    stream = replicates.streamer(gradient_fn, num_replicates=num_replicates, chunk_size=chunk_size)
    chunk = replicates.chunks(gradient_fn, chunk_size)

    def measure(key: jax.Array, params: Params, reference: Any = None) -> Audit:
        returned = jax.eval_shape(gradient_fn, key, params)
        check_returned(returned)
        known = _known(reference, returned[0], key)
        blocks, seconds, like = stream(key, params)
        if blocks.nonfinite:
            warnings.warn(
                f"{blocks.nonfinite} of {num_replicates} gradients were not finite and are left "
                "out",
                stacklevel=2,
            )
        flops = cost.flops(chunk, key, params, np.int32(0)) / chunk_size if count_flops else None
        return summarise(like, blocks, known, seconds=seconds, flops=flops, level=level)

    return measure


def summarise(
    like: Params,
    blocks: Blocks,
    reference: np.ndarray | Blocks | None = None,
    *,
    seconds: Any = (),
    flops: float | None = None,
    level: float = 0.95,
) -> Audit:
    """The audit computed from block sums; arithmetic only.

    Args:
      like: gives the mean and the bias their structure.
      blocks: sums over the replicates.
      reference: None, the exact expected gradient `[D]`, or the sums of an independent run.
      seconds: seconds per replicate, one measurement per chunk.
      flops: operations per replicate.
      level: confidence level of the intervals.

    Raises:
      ValueError: a level outside (0, 1).
    """
    intervals.check_level(level)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = moments(blocks)
        t_quantile = intervals.quantile(level, len(found.log_trace) - 1)
        trace = intervals.positive(found.trace, found.log_trace, t_quantile)
        norm = squared_length(found.mean, found, None, t_quantile)
        snr = intervals.ratio(
            norm, trace, intervals.correlation(found.along(found.mean), found.log_trace)
        )
        cv2 = intervals.positive(found.cv2, found.log_cv2, t_quantile)
        time_ = intervals.geometric_mean(np.asarray(seconds, np.float64), level)
        steps, work = None, None
        if found.env_steps is not None and found.log_env_steps is not None:
            steps = intervals.positive(found.env_steps, found.log_env_steps, t_quantile)
            influences = found.log_trace + found.log_env_steps
            work = intervals.positive(found.trace * found.env_steps, influences, t_quantile)
        size = found.count
        result = Audit(
            mean=_shaped(found.mean, like),
            standard_error=_shaped(np.sqrt(found.variance / found.count), like),
            trace=trace,
            squared_norm=norm,
            snr=snr,
            cv2=cv2,
            effective_sample_size=Estimate(*(size / (1 + x) for x in (cv2[0], cv2[2], cv2[1]))),
            env_steps=steps,
            seconds=time_,
            flops=flops,
            work_env_steps=work,
            work_seconds=intervals.product(trace, time_),
            num_replicates=blocks.num_replicates,
            nonfinite=blocks.nonfinite,
            level=level,
            blocks=blocks,
        )
        return result if reference is None else _judged(result, found, reference, like, t_quantile)


def mean_squared_error(audit: Audit, num_averaged: int = 1) -> Estimate:
    """Mean squared error of the average of `num_averaged` independent replicates.

        trace / num_averaged + squared_bias

    Raises:
      ValueError: `num_averaged` < 1, or an audit without a reference.
    """
    checks.at_least("num_averaged", num_averaged, 1)
    if audit.squared_bias is None:
        raise ValueError("the mean squared error needs an audit with a reference")
    found = moments(audit.blocks)
    difference, influences = deviation(audit)
    along = influences[: len(found.influences)] @ direction(difference)
    trace = Estimate(*(x / num_averaged for x in audit.trace))
    squared = audit.squared_bias
    return intervals.combined(
        trace.value + squared.value,
        (trace.value - trace.low, squared.value - squared.low),
        (trace.high - trace.value, squared.high - squared.value),
        intervals.correlation(along, found.log_trace),
    )


def deviation(audit: Audit) -> tuple[np.ndarray, np.ndarray]:
    """Mean minus reference `[D]`, and the influences on it `[B, D]`, the audit's own first.

    Raises:
      ValueError: an audit without a reference.
    """
    found, reference = moments(audit.blocks), audit.reference
    if reference is None:
        raise ValueError("the mean squared error needs an audit with a reference")
    if isinstance(reference, Blocks):
        other = moments(reference)
        return found.mean - other.mean, np.concatenate([found.influences, -other.influences])
    return found.mean - reference, found.influences


def _judged(
    result: Audit, found: Moments, reference: np.ndarray | Blocks, like: Params, t_quantile: float
) -> Audit:
    """The audit with all that a reference adds."""
    sides = [(result.blocks, found)]
    if isinstance(reference, Blocks):
        other = moments(reference)
        truth = other.mean
        sides.append((reference, other))
    else:
        other, truth = None, reference
    difference = found.mean - truth
    result = result._replace(
        bias=_shaped(difference, like),
        squared_bias=squared_length(difference, found, other, t_quantile),
        cosine=cosine(found, other, truth, t_quantile),
        reference=reference,
    )
    tested = _test(sides, difference, like)
    return result._replace(bias_test=tested, mse=mean_squared_error(result))


def _test(sides: list[tuple[Blocks, Moments]], difference: np.ndarray, like: Params) -> BiasTest:
    """Hotelling's test where all of the covariance is known well enough, else Holm's."""
    variance = np.sum([side.variance / side.count for _, side in sides], axis=0)
    for name, found in (("mean", difference), ("variance", variance)):
        if not np.all(np.isfinite(found)):
            return BiasTest(np.nan, f"none: no finite {name}")
    degrees = min(side.count for _, side in sides) - 1
    precision = max(blocks.precision for blocks, _ in sides)
    sizes = [_sizes(side, like) for _, side in sides]
    rounding = 100 * precision * np.max(sizes, axis=0)
    whole = [side.covariance / side.count for _, side in sides if side.covariance is not None]
    if len(whole) == len(sides):
        covariance = np.sum(whole, axis=0)
        tested = bias.hotelling(
            difference, covariance, degrees=degrees, rounding=rounding, precision=precision
        )
        if tested is not None:
            return tested
    return bias.holm(difference, np.sqrt(variance), degrees=degrees, rounding=rounding)


def _sizes(found: Moments, like: Params) -> np.ndarray:
    """For each coordinate the root mean square length of a replicate's part in its array, `[D]`.

    What is computed together is rounded alike, but a gradient of large values says nothing about
    the rounding of the policy's beside it.
    """
    squares = _shaped(found.mean**2 + found.variance, like)
    return np.concatenate(
        [np.full(np.size(leaf), np.sqrt(np.sum(leaf))) for leaf in jax.tree.leaves(squares)]
    )


def _known(reference: Any, like: Params, key: jax.Array) -> np.ndarray | Blocks | None:
    """The reference in the form that `summarise` takes, if it fits."""
    if reference is None:
        return None
    if isinstance(reference, Audit):
        if reference.blocks.key == replicates.identity(key):
            raise ValueError("reference is not independent: it was audited with the same key")
        mean, known = reference.mean, reference.blocks
    else:
        mean, known = reference, None
    wanted, found = _describe(like), _describe(mean)
    if found != wanted:
        raise ValueError(f"reference has {found}; the gradient has {wanted}")
    if known is None:
        leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(reference)]
        known = np.concatenate(leaves)
        if not np.all(np.isfinite(known)):
            raise ValueError("reference is not finite")
    return known


def _describe(tree: Any) -> str:
    return f"shapes {jax.tree.map(np.shape, tree)}"


def _shaped(flat: np.ndarray, like: Params) -> Params:
    """A flat vector with the structure of a gradient, in float64."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    parts = np.split(flat, ends[:-1])
    shaped = [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
