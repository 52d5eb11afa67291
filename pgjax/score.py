"""The one identity: grad E[f(x)] = E[f(x) grad log p(x)], as `jax.grad` of a surrogate."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import baselines, checks

Params = Any
Metrics = dict[str, jax.Array]
GradientFn = Callable[[jax.Array, Params], tuple[Params, Metrics]]
"""`(key, params) -> (gradient, metrics)`; `gradient` is shaped like `params` and points uphill."""


class StatefulGradientFn(NamedTuple):
    """A gradient that carries something from step to step: environments, a running baseline."""

    init: Callable[[jax.Array, Params], Any]
    """`(key, params) -> state`"""
    step: Callable[[jax.Array, Params, Any], tuple[Params, Any, Metrics]]
    """`(key, params, state) -> (gradient, state, metrics)`"""


def surrogate(log_prob: jax.Array, weight: jax.Array) -> jax.Array:
    """The log-likelihood surrogate, whose gradient is the score-function estimate.

        L(theta) = 1/N sum_i sum_t stop_gradient(Psi_it) log pi_theta(a_it | s_it)

    Sum over every axis but the first, mean over the first: a mean over time steps would weigh
    episodes by the inverse of their length. Only its gradient means anything, and only the first
    one: see `magic_box` for higher orders.

    Args:
      log_prob: `[N, ...]` log-likelihoods of what was sampled.
      weight: `[N, ...]` weights Psi, held constant.

    Returns:
      A scalar to ascend.

    Raises:
      ValueError: two shapes.

    Source: Williams 1992; Schulman et al. 2015, "Gradient Estimation Using Stochastic
    Computation Graphs".
    """
    if log_prob.shape != weight.shape:
        raise ValueError(
            f"log-probabilities have shape {log_prob.shape} and weights {weight.shape}; "
            "distributions.independent makes one of those of a vector"
        )
    return jnp.sum(jax.lax.stop_gradient(weight) * log_prob) / log_prob.shape[0]


def magic_box(log_prob: jax.Array) -> jax.Array:
    """One in value, and a score in every derivative.

        magic_box(x) = exp(x - stop_gradient(x)),   grad magic_box(x) = magic_box(x) grad x

    `mean(magic_box(log_prob) * f)` differentiates, any number of times, to estimates of the
    derivatives of E[f]; unbiased at every order.

    Args:
      log_prob: log-likelihood, any shape.

    Returns:
      Ones of the same shape.

    Source: Foerster et al. 2018, "DiCE: The Infinitely Differentiable Monte-Carlo Estimator".
    """
    return jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))


def score_function_gradient(
    sample: Callable[[jax.Array, Params], Any],
    log_prob: Callable[[Params, Any], jax.Array],
    objective: Callable[[Params, Any], jax.Array],
    *,
    num_samples: int,
    baseline: str | Callable[[jax.Array], jax.Array] | None = "leave_one_out",
) -> GradientFn:
    """Score-function estimate of the gradient of an expectation, for any sampler.

        grad E[f_theta(x)] = E[(f_theta(x) - b) grad log p_theta(x) + grad f_theta(x)]

    Unbiased with the baselines `none` and `leave_one_out`, for any integrable f, smooth or not;
    `batch_mean` shrinks the score term by (N-1)/N and `standardise` estimates nothing.

    Args:
      sample: `(key, params) -> x`, one sample; what it returns is held constant.
      log_prob: `(params, x) -> []`.
      objective: `(params, x) -> []`; its direct dependence on the parameters is differentiated
        too, which the evidence lower bound needs.
      num_samples: samples per gradient, N.
      baseline: a name in `baselines.BATCH`, a function from the `[N]` objectives to `[N]`
        baselines, or None for none.

    Returns:
      A `GradientFn`; its metrics are the mean `objective` and its standard deviation over
      samples, `objective_std`.

    Raises:
      ValueError: `num_samples` < 1, < 2 with `leave_one_out`, an unknown baseline, or, when traced,
        an objective or a log-density that is no scalar.

    Source: Mohamed et al. 2020, "Monte Carlo Gradient Estimation in Machine Learning", section 4;
    Ranganath et al. 2014 for variational inference.
    """
    checks.at_least("num_samples", num_samples, 1)
    relative = _relative(baseline, num_samples)

    def gradient_fn(key, params):
        keys = jax.random.split(key, num_samples)
        x = jax.lax.stop_gradient(jax.vmap(sample, (0, None))(keys, params))

        def loss(params):
            value = jax.vmap(objective, (None, 0))(params, x)
            value = value.astype(jnp.result_type(value, 0.0))  # of indicators and counts too
            log_probs = jax.vmap(log_prob, (None, 0))(params, x)
            for name, of_sample in {"objective": value, "log_prob": log_probs}.items():
                if of_sample.shape != (num_samples,):
                    raise ValueError(
                        f"{name} of a sample has shape {of_sample.shape[1:]}, not (); sum over it, "
                        "as distributions.independent does"
                    )
            return surrogate(log_probs, relative(value)) + jnp.mean(value), value

        gradient, value = jax.grad(loss, has_aux=True)(params)
        return gradient, {"objective": jnp.mean(value), "objective_std": jnp.std(value)}

    return gradient_fn


def check_returned(returned: Any) -> None:
    """Raises `ValueError` unless a `GradientFn` returned a gradient and metrics."""
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    if not pair or not isinstance(returned[1], Mapping):
        raise ValueError("gradient_fn must return (gradient, metrics); metrics may be {}")


def _relative(
    baseline: str | Callable[[jax.Array], jax.Array] | None, num_samples: int
) -> Callable[[jax.Array], jax.Array]:
    """Objectives `[N]` less their baseline."""
    if baseline is None:
        return lambda x: x
    if callable(baseline):
        return lambda x: x - baseline(x)
    checks.choice("baseline", baseline, baselines.BATCH)
    if baseline in baselines.COUPLED:
        checks.at_least("num_samples", num_samples, 2, f"baseline {baseline!r} needs others")
    if baseline == "standardise":
        return baselines.standardised  # subtraction would lose its digits in those of x
    named = baselines.BATCH[baseline]
    return lambda x: x - named(x)
