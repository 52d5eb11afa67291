"""What an action is credited with, as a linear recursion over time, and its exact moments.

Every form but the total return is y_t = c_t(s, a, s') + K y_{t+1}: with one component, or with n
for the n-step return, whose component k is the return of k steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pgjax.estimators import Hyper
from pgjax.exact.model import Model

RECURSIVE = frozenset({"reward_to_go", "td_residual", "n_step", "gae"})
"""Forms that `recursion` knows."""


class Recursion(NamedTuple):
    """A form as y_t = c_t + K y_{t+1}, whose last component is what an action is credited with."""

    own: Callable[[jax.Array, jax.Array], jax.Array]  # (V_t, V_{t+1}) [S] -> c_t [M, S, A, S]
    carry: jax.Array  # [M, M] K
    end: jax.Array  # [M, S] y_T


class Credit(NamedTuple):
    """First and second moments of y_t given state and action."""

    mean: jax.Array  # [S, A, M]
    square: jax.Array  # [S, A, M, M]


def recursion(tables: Model, form: str, hyper: Hyper, given: jax.Array) -> Recursion:
    """The recursion of a form in `RECURSIVE`; `given` `[T + 1, S]` are its values."""
    shape = tables.reward.shape
    discount = jnp.asarray(hyper.discount, given.dtype)
    zeros = jnp.zeros((1, len(tables.live)), given.dtype)

    def residual(value, next_value):
        future = discount * jnp.broadcast_to((tables.live * next_value)[None, None], shape)
        return (tables.reward + future - value[:, None, None])[None]

    if form == "reward_to_go":
        return Recursion(lambda *_: tables.reward[None], discount[None, None], zeros)
    if form in ("td_residual", "gae"):
        decay = discount * hyper.lambda_ if form == "gae" else jnp.zeros_like(discount)
        return Recursion(residual, decay[None, None], zeros)
    # Component k is the return of k steps; none is longer than the horizon.
    num = int(min(hyper.n, len(given) - 1))

    def n_step(value, next_value):
        rest = jnp.broadcast_to(tables.reward[None], (num - 1, *shape))
        return jnp.concatenate([residual(jnp.zeros_like(value), next_value), rest])

    end = jnp.broadcast_to((tables.live * given[-1])[None], (num, len(tables.live)))
    return Recursion(n_step, discount * jnp.eye(num, k=-1, dtype=given.dtype), end)


def moments(tables: Model, form: str, hyper: Hyper, given: jax.Array) -> Credit:
    """Moments of the form at every time, `[T, ...]`, given state and action."""
    rec = recursion(tables, form, hyper, given)
    weights = tables.transition

    def back(following, value):
        mean, square = following  # [M, S], [M, M, S]
        own = rec.own(*value)
        ahead = rec.carry @ mean
        carried = jnp.einsum("mi,ijk,nj->mnk", rec.carry, square, rec.carry)
        cross = jnp.einsum("sak,msak,nk->samn", weights, own, ahead)
        credit = Credit(
            mean=jnp.einsum("sak,msak->sam", weights, own) + tables.expect_next(ahead.T),
            square=jnp.einsum("sak,msak,nsak->samn", weights, own, own)
            + cross
            + jnp.swapaxes(cross, -1, -2)
            + tables.expect_next(jnp.moveaxis(carried, -1, 0)),
        )
        return _given_state(tables, credit), credit

    end = (rec.end, rec.end[:, None] * rec.end[None])
    return jax.lax.scan(back, end, (given[:-1], given[1:]), reverse=True)[1]


def _given_state(tables, credit):
    """Moments of y_t given the state alone, `[M, S]` and `[M, M, S]`."""
    mean = jnp.einsum("sa,sam->ms", tables.probs, credit.mean)
    return mean, jnp.einsum("sa,samn->mns", tables.probs, credit.square)
