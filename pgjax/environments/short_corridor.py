"""The short corridor with switched actions: Sutton & Barto 2018, Example 13.1."""

import numpy as np

from pgjax.environments.tabular import MDP, TabularMDP, tabular_mdp

LEFT, RIGHT = 0, 1


def short_corridor(max_steps: int = 1000) -> TabularMDP:
    """Three states that look the same, of which the middle one swaps left and right.

    The reward is -1 on every step, the one that reaches the goal included, and moving left from
    the first state leaves it there. The best policy goes right with probability 2 - sqrt 2 =
    0.586, for an expected return of -(6 + 4 sqrt 2) = -11.66; always left or right never ends.

    Args:
      max_steps: time limit; a policy near always left or right would go on for ever.

    Raises:
      ValueError: `max_steps` below one.
    """
    goal = 3
    transition = np.zeros((4, 2, 4))
    for state, (left, right) in enumerate([(0, 1), (2, 0), (1, goal), (goal, goal)]):
        transition[state, LEFT, left] = 1
        transition[state, RIGHT, right] = 1
    mdp = MDP(
        transition=transition,
        reward=np.where(np.arange(4)[:, None, None] == goal, 0.0, -1.0) * np.ones((4, 2, 4)),
        initial=np.eye(4)[0],
        terminal=np.arange(4) == goal,
        observation=np.zeros(4, np.int32),
    )
    return tabular_mdp(mdp, name="ShortCorridor", max_steps=max_steps)
