"""Loggers by name, and several of them at once beside a training."""

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgjax import checks
from pgjax.lab import records
from pgjax.lab.loggers.series import Logger
from pgjax.lab.loggers.tensorboard import TensorBoard
from pgjax.lab.loggers.trackio import Trackio
from pgjax.lab.loggers.wandb import WandB

Rows = Sequence[Mapping[str, Any]]
"""Records of updates: `update`, what tells series apart, and metrics."""


class Backend(NamedTuple):
    """A logger by the package it needs and how it is opened."""

    package: str
    open: Callable[[Path, str, Mapping[str, Any]], Logger]


LOGGERS: dict[str, Backend] = {
    "tensorboard": Backend("tensorboardX", TensorBoard),
    "wandb": Backend("wandb", WandB),
    "trackio": Backend("trackio", Trackio),
}


def check(names: Collection[str]) -> None:
    """Refuses loggers that are unknown or not installed.

    Raises:
      ValueError: names the logger, and the extra to install.
    """
    for name in names:
        checks.choice("loggers", name, LOGGERS)
        package = LOGGERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f'loggers={name!r} needs the package {package}: pip install "pgjax[{name}]"'
            )


@contextlib.contextmanager
def opened(
    names: Collection[str],
    directory: Path,
    name: str,
    config: Mapping[str, Any],
    *,
    by: Sequence[str] = ("seed",),
) -> Iterator[Callable[[Rows], None]]:
    """Opens loggers, and closes all of them whatever happens.

    A thread beside the one that trains sends the rows, at most one call behind it. A logger that
    fails is left out from then on, with one warning: no training ends because of it.

    Args:
      names: keys of `LOGGERS`; there may be none.
      directory: of the run; what loggers write stands below it.
      name: of the run, as people read it.
      config: what the run computes, in plain values.
      by: what tells series apart, of all that a row holds.

    Yields:
      What takes rows, those of a series in the order of their updates.

    Raises:
      ValueError: a logger that is unknown or not installed.
    """
    check(names)
    loggers: dict[str, Logger] = {}
    failed: set[str] = set()
    with contextlib.ExitStack() as stack:
        for key in dict.fromkeys(names):
            with _guarded(key, failed):
                loggers[key] = LOGGERS[key].open(directory, name, config)
                stack.callback(_close, key, loggers[key], failed)
        # Left before the loggers close, so that all that was handed over is sent first.
        worker = stack.enter_context(ThreadPoolExecutor(1))
        sent = worker.submit(_send, loggers, failed, (), by)

        def log(rows: Rows) -> None:
            nonlocal sent
            # One call may wait to be sent; more of them could fill the memory.
            sent.result()
            sent = worker.submit(_send, loggers, failed, rows, by)

        yield log
        sent.result()


def _send(loggers: Mapping[str, Logger], failed: set[str], rows: Rows, by: Sequence[str]) -> None:
    for row in rows if loggers else ():
        # As records have it, so that what is read back names the same series.
        series = tuple((name, records.plain(row[name])) for name in by)
        values = _values({name: x for name, x in row.items() if name not in ("update", *by)})
        for key, logger in loggers.items():
            if key not in failed:
                with _guarded(key, failed):
                    logger.log(series, int(row["update"]), values)


def _values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are numbers, words left out; a list becomes `name/0`, `name/1` and so on."""
    values = {}
    for name, metric in metrics.items():
        if isinstance(metric, str):
            continue
        if np.ndim(metric) == 0:
            values[name] = _number(metric)
        else:
            values |= {f"{name}/{index}": _number(x) for index, x in enumerate(metric)}
    return values


def _number(value: Any) -> float:
    """A number, NaN where a record has null."""
    return math.nan if value is None else float(value)


def _close(name: str, logger: Logger, failed: set[str]) -> None:
    with _guarded(name, failed):
        logger.close()


@contextlib.contextmanager
def _guarded(name: str, failed: set[str]) -> Iterator[None]:
    """Notes a logger that fails, with a warning the first time."""
    try:
        yield
    except Exception as error:
        if name not in failed:
            failed.add(name)
            warnings.warn(f"logger {name} failed and is left out: {error!r}", stacklevel=1)
