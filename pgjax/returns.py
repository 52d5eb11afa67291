"""Returns and advantages: pure kernels on scalar series `[..., T]`, time last.

Index t is one step: `reward[t]` follows the action taken at t, `value[t]` is the value of the
observation that action was chosen at, and `next_value[t]` the value of the *true* next observation,
never of the one after an automatic reset. The ends of episodes enter in two ways only:

- `discount[t]` is 0 where the episode terminated: the future is worth zero.
- `boundary[t]` is true where row position t + 1 belongs to another episode, however this one ended:
  step t still bootstraps from `discount[t] * next_value[t]`, but nothing flows back from t + 1.

The end of the array is always a boundary. The kernels hold nothing constant: stopping gradients is
the caller's business.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pgjax import checks

BLOCK = 16
"""Steps of a series that are summed at a time: a cache line of them."""


def discounted_sum(x: jax.Array, rate: ArrayLike) -> jax.Array:
    """Sums a series backwards in time at a given rate.

        y_t = x_t + rate_t y_{t+1},    y_T = 0

    With the discount as the rate and rewards as x this is the reward-to-go (Sutton & Barto 2018,
    eq. 3.9). It runs the recursion itself, because a cumulative sum divided by powers of the rate
    overflows on long horizons, and compensates for rounding (Kahan 1965), so that the error does
    not grow with the horizon. What precedes an entry that is not finite may be NaN.

    Args:
        x: `[..., T]` what to sum.
        rate: scalar or `[..., T]`; `rate[t]` carries y from t + 1 to t.

    Returns:
        `[..., T]` the sums y.
    """
    x, rate = _align([x], [rate])
    # In place and some steps at a time: a scan over all would hold copies of them with time first.
    num_blocks, rest = divmod(x.shape[-1], BLOCK)
    zero = jnp.zeros_like(x[..., 0])
    loop = _sum_block(-1, (x, rate, (zero, zero)), rest)
    if num_blocks:
        loop = jax.lax.fori_loop(0, num_blocks, _sum_block, loop)
    return loop[0]


def td_residual(
    reward: jax.Array, value: jax.Array, next_value: jax.Array, discount: ArrayLike
) -> jax.Array:
    """Computes temporal-difference residuals.

        delta_t = r_t + discount_t v'_t - v_t

    With the true value function its mean is the advantage of the action taken; with any other it is
    biased. Schulman et al. 2016, section 3.

    Args:
        reward: `[..., T]` reward after step t.
        value: `[..., T]` value v_t of the observation at t.
        next_value: `[..., T]` value v'_t of the true next observation.
        discount: scalar or `[..., T]`, 0 where terminated.

    Returns:
        `[..., T]` the residuals.
    """
    reward, value, next_value, discount = _align([reward, value, next_value], [discount])
    return reward + discount * next_value - value


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    discount: ArrayLike,
    lambda_: ArrayLike,
    boundary: jax.Array | None = None,
) -> jax.Array:
    """Computes generalised advantage estimates.

        A_t = delta_t + discount_t lambda_t A_{t+1},    A_{t+1} = 0 at a boundary

    with delta the TD residual, which is what remains at lambda = 0; at lambda = 1 it is the return,
    bootstrapped where the trace is cut, minus the value. Biased unless the value function is exact,
    or lambda = 1 and no end bootstraps. Schulman et al. 2016, eq. 16.

    Args:
        reward: `[..., T]` reward after step t.
        value: `[..., T]` value of the observation at t.
        next_value: `[..., T]` value of the true next observation.
        discount: scalar or `[..., T]`, 0 where terminated.
        lambda_: scalar or `[..., T]`, in [0, 1].
        boundary: `[..., T]` bool or 0/1, whether the trace is cut after step t; None for nowhere.

    Returns:
        `[..., T]` the advantages.
    """
    reward, discount, lambda_ = _align([reward], [discount, lambda_])
    residual = td_residual(reward, value, next_value, discount)
    return discounted_sum(residual, discount * lambda_ * _continues(boundary, reward))


def lambda_return(
    reward: jax.Array,
    next_value: jax.Array,
    discount: ArrayLike,
    lambda_: ArrayLike,
    boundary: jax.Array | None = None,
) -> jax.Array:
    """Computes lambda-returns: the geometric mixture of all n-step returns.

        G_t = r_t + discount_t [(1 - lambda_t) v'_t + lambda_t G_{t+1}],
        G_{t+1} = v'_t at a boundary

    Biased as a return unless the values are exact, or lambda = 1 and no end bootstraps.
    Sutton & Barto 2018, eq. 12.2, in the recursive form of eq. 12.18.

    Args:
        reward: `[..., T]` reward after step t.
        next_value: `[..., T]` value v'_t of the true next observation.
        discount: scalar or `[..., T]`, 0 where terminated.
        lambda_: scalar or `[..., T]`, in [0, 1].
        boundary: `[..., T]` bool or 0/1, whether the trace is cut after step t; None for nowhere.

    Returns:
        `[..., T]` the returns.
    """
    reward, next_value, discount, lambda_ = _align([reward, next_value], [discount, lambda_])
    lambda_ = lambda_ * _continues(boundary, reward)
    return discounted_sum(reward + discount * (1 - lambda_) * next_value, discount * lambda_)


def n_step_return(
    reward: jax.Array,
    next_value: jax.Array,
    discount: ArrayLike,
    n: ArrayLike,
    boundary: jax.Array | None = None,
) -> jax.Array:
    """Computes n-step returns.

        y^(1)_t   = r_t + discount_t v'_t
        y^(k+1)_t = r_t + discount_t y^(k)_{t+1},    y^(k)_{t+1} = v'_t at a boundary

    Where fewer than n rewards are left before a boundary, all of them are used. Biased as a return
    unless the values are exact, or n reaches an end that does not bootstrap.
    Sutton & Barto 2018, eq. 7.1.

    Args:
        reward: `[..., T]` reward after step t.
        next_value: `[..., T]` value v'_t of the true next observation.
        discount: scalar or `[..., T]`, 0 where terminated.
        n: scalar, a whole number >= 1 of any dtype. It may be traced, hence swept by vmap; only a
            reverse-mode gradient through the return, with no stop_gradient, needs it concrete.
        boundary: `[..., T]` bool or 0/1, whether the trace is cut after step t; None for nowhere.

    Returns:
        `[..., T]` the returns y^(n).

    Raises:
        ValueError: a concrete n is below 1 or not a whole number.
    """
    reward, next_value, discount = _align([reward, next_value], [discount])
    continues = _continues(boundary, reward)

    def extend(_, y):
        following = jnp.roll(y, -1, axis=-1)  # The last step, where this wraps, never continues.
        return reward + discount * jnp.where(continues, following, next_value)

    num_steps = _num_steps(n, limit=reward.shape[-1])
    return jax.lax.fori_loop(1, num_steps, extend, reward + discount * next_value)


def vtrace(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    discount: ArrayLike,
    rho: jax.Array,
    boundary: jax.Array | None = None,
    *,
    lambda_: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
) -> jax.Array:
    """Computes V-trace targets: off-policy lambda-returns with clipped importance ratios.

        v_s = V_s + min(clip_rho, rho_s) delta_s + discount_s c_s (v_{s+1} - V_{s+1})
        c_s = lambda_s min(clip_c, rho_s),    no last term at a boundary

    Their fixed point is the value of the target policy where clip_rho never binds, else of a policy
    between it and the one that acted; clip_c only trades variance for speed. On policy they are the
    lambda-returns. Espeholt et al. 2018, eq. 1 and remarks 1 and 2.

    Args:
        reward: `[..., T]` reward after step t.
        value: `[..., T]` value V of the observation at t.
        next_value: `[..., T]` value of the true next observation.
        discount: scalar or `[..., T]`, 0 where terminated.
        rho: `[..., T]` importance ratios pi(a_t|s_t) / mu(a_t|s_t), mu being the policy that acted.
        boundary: `[..., T]` bool or 0/1, whether the trace is cut after step t; None for nowhere.
        lambda_: scalar or `[..., T]`, in [0, 1].
        clip_rho: scalar, where the ratio of the residual is clipped.
        clip_c: scalar, where the ratio of the trace is clipped; the paper takes clip_rho >= clip_c.

    Returns:
        `[..., T]` the targets v.
    """
    reward, value, rho, discount, lambda_ = _align([reward, value, rho], [discount, lambda_])
    residual = jnp.minimum(clip_rho, rho) * td_residual(reward, value, next_value, discount)
    trace = lambda_ * jnp.minimum(clip_c, rho) * _continues(boundary, reward)
    return value + discounted_sum(residual, discount * trace)


def _sum_block(number, loop, num_steps=BLOCK):
    """Steps before those that are summed; a closure would be compiled anew on every eager call."""
    y, rate, following = loop
    start = y.shape[-1] // BLOCK * BLOCK - (number + 1) * BLOCK
    cut = lambda x: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, start, num_steps, axis=-1), -1, 0)
    following, sums = jax.lax.scan(_add_following, following, (cut(y), cut(rate)), reverse=True)
    y = jax.lax.dynamic_update_slice_in_dim(y, jnp.moveaxis(sums, 0, -1), start, axis=-1)
    return y, rate, following


def _add_following(following, x_and_rate):
    """A step back; what rounding adds to a sum, which may be millions of times x, is taken off."""
    (total, surplus), (x, rate) = following, x_and_rate
    near = rate > 0.5  # then rate - 1 is exact, and so little is taken from the total
    base = jnp.where(near, total, 0)
    change = x + jnp.where(near, rate - 1, rate) * total - rate * surplus
    y = base + change
    return (y, (y - base) - change), y


def _align(series: list[jax.Array], rates: list[ArrayLike]) -> list[jax.Array]:
    """Broadcasts rates to the one shape of the series, and puts all in one floating dtype."""
    chex.assert_equal_shape(series)
    shape = jnp.shape(series[0])
    dtype = jnp.result_type(*series, *rates, float)
    return [jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (*series, *rates)]


def _continues(boundary: jax.Array | None, like: jax.Array) -> jax.Array:
    """Tells where step t + 1 goes on with step t: neither at a boundary nor at the end."""
    continues = jnp.ones_like(like, bool).at[..., -1].set(False)
    if boundary is None:
        return continues
    chex.assert_equal_shape([like, boundary])
    return continues & ~jnp.asarray(boundary, bool)


def _num_steps(n: Any, limit: int) -> int | jax.Array:
    """Returns n as an integer of at most `limit`: a static loop bound if n is concrete."""
    if checks.is_traced(n):
        return jnp.minimum(jnp.round(n), limit).astype(jnp.int32)
    n = checks.as_whole(n)
    checks.at_least("n", n, 1)
    return min(n, limit)
