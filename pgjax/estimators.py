"""An estimator is its weights: grad J = E[sum_t Psi_t grad log pi(a_t | s_t)].

Psi is a *form* (what return the action is credited with), a *baseline* (what is subtracted from
it) and a *state weighting* (how visits count), chosen independently: Schulman et al. 2016, eq. 1.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.typing import ArrayLike

from pgjax import baselines, checks, returns


class Estimator(NamedTuple):
    """Names of the three choices; make it with `estimator`, which checks them."""

    form: str
    baseline: str
    state_weighting: str


class Hyper(NamedTuple):
    """Hyperparameters of the estimators; every leaf is a float and can be vmapped."""

    discount: Any = 0.99  # gamma
    lambda_: Any = 0.95  # decay of `gae`
    n: Any = 5.0  # steps of `n_step`
    constant: Any = 0.0  # the `constant` baseline
    entropy_cost: Any = 0.0  # weight of the entropy bonus


class Steps(NamedTuple):
    """All that Psi may see, each `[N, T]`."""

    reward: jax.Array  # [N, T]
    value: jax.Array  # [N, T] V(s_t)
    next_value: jax.Array  # [N, T] V of the true next observation
    terminated: jax.Array  # [N, T] the future is worth zero
    boundary: jax.Array  # [N, T] the trace is cut after this step
    mask: jax.Array  # [N, T] one while the row is live


def total_return(steps: Steps, hyper: Hyper) -> jax.Array:
    """Return of the whole episode, the same at every step: R = sum_k gamma^k r_k. Unbiased.

    Source: Williams 1992.
    """
    time = jnp.where(_starts(steps.boundary, steps.mask), jnp.arange(steps.mask.shape[1]), 0)
    return jnp.take_along_axis(reward_to_go(steps, hyper), jax.lax.cummax(time, axis=1), axis=1)


def reward_to_go(steps: Steps, hyper: Hyper) -> jax.Array:
    """Return from the step on: G_t = sum_{k>=t} gamma^(k-t) r_k. Unbiased.

    Source: Baxter & Bartlett 2001; Sutton & Barto 2018, section 13.3.
    """
    return returns.discounted_sum(steps.reward, hyper.discount * (1 - steps.boundary))


def td_residual(steps: Steps, hyper: Hyper) -> jax.Array:
    """One-step advantage: delta_t = r_t + gamma V(s_{t+1}) - V(s_t). Relative to the value.

    Biased unless the values are exact.

    Source: Sutton & Barto 2018, section 13.5.
    """
    return returns.td_residual(
        steps.reward, steps.value, steps.next_value, _bootstrap_discount(steps, hyper)
    )


def n_step(steps: Steps, hyper: Hyper) -> jax.Array:
    """Return of n steps, then the value: sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n}).

    Biased unless the values are exact.

    Source: Sutton & Barto 2018, eq. 7.1.
    """
    discount = _bootstrap_discount(steps, hyper)
    return returns.n_step_return(steps.reward, steps.next_value, discount, hyper.n, steps.boundary)


def gae(steps: Steps, hyper: Hyper) -> jax.Array:
    """Generalised advantage: sum_l (gamma lambda)^l delta_{t+l}. Relative to the value.

    Biased unless the values are exact, or lambda = 1 and no row is truncated.

    Source: Schulman et al. 2016, eq. 16.
    """
    return returns.gae(
        steps.reward,
        steps.value,
        steps.next_value,
        _bootstrap_discount(steps, hyper),
        hyper.lambda_,
        steps.boundary,
    )


FORMS: dict[str, Callable[[Steps, Hyper], jax.Array]] = {
    "total_return": total_return,
    "reward_to_go": reward_to_go,
    "td_residual": td_residual,
    "n_step": n_step,
    "gae": gae,
}
"""name -> `(Steps, Hyper) -> [N, T]`; one that reads V(s_t) is relative to it, an advantage."""

UNBIASED_FORMS = {"total_return", "reward_to_go"}
"""Forms that estimate the return whatever values there are."""


def none(form: jax.Array, steps: Steps) -> jax.Array:
    """Nothing is subtracted. Unbiased."""
    return baselines.zero(form)


def constant(form: jax.Array, steps: Steps, number: ArrayLike = 0.0) -> jax.Array:
    """A number given beforehand, `Hyper.constant`. Unbiased.

    Source: Williams 1992.
    """
    return jnp.full_like(form, number)


def batch_mean(form: jax.Array, steps: Steps) -> jax.Array:
    """Mean over the batch, the row itself included. Biased: shrinks the gradient by (N-1)/N."""
    return baselines.batch_mean(form)


def leave_one_out(form: jax.Array, steps: Steps) -> jax.Array:
    """Mean over the other rows at the same step. Unbiased.

    Rows that have ended count as zero to go, and with all of it where the form is a total return.

    Source: Kool et al. 2019; Mnih & Rezende 2016.
    """
    return baselines.leave_one_out(form)


def leave_one_out_live(form: jax.Array, steps: Steps) -> jax.Array:
    """Mean over the other rows still live at the same step; zero if there are none. Unbiased."""
    return baselines.leave_one_out_live(form, steps.mask)


def time_mean(form: jax.Array, steps: Steps) -> jax.Array:
    """Mean over all live steps of the other rows. Unbiased."""
    return baselines.time_mean(form, steps.mask)


def value(form: jax.Array, steps: Steps) -> jax.Array:
    """A learned V(s_t), fitted on earlier batches. Unbiased.

    Source: Sutton et al. 2000.
    """
    return steps.value


def standardise(form: jax.Array, steps: Steps) -> jax.Array:
    """Leaves (form - mean) / std over the live steps of the batch. Biased, common practice."""
    return baselines.standardise(form, steps.mask)


BASELINES: dict[str, Callable[..., jax.Array]] = {
    "none": none,
    "constant": constant,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "leave_one_out_live": leave_one_out_live,
    "time_mean": time_mean,
    "value": value,
    "standardise": standardise,
}
"""name -> `([N, T] form, Steps) -> [N, T]`, what is subtracted from the form."""

UNBIASED_BASELINES = {
    "none",
    "constant",
    "leave_one_out",
    "leave_one_out_live",
    "time_mean",
    "value",
}
"""Baselines that do not depend on the row they are subtracted from."""

BIAS = {
    "batch_mean": "the baseline includes the row itself: the gradient shrinks by (N-1)/N",
    "standardise": "division by the batch's own spread rescales and rotates the gradient",
}
"""What the other baselines do to the gradient."""

STATE_WEIGHTINGS = ("discounted", "uniform")
"""`discounted` multiplies step t by gamma^t, `uniform` leaves it out."""


def estimator(
    form: str = "reward_to_go",
    baseline: str = "leave_one_out",
    state_weighting: str = "discounted",
) -> Estimator:
    """Names an estimator.

        Psi_t = w_t (form_t - baseline_t),   w_t = gamma^t (discounted) or 1 (uniform)

    The total return is discounted from the start of the episode already, so there w_t = 1 under
    either state weighting.

    Raises:
      ValueError: an unknown name, or a pair that makes no sense.
    """
    chosen = Estimator(form, baseline, state_weighting)
    check(chosen)
    return chosen


def needs_value(estimator: Estimator) -> bool:
    """Whether the estimator reads a value function."""
    form, baseline = FORMS[estimator.form], BASELINES[estimator.baseline]
    read = _read_by_form(form) | _read_by_baseline(baseline)
    return not read.isdisjoint({"value", "next_value"})


def bootstraps(form: str) -> bool:
    """Whether a form reads the values of next observations."""
    return "next_value" in _read_by_form(FORMS[form])


def is_advantage(form: str) -> bool:
    """Whether a form is relative to V(s_t) already: the `value` baseline adds nothing to it."""
    return "value" in _read_by_form(FORMS[form])


def is_unbiased(estimator: Estimator, hyper: Hyper) -> tuple[bool, str]:
    """Whether the estimator is unbiased for grad J_gamma whatever values it is given.

    J_gamma is the expected discounted return within the horizon.

    Returns:
      The verdict, and the reason or the condition under which it holds.
    """
    if float(hyper.entropy_cost) != 0:
        return False, "the entropy bonus is ascended besides the return"
    if estimator.baseline not in UNBIASED_BASELINES:
        return False, BIAS.get(estimator.baseline, "the baseline is not known to be unbiased")
    if estimator.form != "total_return" and estimator.state_weighting == "uniform":
        if float(hyper.discount) != 1:
            return False, "without gamma^t it is the gradient of no function unless gamma = 1"
    if estimator.form == "gae" and float(hyper.lambda_) == 1:
        return True, (
            "if the values do not depend on the batch they are used on, and no row is truncated or "
            "truncated rows bootstrap from exact values"
        )
    if estimator.form not in UNBIASED_FORMS:
        if bootstraps(estimator.form):
            return False, "unless the values are exact for the policy, the time and the horizon"
        return False, "the form is not known to be unbiased"
    if estimator.baseline == "value":
        return True, "if the values do not depend on the batch they are used on"
    return True, "always"


def psi(estimator: Estimator, steps: Steps, hyper: Hyper) -> jax.Array:
    """The weights of an estimator.

        Psi_t = w_t (form_t - baseline_t) m_t

    Args:
      estimator: the three choices.
      steps: what they are computed from, each `[N, T]`; entries where `mask` is zero are ignored.
      hyper: discount, lambda and the like.

    Returns:
      `[N, T]` weights, zero where `mask` is zero.

    Raises:
      ValueError: what `estimator` refuses, a single row with a baseline that needs others, or a
        form or baseline that gives another shape.
    """
    check(estimator)
    chex.assert_equal_shape(steps)
    chex.assert_rank(steps.reward, 2)
    check_rows(estimator, steps.reward.shape[0])
    steps = _cleared(steps)
    form = FORMS[estimator.form](steps, hyper)
    _check_shape("form", estimator.form, form, steps)
    weight = steps.mask * _relative(estimator, form, steps, hyper)
    if estimator.form == "total_return":
        return weight
    return weight * state_weights(estimator.state_weighting, steps.boundary, steps.mask, hyper)


def state_weights(
    state_weighting: str, boundary: jax.Array, mask: jax.Array, hyper: Hyper
) -> jax.Array:
    """How much the visit at each step counts, `[N, T]`: gamma^t, or one; zero where `mask` is.

        w_t = 1 where an episode starts,    w_t = gamma w_{t-1} after that

    Without gamma^t the gradient is that of no function, unless gamma = 1.

    Source: Sutton & Barto 2018, section 13.3; Nota & Thomas 2020.
    """
    ones = jnp.ones(mask.shape, jnp.result_type(mask, float))
    if state_weighting == "uniform":
        return jnp.where(mask > 0, ones, 0)

    def follow(weight, starts):
        weight = jnp.where(starts, 1, hyper.discount * weight).astype(weight.dtype)
        return weight, weight

    weights = jax.lax.scan(follow, ones[:, 0], _starts(boundary, mask).T)[1].T
    return jnp.where(mask > 0, weights, 0)


def time_weights(state_weighting: str, hyper: Hyper, horizon: int) -> jax.Array:
    """How much step t of an episode counts, `[T]`: gamma^t, or one."""
    rate = hyper.discount if state_weighting == "discounted" else 1.0
    return jnp.asarray(rate, jnp.result_type(float)) ** jnp.arange(horizon)


def value_target(estimator: Estimator, steps: Steps, hyper: Hyper) -> jax.Array:
    """What a value function that goes with the estimator is fitted to, `[N, T]`.

    The return the form credits: r_t + gamma V', the n-step return or the lambda-return; G_t for
    Monte Carlo forms, also for the total return, which is no function of the state.
    """
    steps = _cleared(steps)
    name = "reward_to_go" if estimator.form == "total_return" else estimator.form
    form = FORMS[name](steps, hyper)
    return form + steps.value if is_advantage(name) else form


def check(estimator: Estimator) -> None:
    """Raises `ValueError` for an unknown name, or a pair that makes no sense."""
    if not isinstance(estimator, Estimator):
        raise ValueError(f"estimator={estimator!r} must be made by estimators.estimator(...)")
    checks.choice("form", estimator.form, FORMS)
    checks.choice("baseline", estimator.baseline, BASELINES)
    checks.choice("state_weighting", estimator.state_weighting, STATE_WEIGHTINGS)
    if estimator.form == "total_return" and estimator.baseline == "value":
        raise ValueError(
            "baseline='value' does not go with form='total_return': a value predicts the return "
            "from a step on, the total return counts from the start; use form='reward_to_go'"
        )


def check_rows(estimator: Estimator, num_rows: int, argument: str = "num_episodes") -> None:
    """Raises `ValueError` for a single row with a baseline that looks at others."""
    if estimator.baseline in baselines.COUPLED:
        others = argument.removeprefix("num_")
        reason = f"baseline {estimator.baseline!r} is computed from other {others}"
        checks.at_least(argument, num_rows, 2, reason)


def check_bootstraps(estimator: Estimator) -> None:
    """Raises `ValueError` for a form that cannot see beyond the end of a window."""
    checks.choice("form", estimator.form, FORMS)
    if not bootstraps(estimator.form):
        allowed = ", ".join(filter(bootstraps, FORMS))
        raise ValueError(
            f"form={estimator.form!r} takes the rest of a window for the return; choose a form "
            f"that bootstraps: {allowed}"
        )


def check_hyper(hyper: Hyper) -> None:
    """Raises `ValueError` for a discount or lambda outside [0, 1], n < 1 or a number not finite."""
    checks.within("discount", hyper.discount, 0, 1)
    checks.within("lambda", hyper.lambda_, 0, 1)
    checks.within("n", hyper.n, 1, float("inf"))
    if not checks.is_traced(hyper.n):
        for n in np.ravel(hyper.n).tolist():
            checks.at_least("n", checks.as_whole(n), 1)
    checks.within("constant", hyper.constant, -float("inf"), float("inf"))
    checks.within("entropy_cost", hyper.entropy_cost, -float("inf"), float("inf"))


def check_no_bonus(hyper: Hyper, what: str) -> None:
    """Raises `ValueError` for an entropy bonus, of which `what` know nothing."""
    if not checks.is_traced(hyper.entropy_cost) and float(hyper.entropy_cost) != 0:
        raise ValueError(
            f"entropy_cost={hyper.entropy_cost!r} must be 0: {what} are those of the return's "
            "gradient"
        )


def _relative(estimator, form, steps, hyper):
    """The form less its baseline."""
    if estimator.baseline == "standardise":
        # By subtraction, its digits would be lost in those of the form.
        return baselines.standardised(form, steps.mask)
    if estimator.baseline == "value" and is_advantage(estimator.form):
        return form
    if estimator.baseline == "constant":
        return form - constant(form, steps, hyper.constant)
    baseline = BASELINES[estimator.baseline](form, steps)
    _check_shape("baseline", estimator.baseline, baseline, steps)
    return form - baseline


def _check_shape(argument, name, x, steps):
    if x.shape != steps.reward.shape:
        raise ValueError(
            f"{argument}={name!r} gives an array of shape {x.shape} for steps of shape "
            f"{steps.reward.shape}"
        )


@functools.cache
def _read_by_form(form: Callable[..., jax.Array]) -> frozenset[str]:
    return _read(lambda steps: form(steps, Hyper()))


@functools.cache
def _read_by_baseline(baseline: Callable[..., jax.Array]) -> frozenset[str]:
    return _read(lambda steps: baseline(steps.reward, steps))


def _read(function: Callable[[Steps], jax.Array]) -> frozenset[str]:
    """Names of the steps that a function computes with, found by tracing it."""
    series = [jax.ShapeDtypeStruct((2, 2), jnp.result_type(float))] * len(Steps._fields)
    program = jax.make_jaxpr(lambda *series: function(Steps(*series)))(*series).jaxpr
    # Also what is handed to a function within, as to a jitted one, counts only if that uses it.
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return frozenset(itertools.compress(Steps._fields, used))


def _cleared(steps: Steps) -> Steps:
    """Floats, zero wherever the row is not live (multiplying would let NaN through).

    There is no value after a natural end, and a row's last live step is a boundary, marked or not.
    """
    dtype = jnp.result_type(steps.reward, float)
    live = steps.mask > 0
    ends = live & ~jnp.pad(live[:, 1:], ((0, 0), (0, 1)))
    steps = steps._replace(
        boundary=(steps.boundary > 0) | ends,
        next_value=jnp.where(steps.terminated > 0, 0, steps.next_value),
    )
    return jax.tree.map(lambda x: jnp.where(live, x, 0).astype(dtype), steps)


def _bootstrap_discount(steps: Steps, hyper: Hyper) -> jax.Array:
    """gamma, or zero after a natural end; where both end flags are set, terminated wins."""
    return hyper.discount * (1 - steps.terminated)


def _starts(boundary: jax.Array, mask: jax.Array) -> jax.Array:
    """Whether an episode starts at a step, `[N, T]` bool; none does after the last live one."""
    follows = (boundary[:, :-1] > 0) & (mask[:, 1:] > 0)
    return jnp.pad(follows, ((0, 0), (1, 0)), constant_values=True)
