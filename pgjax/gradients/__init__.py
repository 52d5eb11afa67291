"""Gradients of policies: from trajectories to a gradient, and as a `GradientFn` to train with.

What the constructors return has no derivative in reverse mode: how many turns its loops take
depends on how many samples are live.
"""

from pgjax.gradients.all_action import all_action_gradient
from pgjax.gradients.average_reward import average_reward_gradient, gpomdp
from pgjax.gradients.natural import natural_gradient
from pgjax.gradients.norms import squared_norms
from pgjax.gradients.policy import policy_gradient, trajectory_gradient
from pgjax.gradients.segments import segment_gradient
from pgjax.gradients.value import make_steps, values

__all__ = [
    "all_action_gradient",
    "average_reward_gradient",
    "gpomdp",
    "make_steps",
    "natural_gradient",
    "policy_gradient",
    "segment_gradient",
    "squared_norms",
    "trajectory_gradient",
    "values",
]
