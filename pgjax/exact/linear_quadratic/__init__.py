"""The oracle of linear-quadratic-Gaussian systems. Use it in float64.

For policies whose action is normal, with a mean affine in the state and a scale independent of it.
"""

from pgjax.environments import LQG
from pgjax.exact.decomposition import Decomposition
from pgjax.exact.linear_quadratic.forms import Quadratic
from pgjax.exact.linear_quadratic.objectives import (
    Values,
    average_reward,
    average_reward_gradient,
    exact_gradient,
    expected_return,
    values,
)
from pgjax.exact.linear_quadratic.variance import BASELINES, variance_decomposition

__all__ = [
    "BASELINES",
    "Decomposition",
    "LQG",
    "Quadratic",
    "Values",
    "average_reward",
    "average_reward_gradient",
    "exact_gradient",
    "expected_return",
    "values",
    "variance_decomposition",
]
