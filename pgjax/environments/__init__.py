"""Environments: gymnax's by name, finite MDPs, and the map from samples to legal actions."""

from pgjax.environments.actions import to_action
from pgjax.environments.registry import make, names, time_limit
from pgjax.environments.short_corridor import short_corridor
from pgjax.environments.tabular import MDP, TabularMDP, tabular_mdp

__all__ = [
    "MDP",
    "TabularMDP",
    "make",
    "names",
    "short_corridor",
    "tabular_mdp",
    "time_limit",
    "to_action",
]
