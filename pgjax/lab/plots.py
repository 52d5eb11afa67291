"""Learning curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from pgjax.lab import directory, records, statistics

# Okabe and Ito's palette, told apart by the colour-blind, and by lightness in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
POINTS = 256


def learning_curves(metrics: Mapping[str, Path], output: Path) -> None:
    """Draws the learning curves of runs into one figure.

    Args:
      metrics: label of a run -> its file of metrics.
      output: the figure; its suffix chooses the format.

    Raises:
      ValueError: records that are missing or broken, or an output that cannot be drawn to.
    """
    check_output(output)
    curves = {label: records.curves(path) for label, path in metrics.items()}
    # Without pyplot, no display and no setting of a backend can matter.
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, (label, curve) in enumerate(curves.items()):
        _draw(axes, label, curve["env_steps"], curve["return"], index)
    axes.set_xlabel("environment steps of one seed")
    axes.set_ylabel("return of an episode")
    plain(axes)
    axes.legend(frameon=False, fontsize="small")
    save(figure, output)


def plain(axes: Axes) -> None:
    """A grid, and no frame."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def check_output(output: Path) -> None:
    """Raises `ValueError` unless a figure can be written to a file of that name."""
    formats = FigureCanvasBase.get_supported_filetypes()
    if output.is_dir() or output.suffix.lower().removeprefix(".") not in formats:
        raise ValueError(
            f"output={str(output)!r} must be a file whose suffix is one of: {', '.join(formats)}"
        )


def save(figure: Figure, output: Path) -> None:
    """Writes a figure whole or not at all, in a new directory if there is none.

    The suffix of the file chooses the format.

    Raises:
      ValueError: an output that is no name of a figure.
      OSError: it cannot be written to.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with directory.whole(output) as part:
            figure.savefig(part, dpi=150)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"output={str(output)!r} cannot be written to: {reason}") from error


def common_grid(env_steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curves of seeds at the same numbers of environment steps, by linear interpolation.

    Seeds take different numbers of steps an update. The grid begins where all of them have and goes
    on to what any of them reached; curves that have ended keep their last value. Cut where the
    first ends, it would leave out most of what is learnt where good episodes are short.

    Args:
      env_steps: `[seeds, updates]`, increasing.
      values: `[seeds, updates]`.

    Returns:
      The grid `[points]`, and the values on it `[seeds, points]`.
    """
    grid = np.linspace(env_steps[:, 0].max(), env_steps[:, -1].max(), POINTS)
    pairs = zip(env_steps, values, strict=True)
    return grid, np.stack([np.interp(grid, steps, value) for steps, value in pairs])


def _draw(axes: Axes, label: str, env_steps: np.ndarray, values: np.ndarray, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    grid, on_grid = common_grid(env_steps, values)
    summary = statistics.summarise(on_grid)
    seeds = len(values)
    over = "1 seed" if seeds == 1 else f"{statistics.centre_name(seeds)} of {seeds} seeds"
    style = STYLES[index % len(STYLES)]
    marker = "o" if grid[0] == grid[-1] else None  # a line of one point is not seen
    axes.plot(grid, summary.centre, style, marker=marker, color=colour, label=f"{label} ({over})")
    if seeds > 1:
        axes.fill_between(grid, summary.low, summary.high, color=colour, alpha=0.2, linewidth=0)
