"""The oracle: exact values, gradients and estimator moments of finite MDPs.

Use it in float64, and inside `jax.jit` where it is called often: outside, every call compiles anew.
"""

from pgjax.environments import MDP
from pgjax.exact.decomposition import Decomposition, variance_decomposition
from pgjax.exact.gradients import (
    all_action_gradient,
    average_reward_gradient,
    exact_gradient,
    fisher,
    hessian,
    natural_gradient,
)
from pgjax.exact.moments import Moments, all_action_moments, exact_moments
from pgjax.exact.objectives import (
    Values,
    action_values,
    average_reward,
    differential_values,
    expected_return,
    stationary,
    values,
    visits,
)
from pgjax.exact.optimal import optimal_baseline

__all__ = [
    "Decomposition",
    "MDP",
    "Moments",
    "Values",
    "action_values",
    "all_action_gradient",
    "all_action_moments",
    "average_reward",
    "average_reward_gradient",
    "differential_values",
    "exact_gradient",
    "exact_moments",
    "expected_return",
    "fisher",
    "hessian",
    "natural_gradient",
    "optimal_baseline",
    "stationary",
    "values",
    "variance_decomposition",
    "visits",
]
