"""What the figures of a sweep have in common."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgjax.lab import statistics
from pgjax.lab.plots import COLOURS, MARKERS, STYLES, plain
from pgjax.lab.statistics import Summary
from pgjax.lab.sweep import words
from pgjax.lab.sweep.scores import Ranking

COLUMNS = 3
"""Panels in a row."""

MOST_MARKED = 32
"""Curves of at most this many points mark each one."""


def make(
    count: int, *, width: float = 4.4, height: float = 3.9, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, each of that size in inches."""
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for unused in axes[count:]:
        figure.delaxes(unused)
    return figure, axes[:count]


def finish(
    figure: Figure, several: Sequence[Axes], ranking: Ranking, *, together: bool = True
) -> None:
    """Adds a legend below all panels or in each of them, and the environment above."""
    for axes in several:
        plain(axes)
        if not together:
            axes.legend(frameon=False, fontsize="small")
    if together:
        handles, labels = several[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=1 if max(map(len, labels)) > 40 else 2,
            frameon=False,
            fontsize="small",
        )
    if ranking.name:
        figure.suptitle(ranking.name, fontsize="medium")


def centre(ranking: Ranking) -> str:
    """What seeds are summarised by: the IQM, or the mean where they are few."""
    return statistics.centre_name(ranking.data.sizes["seed"])


def band(
    axes: Axes, x: np.ndarray, summary: Summary, index: int, label: str, *, banded: bool
) -> None:
    """Draws a curve and, if asked to, its band; curves differ by colour, dashes and markers."""
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(
        x,
        summary.centre,
        linestyle=STYLES[index % len(STYLES)],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        # Out of step with the next curve, so that the markers of both are seen where they meet.
        markevery=(0.02 + 0.03 * index, 0.2) if len(x) > MOST_MARKED else 1,
        markersize=4,
        linewidth=1.4,
        label=label,
    )
    if banded:
        axes.fill_between(x, summary.low, summary.high, color=colour, alpha=0.15, linewidth=0)


def wrapped(text: str) -> str:
    """Text in lines that fit beside a panel."""
    return textwrap.fill(text, 30)


def titled(ranking: Ranking, text: str) -> str:
    """A title, with the environment before it where there are several."""
    return f"{ranking.name}: {text}" if ranking.name else text


def label(ranking: Ranking, place: int, configuration: int, width: int = 80) -> str:
    """The rank of a configuration and what it is, in lines of that width."""
    return textwrap.fill(f"{place + 1}: {words.named(ranking, configuration)}", width)
