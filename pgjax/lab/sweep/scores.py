"""How the configurations of a sweep did in the end, and which is best.

The score of a run is the return of its final policy in fresh episodes. A run that is not finished,
or whose evaluation is not a finite number, has no score; one that diverged has the score it has.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from pgjax.lab import statistics
from pgjax.lab.statistics import Summary

SCORE = "evaluation_return"
ALL = "all environments"
SPLITS = 100
"""Random halves of the seeds that a choice is judged by."""

MOST_RESAMPLED = 2 * 10**7
"""Bootstrap samples of all configurations together that are kept in memory."""


class Ranking(NamedTuple):
    """The configurations of a sweep in one environment, or in all of them."""

    name: str  # Of the environment; empty where there is but one.
    data: xr.Dataset  # What of the sweep this is about.
    hyper: dict[str, np.ndarray]  # Swept hyperparameter -> its values, each [configurations].
    scales: dict[str, str]  # Swept hyperparameter -> linear, log or choice.
    label: str  # What scores are, with their unit.
    values: np.ndarray  # [configurations, tasks, seeds], NaN where a run has no score.
    resampled: np.ndarray  # [resamples, configurations]: bootstrap samples of their IQM.
    summary: Summary  # [configurations] each; no interval where there is one seed.
    order: np.ndarray  # Configurations with a score, the best first, incomplete ones last.

    @property
    def best(self) -> int:
        """The configuration with the highest IQM, among those with the most scores."""
        return int(self.order[0])

    @property
    def num_runs(self) -> np.ndarray:
        """Scores of each configuration, `[configurations]`."""
        return np.sum(~np.isnan(self.values), axis=(1, 2))

    def runs(self, configuration: int) -> list[np.ndarray]:
        """Scores of a configuration, one `[runs]` a task; of some tasks there may be none."""
        return [task[~np.isnan(task)] for task in self.values[configuration]]


class Level(NamedTuple):
    """One value of a hyperparameter, over all that was tried with it."""

    value: Any
    members: np.ndarray  # Configurations with a score that have this value.
    best: int  # The best of them.
    average: Summary  # Mean over them of their IQM.


def rankings(dataset: xr.Dataset) -> list[Ranking]:
    """The configurations of a sweep, ranked in each environment, and in all where they are crossed.

    Scores of different environments are made comparable: in each, 0 is the lowest and 1 the
    highest mean over seeds of any configuration of this sweep.

    Raises:
      ValueError: no run has a score yet.
    """
    if SCORE not in dataset or not _any_score(dataset):
        raise ValueError("nothing finished yet: no run of this sweep has a score")
    parts = {name: part for name, part in _environments(dataset).items() if _any_score(part)}
    found = [_rank(part, name, _flat(part, [part])) for name, part in parts.items()]
    if len(parts) > 1 and "env" in dataset.dims:
        first = next(iter(parts.values()))
        values = _normalised(_flat(first, list(parts.values())))
        found.append(_rank(first.drop_vars("env"), ALL, values))
    return found


def levels(ranking: Ranking, name: str) -> list[Level]:
    """The values of a swept hyperparameter that have scores, in order."""
    column = ranking.hyper[name]
    # Choices stay in the order in which they were given; numbers are sorted.
    given = list(dict.fromkeys(column.tolist()))
    found = []
    for value in given if ranking.scales[name] == "choice" else sorted(given):
        ranked = ranking.order[column[ranking.order] == value]
        if not len(ranked):
            continue
        low, high = statistics.interval(ranking.resampled[:, ranked].mean(axis=1))
        if np.isnan(ranking.summary.low[ranked]).all():
            low = high = np.array(np.nan)
        average = Summary(ranking.summary.centre[ranked].mean(), low, high)
        found.append(Level(value, ranked, int(ranked[0]), average))
    return found


def has_levels(ranking: Ranking, name: str) -> bool:
    """Whether a hyperparameter was tried at chosen values, and not drawn from a range."""
    column = ranking.hyper[name].tolist()
    crossed = "configuration" not in ranking.data.dims
    return crossed or ranking.scales[name] == "choice" or 2 * len(set(column)) <= len(column)


def held_out(ranking: Ranking) -> float:
    """What the best brings on other seeds: it is chosen on half of them, and scored on the rest.

    The mean over random halves of the seeds; NaN with fewer than four.
    """
    seeds = ranking.values.shape[-1]
    if seeds < 4:
        return np.nan
    rng, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        shuffled = ranking.values[ranking.order][..., rng.permutation(seeds)]
        halves = shuffled[..., : seeds // 2], shuffled[..., seeds // 2 :]
        chosen, judged = (statistics.iqm_of_rows(half.reshape(len(half), -1)) for half in halves)
        best = np.argmax(np.nan_to_num(chosen, nan=-np.inf))
        if not np.isnan(judged[best]):
            found.append(judged[best])
    return float(np.mean(found)) if found else np.nan


def place(ranking: Ranking, configuration: int) -> dict[str, int]:
    """Where a configuration stands in the data: dimension -> index."""
    sizes = {dim: ranking.data.sizes[dim] for dim in _dims(ranking.data)}
    where = np.unravel_index(configuration, tuple(sizes.values()))
    return {dim: int(index) for dim, index in zip(sizes, where, strict=True)}


def flags(ranking: Ranking, name: str) -> np.ndarray:
    """A variable over the runs of one environment, `[configurations, seeds]`."""
    array = ranking.data[name].transpose(*_dims(ranking.data), "seed").values
    return array.reshape(-1, ranking.data.sizes["seed"])


def described(array: xr.DataArray) -> str:
    """What a variable is, with its unit."""
    name, unit = array.attrs.get("long_name", array.name), array.attrs.get("units", "1")
    return str(name) if unit == "1" else f"{name} [{unit}]"


def _rank(data: xr.Dataset, name: str, values: np.ndarray) -> Ranking:
    num_resamples = int(np.clip(MOST_RESAMPLED // len(values), 200, 1000))
    resampled = statistics.resampled_iqms(values, num_resamples=num_resamples)
    made = np.sum(~np.isnan(values), axis=2)
    num_runs = made.sum(axis=1)
    centre = statistics.iqm_of_rows(values.reshape(len(values), -1))
    ends = statistics.interval(resampled)
    low, high = (np.where(made.max(axis=1) > 1, end, np.nan) for end in ends)
    # A high mean of fewer scores may be luck, or what is left after runs have failed.
    order = np.lexsort((-centre, num_runs < num_runs.max()))
    scales = json.loads(data.attrs["scales"])
    hyper = _hyper(data)
    return Ranking(
        name=name,
        data=data,
        hyper=hyper,
        scales={key: scales.get(key, "choice") for key in hyper},
        label="normalised return (0 worst, 1 best mean)" if name == ALL else described(data[SCORE]),
        values=values,
        resampled=resampled,
        summary=Summary(centre, low, high),
        order=order[num_runs[order] > 0],
    )


def _scores(data: xr.Dataset) -> xr.DataArray:
    returns = data[SCORE]
    return returns.where((data["finished"] == 1) & np.isfinite(returns))


def _any_score(data: xr.Dataset) -> bool:
    return bool(_scores(data).notnull().any())


def _environments(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """The sweep in each environment; an empty name where that is not swept."""
    if "env" not in json.loads(dataset.attrs["swept"]):
        return {"": dataset}
    if "env" in dataset.dims:
        return {str(name): dataset.sel(env=name) for name in dataset["env"].values}
    column = dataset["env"].values
    return {
        str(name): dataset.isel(configuration=np.flatnonzero(column == name))
        for name in dict.fromkeys(column.tolist())
    }


def _dims(data: xr.Dataset) -> list[str]:
    return [str(dim) for dim in data[SCORE].dims if dim != "seed"]


def _flat(like: xr.Dataset, tasks: list[xr.Dataset]) -> np.ndarray:
    arrays = [_scores(task).transpose(*_dims(like), "seed").values for task in tasks]
    seeds = like.sizes["seed"]
    return np.stack([array.reshape(-1, seeds) for array in arrays], axis=1).astype(np.float64)


def _hyper(data: xr.Dataset) -> dict[str, np.ndarray]:
    names = [name for name in json.loads(data.attrs["swept"]) if name != "env"]
    if "configuration" in data.dims:
        return {name: data[name].values for name in names}
    columns = np.meshgrid(*(data[dim].values for dim in _dims(data)), indexing="ij")
    found = dict(zip(_dims(data), (column.ravel() for column in columns), strict=True))
    return {name: found[name] for name in names}


def _normalised(values: np.ndarray) -> np.ndarray:
    made = np.sum(~np.isnan(values), axis=2)
    means = np.where(made > 0, np.nansum(values, axis=2) / np.maximum(made, 1), np.nan)
    lowest, highest = np.nanmin(means, axis=0)[:, None], np.nanmax(means, axis=0)[:, None]
    return (values - lowest) / np.where(highest > lowest, highest - lowest, 1.0)
