"""The figures of a sweep, each drawn from how its configurations are ranked.

A figure function takes a ranking and gives a figure, or None where there is nothing to draw.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pgjax.lab import plots, statistics
from pgjax.lab.comparisons import Comparison
from pgjax.lab.plots import COLOURS
from pgjax.lab.sweep import panels, scores, tables, words
from pgjax.lab.sweep.scores import Ranking
from pgjax.lab.sweep.sensitivity import heat_maps, sensitivity

MOST_COMPARED = 10
"""Configurations that the best is drawn against."""

THRESHOLDS = 101
"""Points of a performance profile."""


def draw(dataset: xr.Dataset, output: Path) -> list[Path]:
    """Draws all figures of a sweep into a directory; several environments have several sets.

    Raises:
      ValueError: no run has a score yet.
    """
    found = scores.rankings(dataset)
    output.mkdir(parents=True, exist_ok=True)
    return [
        path
        for ranking in found
        for path in draw_ranking(ranking, tables.against_best(ranking), output)
    ]


def draw_ranking(ranking: Ranking, compared: Sequence[Comparison], output: Path) -> list[Path]:
    """Draws the figures of one environment, or of all of them together."""
    drawings: dict[str, Callable[[], Figure | None]] = {
        "sensitivity": lambda: sensitivity(ranking),
        "heat_maps": lambda: heat_maps(ranking),
        "sample_efficiency": lambda: sample_efficiency(ranking),
        "performance_profiles": lambda: performance_profiles(ranking),
        "probability_of_improvement": lambda: improvement(ranking, compared),
    }
    # Letters that any file system and any Markdown reader takes.
    suffix = "-" + re.sub(r"[^\w.-]+", "_", ranking.name) if ranking.name else ""
    paths = []
    for name, drawing in drawings.items():
        figure = drawing()
        if figure is not None:
            paths.append(output / f"{name}{suffix}.png")
            plots.save(figure, paths[-1])
    return paths


def sample_efficiency(ranking: Ranking) -> Figure | None:
    """Learning curves against environment steps: of the best, the middle and the last.

    The interquartile mean over seeds at equal numbers of steps, between which the curve of each
    run is interpolated, with its 95% band. Only finished runs are in it. One that took fewer steps
    than the others goes on at its last value: otherwise a single run of short episodes would cut
    off what the others learned later.
    """
    if ranking.name == scores.ALL:
        return None
    figure, (axes,) = panels.make(1, width=6.4, height=4.6)
    for index, (place, configuration) in enumerate(_selected(ranking)):
        grid, values = _curves(ranking, configuration)
        label = panels.label(ranking, place, configuration)
        panels.band(axes, grid, statistics.summarise(values), index, label, banded=len(values) > 1)
    axes.set_xlabel("environment steps of one seed")
    axes.set_ylabel(panels.wrapped(scores.described(ranking.data["return"])))
    panels.finish(figure, [axes], ranking)
    return figure


def performance_profiles(ranking: Ranking) -> Figure | None:
    """Share of runs that score more than a threshold, with 95% bands; higher is better.

    Each choice, say of form, has a panel with a curve for each value, over all runs with it.
    Without choices there is one panel, of the best configurations, the middle one and the last.
    """
    made = ranking.values[~np.isnan(ranking.values)]
    edge = 0.02 * float(np.ptp(made)) or 0.05 * max(float(np.abs(made).max()), 1e-3)
    thresholds = np.linspace(made.min() - edge, made.max() + edge, THRESHOLDS)
    choices = [name for name in ranking.hyper if ranking.scales[name] == "choice"]
    width, height = (6.4 if len(choices) < 2 else 4.4), (3.9 if choices else 4.6)
    figure, several = panels.make(max(len(choices), 1), width=width, height=height)
    for axes, name in zip(several, choices or [None], strict=True):
        for index, (label, members) in enumerate(_compared_profiles(ranking, name)):
            tasks = [x.T for x in np.moveaxis(ranking.values[members], 1, 0)]
            tasks = [x[~np.isnan(x).all(axis=1)] for x in tasks]
            profile = statistics.performance_profile([x for x in tasks if len(x)], thresholds)
            label = f"{label} ({words.counted(ranking.num_runs[members].sum(), 'run')})"
            panels.band(axes, thresholds, profile, index, label, banded=max(map(len, tasks)) > 1)
        axes.set_xlabel(f"threshold: {panels.wrapped(ranking.label)}")
        axes.set_ylabel("share of runs above it")
        axes.set_ylim(-0.02, 1.02)
    panels.finish(figure, several, ranking, together=not choices)
    return figure


def improvement(ranking: Ranking, compared: Sequence[Comparison]) -> Figure | None:
    """How likely a run of the best configuration scores more than one of those that follow it.

    The 95% intervals do not allow for the best having been chosen by the same runs; the tests do.
    """
    shown = compared[:MOST_COMPARED]
    if not shown:
        return None
    figure = Figure(figsize=(7.6, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(shown):
        centre, low, high = map(float, one.improvement)
        clear = one.corrected <= 0.05
        single = min(one.num_runs) == 1
        reach = [[0.0], [0.0]] if single else [[max(centre - low, 0)], [max(high - centre, 0)]]
        axes.errorbar(
            [centre],
            [row],
            xerr=reach,
            color=COLOURS[0],
            marker="o" if clear else "s",
            markerfacecolor=COLOURS[0] if clear else "white",
            capsize=3,
            linestyle="none",
        )
    names = [panels.label(ranking, row + 1, int(one.other), 48) for row, one in enumerate(shown)]
    axes.set_yticks(range(len(shown)), names, fontsize="small")
    axes.invert_yaxis()
    axes.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability that a run of the best scores more")
    tested = shown[0].test != tables.NO_TEST
    marks = "filled: differs, Holm-corrected p ≤ 0.05; open: may be chance" if tested else ""
    best = textwrap.fill("best: " + words.named(ranking, ranking.best), 72)
    title = "\n".join(filter(None, (ranking.name, best, marks)))
    axes.set_title(title, fontsize="small")
    plots.plain(axes)
    return figure


def _selected(ranking: Ranking) -> list[tuple[int, int]]:
    """Places and configurations worth a curve: the best three, the middle one and the last."""
    last = len(ranking.order) - 1
    places = sorted({place for place in (0, 1, 2, last // 2, last) if place <= last})
    return [(place, int(ranking.order[place])) for place in places]


def _compared_profiles(ranking: Ranking, name: str | None) -> list[tuple[str, np.ndarray]]:
    if name is not None:
        return [(f"{name}={x.value}", x.members) for x in scores.levels(ranking, name)]
    chosen = _selected(ranking)
    return [(panels.label(ranking, place, one), np.array([one])) for place, one in chosen]


def _curves(ranking: Ranking, configuration: int) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps `[points]`, and the return of each run at them, `[runs, points]`."""
    at = ranking.data[["env_steps", "return"]].isel(scores.place(ranking, configuration))
    at = at.transpose("seed", "update")
    made = ~np.isnan(ranking.values[configuration, 0])
    pairs = zip(at["env_steps"].values[made], at["return"].values[made], strict=True)
    filled = [_without_gaps(steps, values) for steps, values in pairs if np.isfinite(values).any()]
    if not filled:
        return np.zeros(1), np.full((1, 1), np.nan)
    steps, values = (np.stack(part) for part in zip(*filled, strict=True))
    return plots.common_grid(steps, values)


def _without_gaps(env_steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve whose gaps are bridged; past its last point it stays where it is."""
    known = np.flatnonzero(np.isfinite(env_steps) & np.isfinite(values))
    every = np.arange(len(values))
    return np.interp(every, known, env_steps[known]), np.interp(every, known, values[known])
