"""The record that a sweep is a function of; nothing heavy is imported here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pgjax.lab.config import Config

DESIGNS = ("grid", "random", "sobol")
"""Designs that are laid out beforehand."""

SEARCHES = ("tpe", "cmaes", "random")
"""Optuna's samplers, which lay out trials as results come in."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep is a function of this record."""

    base: Config = dataclasses.field(default_factory=Config)
    """All that is not swept; `base.seeds` seeds of every configuration, from `base.seed` on."""
    axes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Field of the config, or `env_params.` and a parameter's name -> its `axes.Axis`."""
    design: str = "grid"
    """How configurations are picked: grid, random or sobol."""
    configurations: int | None = None
    """How many, for designs that draw them."""
    design_seed: int = 0
    """Which random points, of a design or a search."""
    search: str | None = None
    """Search adaptively instead, with one of Optuna's samplers: tpe, cmaes or random."""
    trials: int = 64
    """Configurations that a search tries."""
    batch: int = 16
    """Trials of a search that run side by side."""
    prune: bool = False
    """Stop the worse trials of a search early, by asynchronous successive halving."""
    storage: str | None = None
    """Where a search keeps its study: an Optuna URL (sqlite:///study.db), or the path of a journal
    file; None takes SQLite in the sweep's own directory."""


OPTIONS = tuple(x.name for x in dataclasses.fields(Sweep) if x.name not in ("base", "axes"))
"""Keys of a sweep's YAML file that are not fields of a config."""
