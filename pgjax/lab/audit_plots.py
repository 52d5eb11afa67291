"""The figure of an audit along training."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from pgjax.lab import plots
from pgjax.lab.audit_data import BOUNDS
from pgjax.lab.plots import COLOURS, MARKERS


def along_training(data: xr.Dataset, output: Path) -> None:
    """Draws variance and signal-to-noise ratio against environment steps, with intervals.

    Args:
      data: what `auditing` measured, over estimator, update and bound.
      output: the figure; its suffix chooses the format.
    """
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    variance, snr = figure.subplots(1, 2)
    _draw(variance, data, "trace")
    _draw(snr, data, "snr")
    variance.set_ylabel("variance of one gradient (trace)")
    variance.set_yscale("log")
    snr.set_ylabel("signal to noise, |E g|$^2$ / variance")
    # Signals fall by orders of magnitude, and estimates of small ones may be negative.
    if float(data["snr"].sel(bound="low").min()) > 0:
        snr.set_yscale("log")
    else:
        smallest = max(float(np.abs(data["snr"].sel(bound="value")).min()), 1e-6)
        snr.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(smallest)))
        snr.axhline(0, color="grey", linewidth=0.8)
    figure.legend(
        *variance.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(3, len(data["estimator"])),
        frameon=False,
        fontsize="small",
    )
    plots.save(figure, output)


def _draw(axes: Axes, data: xr.Dataset, name: str) -> None:
    env_steps = data["env_steps"].values
    # Side by side: intervals at the same checkpoint would hide one another.
    apart = 0.012 * max(float(np.ptp(env_steps)), 1.0)
    middle = (len(data["estimator"]) - 1) / 2
    for index, estimator in enumerate(data["estimator"].values):
        at = data.sel(estimator=estimator)
        value, low, high = (at[name].sel(bound=bound).values for bound in BOUNDS)
        verdict = "unbiased" if bool(at["unbiased"]) else "biased"
        axes.errorbar(
            env_steps + apart * (index - middle),
            value,
            np.nan_to_num([value - low, high - value], posinf=0.0).clip(0),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=f"{estimator} ({verdict})",
        )
    axes.set_xlabel("environment steps of training")
    several = MaxNLocator(5) if len(env_steps) > 1 else FixedLocator(env_steps.tolist())
    axes.xaxis.set_major_locator(several)
    plots.plain(axes)
