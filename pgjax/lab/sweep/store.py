"""The directory of a sweep: its results as they come in, and what a kill leaves of them."""

import shutil
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from pgjax.lab import directory
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import dataset
from pgjax.lab.sweep.chunk import Index, Result
from pgjax.lab.sweep.plan import Plan

SHARE = 0.05
"""Share of the time that writing the dataset may take while a sweep goes on."""


class Store(NamedTuple):
    """The files of a sweep."""

    SWEEP, WIDTHS = directory.SWEEP, "widths.json"

    path: Path

    @property
    def sweep(self) -> Path:
        """What the sweep is, the first thing written."""
        return self.path / self.SWEEP

    @property
    def widths(self) -> Path:
        """How many runs of each group go side by side, so that a resumed sweep goes on likewise."""
        return self.path / self.WIDTHS

    @property
    def chunks(self) -> Path:
        """One folder for each chunk: records as they come in, results once it is finished."""
        return self.path / "chunks"

    @property
    def dataset(self) -> Path:
        """All results so far."""
        return self.path / "sweep.nc"

    @property
    def best(self) -> Path:
        """The config that did best, for `pgjax train --config`."""
        return self.path / "best.yaml"

    @property
    def study(self) -> Path:
        """The study of a search."""
        return self.path / "study.db"

    def chunk(self, name: str) -> Path:
        """The folder of a chunk."""
        return self.chunks / name


class Kept:
    """Results as they come in, written to disk now and then."""

    def __init__(self, store: Store, plan: Plan):
        updates = max(group.config.num_updates for group in plan.groups)
        self.plan = plan
        self.table = dataset.empty(len(plan.configurations), plan.sweep.base.seeds, updates)
        self._store = store
        self._cost, self._written = 0.0, time.perf_counter()

    def follow_on(self, plan: Plan) -> None:
        """Goes on with a plan that has more configurations."""
        known = len(self.plan.configurations)
        self.plan, self.table = plan, dataset.grown(self.table, len(plan.configurations))
        if not known:
            self.recall()

    def recall(self) -> None:
        """Enters what is finished on disk, whatever chunks it was made in."""
        for where in sorted(self._store.chunks.iterdir()) if self._store.chunks.is_dir() else ():
            result = _intact(where)
            if result is not None and self._is_own(where, result):
                dataset.enter(self.table, result)

    def finished(self) -> set[Index]:
        """The runs that have results."""
        return {(int(c), int(s)) for c, s in np.argwhere(self.table.final["finished"])}

    def enter(self, result: Result) -> None:
        """Enters the results of a chunk."""
        dataset.enter(self.table, result)
        if SHARE * (time.perf_counter() - self._written) >= self._cost:
            self.write()

    def _is_own(self, where: Path, result: Result) -> bool:
        """Whether results are those of the plan's configurations."""
        num_configurations, num_seeds, _ = self.table.shape
        known = all(c < num_configurations and s < num_seeds for c, s in result.runs)
        return known and self.plan.name(result.runs) == where.name

    def dataset(self) -> xr.Dataset:
        """All results so far."""
        return dataset.build(self.plan.sweep, self.plan.configurations, self.table)

    def write(self) -> None:
        """Writes them, whole or not at all."""
        begun = time.perf_counter()
        dataset.write(self.dataset(), self._store.dataset)
        self._written = time.perf_counter()
        self._cost = self._written - begun


def tidy(store: Store) -> None:
    """Removes what was begun and then carried out in other chunks, and what a kill left over."""
    for where in store.chunks.iterdir():
        if not (where / chunks.RESULT).is_file():
            shutil.rmtree(where)
        else:
            shutil.rmtree(where / chunks.CHECKPOINTS, ignore_errors=True)


def _intact(where: Path) -> Result | None:
    """The results of a chunk; None if it is not finished, or damaged and to be made again."""
    try:
        return chunks.read(where)
    except ValueError as error:
        warnings.warn(f"passed over damaged results: {error}", stacklevel=2)
        return None
