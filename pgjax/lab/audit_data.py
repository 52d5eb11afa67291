"""What an audit along training found: as arrays, and as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pgjax import audit
from pgjax.audit import Audit

BOUNDS = ("value", "low", "high")
MEASURED = (
    "trace",
    "squared_norm",
    "snr",
    "cv2",
    "effective_sample_size",
    "env_steps",
    "seconds",
    "work_env_steps",
    "work_seconds",
    "squared_bias",
    "cosine",
    "mse",
)
"""Fields of an `Audit` that are estimates."""

COMPARED = ("trace", "mse", "work_env_steps", "work_seconds")
"""Fields of a `Comparison`."""


def dataset(
    measured: Sequence[Mapping[str, Audit]],
    env_steps: Mapping[int, int],
    verdicts: Mapping[str, tuple[bool, str]],
) -> xr.Dataset:
    """Audits as arrays over estimator, update and the bounds of intervals.

    Args:
      measured: for each update, the audit of each estimator.
      env_steps: update -> environment steps of training until then.
      verdicts: estimator -> whether it is unbiased, and why.
    """
    names = list(verdicts)
    dims = ("estimator", "update")
    rows = [[audits[name] for audits in measured] for name in names]
    firsts = [audits[names[0]] for audits in measured]
    ratios = [list(map(audit.compare, row, firsts)) for row in rows]
    tests = [[one.bias_test or (np.nan, "none") for one in row] for row in rows]
    data: dict[str, Any] = {}
    for table, fields, suffix in ((rows, MEASURED, ""), (ratios, COMPARED, "_ratio")):
        for field in fields:
            values = np.array([[getattr(one, field) for one in row] for row in table], float)
            data[field + suffix] = ((*dims, "bound"), values)
    data["gradient_env_steps"] = data.pop("env_steps")
    data["p_value"] = (dims, np.array([[p for p, _ in row] for row in tests], float))
    data["bias_test"] = (dims, np.array([[name for _, name in row] for row in tests]))
    data["nonfinite"] = (dims, np.array([[one.nonfinite for one in row] for row in rows]))
    data["unbiased"] = ("estimator", np.array([unbiased for unbiased, _ in verdicts.values()]))
    data["reason"] = ("estimator", np.array([reason for _, reason in verdicts.values()]))
    coords = {
        "estimator": names,
        "update": list(env_steps),
        "bound": list(BOUNDS),
        "env_steps": ("update", list(env_steps.values())),
    }
    return xr.Dataset(data, coords=coords, attrs={"level": firsts[0].level})


def table(data: xr.Dataset) -> str:
    """The results as lines of text, one for each checkpoint and estimator."""
    header = (
        "update",
        "estimator",
        "",
        "variance",
        "ratio",
        "SNR",
        "variance x steps",
        "p of no bias",
    )
    rows: list[tuple[str, ...]] = [header]
    for update in data["update"].values:
        for name in data["estimator"].values:
            at = data.sel(update=update, estimator=name)
            rows.append(
                (
                    str(update),
                    str(name),
                    "unbiased" if bool(at["unbiased"]) else "biased",
                    _interval(at["trace"]),
                    _interval(at["trace_ratio"]),
                    _interval(at["snr"]),
                    _interval(at["work_env_steps"]),
                    f"{float(at['p_value']):.2g}",
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    reasons = [
        f"{name}: {'unbiased' if bool(data['unbiased'].sel(estimator=name)) else 'biased'}, "
        f"{data['reason'].sel(estimator=name).item()}"
        for name in data["estimator"].values
    ]
    return "\n".join([*lines, "", *reasons, f"reference: {data.attrs['reference']}"])


def _interval(array: xr.DataArray) -> str:
    value, low, high = (float(array.sel(bound=bound)) for bound in BOUNDS)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
