"""Environments: gymnax's by name, finite MDPs, linear-quadratic systems, and legal actions."""

from pgjax.environments.actions import to_action
from pgjax.environments.linear_quadratic import (
    LQG,
    LinearQuadratic,
    linear_quadratic,
    point_mass,
)
from pgjax.environments.registry import make, names, time_limit
from pgjax.environments.short_corridor import short_corridor
from pgjax.environments.tabular import MDP, TabularMDP, tabular_mdp

__all__ = [
    "LQG",
    "LinearQuadratic",
    "MDP",
    "TabularMDP",
    "linear_quadratic",
    "make",
    "names",
    "point_mass",
    "short_corridor",
    "tabular_mdp",
    "time_limit",
    "to_action",
]
