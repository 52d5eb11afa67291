"""The results of a sweep as one xarray dataset, with a dimension for every hyperparameter."""

import importlib.metadata
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import yaml

from pgjax.lab import config as configs
from pgjax.lab import directory, machine, revision
from pgjax.lab.sweep import axes, design
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.chunk import Result
from pgjax.lab.sweep.design import Values
from pgjax.lab.sweep.settings import Sweep

UNITS = {
    "return": ("mean return of the update's episodes", "reward"),
    "discounted_return": ("mean discounted return of the update's episodes", "reward"),
    "episode_length": ("mean length of the update's episodes", "environment steps"),
    "env_steps": ("environment steps since the start of the run", "environment steps"),
    "live_fraction": ("share of the trajectory that was live", "1"),
    "entropy": ("minus the mean log-probability of the actions taken", "nat"),
    "value_loss": ("half the mean squared error of the values", "reward^2"),
    "gradient_norm": ("Euclidean norm of the gradient", "1"),
    "param_norm": ("Euclidean norm of the parameters after the update", "1"),
    "finite": ("whether the gradient was finite; the update was skipped otherwise", "1"),
    "skipped": ("updates skipped since the start of the run", "updates"),
    "evaluation_return": ("mean return of fresh episodes of the final policy", "reward"),
    "evaluation_episode_length": (
        "mean length of fresh episodes of the final policy",
        "environment steps",
    ),
    "diverged": ("whether updates were skipped or parameters grew out of all proportion", "1"),
    "pruned": ("whether the run was stopped early, for others to be tried", "1"),
    "seconds": ("wall time of the run's chunk, divided among its runs", "s"),
    "finished": ("whether the run was carried out to its end", "1"),
}
"""Variable -> what it is, and its unit."""

PACKAGES = ("pgjax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "scipy", "xarray")


class Table(NamedTuple):
    """Results by run as they come in: `[C, S, U]` curves and `[C, S]` final numbers."""

    shape: tuple[int, int, int]  # configurations C, seeds S, updates U
    curves: dict[str, np.ndarray]
    final: dict[str, np.ndarray]


def empty(num_configurations: int, num_seeds: int, num_updates: int) -> Table:
    """A table without results."""
    shape = (num_configurations, num_seeds, num_updates)
    return Table(shape, {}, {"finished": np.zeros(shape[:2], bool)})


def grown(table: Table, num_configurations: int) -> Table:
    """A table with room for more configurations."""
    more = num_configurations - table.shape[0]

    def grow(values: np.ndarray) -> np.ndarray:
        fill = False if values.dtype == bool else np.nan
        pads = [(0, more)] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, pads, constant_values=fill)

    curves, final = ({key: grow(x) for key, x in part.items()} for part in table[1:])
    return Table((num_configurations, *table.shape[1:]), curves, final)


def enter(table: Table, result: Result) -> None:
    """Enters the results of a chunk, in place."""
    index = tuple(np.array(result.runs).T)
    for name, values in result.curves.items():
        dtype = np.float64 if name == "env_steps" else np.float32
        into = table.curves.setdefault(name, np.full(table.shape, np.nan, dtype))
        into[index] = np.nan  # a trial that is run again may be stopped earlier
        into[(*index, slice(values.shape[1]))] = values
    final = result.final | {"seconds": np.full(len(result.runs), result.seconds / len(result.runs))}
    for name, values in final.items():
        into = table.final.setdefault(name, np.full(table.shape[:2], np.nan))
        into[index] = values
    pruned = result.final.get("pruned", np.zeros(len(result.runs)))
    table.final["finished"][index] = pruned == 0


def build(sweep: Sweep, configurations: Sequence[Values], table: Table) -> xr.Dataset:
    """The dataset of a sweep as far as it has come; what is not finished is NaN.

    Grids have a dimension for each hyperparameter; other designs have one, `configuration`, along
    which the hyperparameters are coordinates. Then come `seed` and, for curves, `update`.
    """
    grid = sweep.design == "grid" and sweep.search is None and bool(sweep.axes)
    names = {field: axes.name_of(field) for field in sweep.axes}
    coords: dict[str, Any]
    if grid:
        dims, shape = tuple(names.values()), design.shape(sweep)
        coords = {
            name: (name, _coordinate(axes.levels(field, sweep.axes[field])))
            for field, name in names.items()
        }
    elif sweep.axes:
        dims, shape = ("configuration",), (len(configurations),)
        coords = {"configuration": np.arange(len(configurations))} | {
            name: ("configuration", _coordinate([values[field] for values in configurations]))
            for field, name in names.items()
        }
    else:
        dims, shape, coords = (), (), {}
    num_seeds, num_updates = table.shape[1:]
    coords["seed"] = sweep.base.seed + np.arange(num_seeds)
    coords["update"] = 1 + np.arange(num_updates)
    variables = {
        name: ((*dims, "seed", "update"), values.reshape(*shape, num_seeds, num_updates))
        for name, values in table.curves.items()
    } | {
        name: ((*dims, "seed"), values.reshape(*shape, num_seeds))
        for name, values in table.final.items()
    }
    dataset = xr.Dataset(variables, coords, _attributes(sweep))
    for name in dataset.data_vars:
        long_name, unit = UNITS.get(str(name), (str(name), "1"))
        dataset[name].attrs = {"long_name": long_name, "units": unit}
    dataset["update"].attrs = {"long_name": "update", "units": "updates"}
    return dataset


def write(dataset: xr.Dataset, path: Path) -> None:
    """Writes NetCDF, whole or not at all."""
    with directory.whole(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf")


def load(path: str | Path) -> xr.Dataset:
    """The dataset of a sweep, from its directory or its file, in memory.

    Raises:
      ValueError: there is none yet, or it cannot be read.
    """
    file = Path(path) / "sweep.nc" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        what = f"no results of a sweep at {path}: there is no {file}"
        if (Path(path) / directory.SWEEP).is_file():
            what += f"; pgjax sweep --resume {directory.quoted(Path(path))} goes on with it"
        raise ValueError(what)
    try:
        with xr.open_dataset(file, engine="h5netcdf") as dataset:
            return dataset.load()
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a dataset: {error}") from error


def _coordinate(values: Sequence[Any]) -> np.ndarray:
    """Numbers as numbers, anything else as text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values)
    return np.array([axes.label(value) for value in values], dtype=object)


def _attributes(sweep: Sweep) -> dict[str, str]:
    scales = {
        axes.name_of(name): axis.scale if isinstance(axis, Range) else _scale(axis)
        for name, axis in sweep.axes.items()
    }
    base = {
        key: value
        for key, value in yaml.safe_load(configs.dump(sweep.base)).items()
        if key not in sweep.axes and key not in ("name", "directory")
    }
    return {
        "design": sweep.search or sweep.design,
        "swept": json.dumps([axes.name_of(name) for name in sweep.axes]),
        "scales": json.dumps(scales),
        "config": yaml.safe_dump(base, sort_keys=False),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_commit": revision.commit(),
        "device": machine.describe(),
        "versions": json.dumps({name: importlib.metadata.version(name) for name in PACKAGES}),
    }


def _scale(levels: Sequence[Any]) -> str:
    """The scale on which numbers given one by one are best looked at."""
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in levels):
        return "choice"
    return "log" if min(levels) > 0 and max(levels) >= 100 * min(levels) else "linear"
