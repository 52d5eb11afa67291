"""How the score of a sweep depends on its hyperparameters, one by one and in pairs."""

import itertools
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pgjax.lab.plots import COLOURS, MARKERS
from pgjax.lab.statistics import Summary
from pgjax.lab.sweep import panels, scores, words
from pgjax.lab.sweep.scores import Level, Ranking

MOST_HEAT_MAPS = 6
"""Pairs of hyperparameters that are drawn at most."""

MOST_IN_CELLS = 64
"""Heat maps of at most this many cells print each one."""


def sensitivity(ranking: Ranking) -> Figure | None:
    """How the score depends on each hyperparameter, one panel each.

    For chosen values: the interquartile mean over seeds of the best configuration with a value, and
    its mean over all configurations with it, with 95% intervals. The best is chosen by the seeds
    that it is then scored by, so that line is optimistic, the more so the more it is chosen from.
    For values drawn from a range: every configuration.
    """
    if not ranking.hyper:
        return None
    figure, several = panels.make(len(ranking.hyper), sharey=True)
    for axes, name in zip(several, ranking.hyper, strict=True):
        if "configuration" in ranking.data.dims:
            _scatter(axes, ranking, name)
        else:
            _lines(axes, ranking, name)
        axes.set_xlabel(name)
    for axes in several:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(panels.wrapped(ranking.label))
    panels.finish(figure, several, ranking)
    return figure


def heat_maps(ranking: Ranking) -> Figure | None:
    """The score over each pair of hyperparameters of a grid, the mean over the others."""
    pairs = list(itertools.combinations(ranking.hyper, 2))
    if "configuration" in ranking.data.dims or not pairs:
        return None
    drawn = pairs[:MOST_HEAT_MAPS]
    figure, several = panels.make(len(drawn))
    maps = [_heat(ranking, *pair) for pair in drawn]
    lowest = min(float(np.nanmin(values)) for values, _, _ in maps)
    highest = max(float(np.nanmax(values)) for values, _, _ in maps)
    if highest - lowest < 1e-9 * abs(highest):
        lowest, highest = lowest - 1, highest + 1  # All are equal: one colour, the middle one.
    for axes, pair, (values, *ticks) in zip(several, drawn, maps, strict=True):
        image = axes.imshow(
            values, cmap="viridis", vmin=lowest, vmax=highest, aspect="auto", origin="lower"
        )
        for name, axis, level in zip(pair, (axes.yaxis, axes.xaxis), ticks, strict=True):
            labels = [x if isinstance(x, str) else f"{x:.3g}" for x in level]
            axis.set_ticks(range(len(level)), labels, fontsize="small")
            axis.set_label_text(name)
        if max(map(len, (x.get_text() for x in axes.get_xticklabels()))) * values.shape[1] > 40:
            axes.tick_params(axis="x", labelrotation=45)
        if values.size <= MOST_IN_CELLS:
            _print_cells(axes, values, (lowest + highest) / 2)
    over = f"{panels.centre(ranking)} over seeds" + (
        ", mean over the others" if len(ranking.hyper) > 2 else ""
    )
    left_out = f"; the first {len(drawn)} of {len(pairs)} pairs" if drawn != pairs else ""
    figure.colorbar(image, ax=several, label=panels.wrapped(ranking.label))
    figure.suptitle(panels.titled(ranking, over + left_out), fontsize="medium")
    return figure


def _lines(axes: Axes, ranking: Ranking, name: str) -> None:
    found = scores.levels(ranking, name)
    x = _positions(axes, ranking, name, [level.value for level in found])
    best = Summary(*(part[[level.best for level in found]] for part in ranking.summary))
    average = Summary(*(np.stack(part) for part in zip(*(x.average for x in found), strict=True)))
    lines = {"best of the other hyperparameters": best, "average over the others": average}
    if all(len(level.members) == 1 for level in found):
        lines = {f"{panels.centre(ranking)} over seeds": best}
    for index, (label, summary) in enumerate(lines.items()):
        if ranking.scales[name] == "choice":
            # Side by side, so that no line hides another.
            _bars(axes, x + 0.12 * (index - (len(lines) - 1) / 2), summary, index, label)
        else:
            panels.band(axes, x, summary, index, label, banded=True)


def _bars(axes: Axes, x: np.ndarray, summary: Summary, index: int, label: str) -> None:
    """Points with intervals; choices have no order, so nothing joins them."""
    reach = [summary.centre - summary.low, summary.high - summary.centre]
    axes.errorbar(
        x,
        summary.centre,
        np.nan_to_num(reach).clip(0),
        color=COLOURS[index],
        marker=MARKERS[index],
        linestyle="none",
        capsize=3,
        markersize=5,
        label=label,
    )


def _scatter(axes: Axes, ranking: Ranking, name: str) -> None:
    ranked, centre = ranking.order, ranking.summary.centre
    column = ranking.hyper[name][ranked]
    x = _positions(axes, ranking, name, column.tolist())
    if ranking.scales[name] == "choice":
        # Jittered, so that points that share a value are seen apart.
        x = x + np.random.default_rng(0).uniform(-0.15, 0.15, len(x))
    label = f"configuration, {panels.centre(ranking)} over seeds"
    axes.scatter(x, centre[ranked], s=14, color=COLOURS[0], alpha=0.6, label=label)
    axes.scatter(
        x[:1],
        centre[ranked[:1]],
        s=130,
        marker="*",
        color=COLOURS[1],
        edgecolor="black",
        zorder=3,
        label="the best",
    )


def _positions(axes: Axes, ranking: Ranking, name: str, values: list) -> np.ndarray:
    """Where values stand on the x-axis, which is made to fit them."""
    distinct = list(dict.fromkeys(values))
    if ranking.scales[name] == "choice":
        axes.set_xticks(range(len(distinct)), [textwrap.fill(str(x), 14) for x in distinct])
        axes.set_xlim(-0.5, len(distinct) - 0.5)
        return np.array([distinct.index(x) for x in values], float)
    if ranking.scales[name] == "log" and min(values) > 0:
        axes.set_xscale("log")
        subs = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(distinct) <= 5 and "configuration" not in ranking.data.dims:
        axes.set_xticks(distinct, [words.short(x) for x in distinct])
        axes.xaxis.set_minor_formatter(NullFormatter())
    return np.array(values, float)


def _heat(ranking: Ranking, first: str, second: str) -> tuple[np.ndarray, list, list]:
    rows, columns = scores.levels(ranking, first), scores.levels(ranking, second)

    def mean(row: Level, column: Level) -> float:
        both = np.intersect1d(row.members, column.members)
        return float(ranking.summary.centre[both].mean()) if len(both) else np.nan

    values = np.array([[mean(row, column) for column in columns] for row in rows])
    return values, [row.value for row in rows], [column.value for column in columns]


def _print_cells(axes: Axes, values: np.ndarray, middle: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "black" if value > middle else "white"
            text = f"{value:.3g}"
            axes.text(column, row, text, color=colour, ha="center", va="center", fontsize="x-small")
