"""Joint moments of the return and the summed score of whole episodes, for the total return."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pgjax.estimators import Hyper
from pgjax.exact.model import Model


class Joint(NamedTuple):
    """E[R^i], E[R^i U] and E[R^i U o U] for i = 0, 1, 2; U is the sum of an episode's scores."""

    power: jax.Array  # [3]
    score: jax.Array  # [3, D]
    square: jax.Array  # [3, D]


def joint(tables: Model, score: jax.Array, hyper: Hyper, horizon: int) -> Joint:
    """Joint moments of an episode, from those of what follows its first step.

        R^i = sum_j C(i, j) r^(i-j) gamma^j R'^j,   U = u + U'

    Args:
      tables: the MDP under the policy.
      score: `[S, A, D]`.
      hyper: only the discount matters.
      horizon: maximum number of steps of an episode, T.
    """
    factor = lambda i, j: math.comb(i, j) * tables.reward ** max(i - j, 0) * hyper.discount**j
    expand = jnp.stack([jnp.stack([factor(i, j) for j in range(3)]) for i in range(3)])
    expand *= tables.transition[None, None]  # [3, 3, S, A, S]
    expand_state = jnp.einsum("sa,ijsak->ijsk", tables.probs, expand)

    def back(following, _):
        power, first, second = following  # [3, S], [3, S, D], [3, S, D]
        credit = jnp.einsum("ijsak,jk->isa", expand, power)[..., None] * score[None]
        # The scores to come have mean zero, so all terms with a power of zero vanish.
        ahead = jnp.einsum("ijsak,jkd->isad", expand[1:, 1:], first[1:])
        ahead = jnp.pad(ahead, ((1, 0), (0, 0), (0, 0), (0, 0)))
        second = jnp.einsum("ijsk,jkd->isd", expand_state, second)
        second += jnp.einsum("sa,sad,isad->isd", tables.probs, score, credit + 2 * ahead)
        first = jnp.einsum("sa,isad->isd", tables.probs, credit + ahead)
        power = jnp.einsum("ijsk,jk->is", expand_state, power)
        # An episode that has ended returns zero, and zero to the power zero is one.
        return (power.at[0].set(1), first, second), None

    num_states, _, num_params = score.shape
    blank = jnp.zeros((3, num_states, num_params), score.dtype)
    end = (blank[..., 0].at[0].set(1), blank, blank)
    (power, first, second), _ = jax.lax.scan(back, end, length=horizon)
    start = lambda x: jnp.tensordot(tables.initial, x, axes=(0, 1))
    return Joint(start(power), start(first), start(second))
