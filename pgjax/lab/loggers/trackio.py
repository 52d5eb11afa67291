"""trackio, on this machine only."""

import contextlib
import importlib
import io
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from contextvars import Context
from pathlib import Path
from typing import Any, TextIO

from pgjax.lab.loggers.series import PROJECT, Series, label

INTERVAL = 5.0
"""Seconds that points wait before trackio is given them; longer if it is slow to take them."""


class Trackio:
    """A run for each series, in one local project; nothing is served and nothing is sent.

    Files stand in `trackio/` of the run's directory, or where `TRACKIO_DIR` says, which lets runs
    share a dashboard: `TRACKIO_DIR=... trackio show --project pgjax`.

    Points are handed over one series at a time. Each open run writes to the one database from a
    thread of its own, and some hundred of them lock each other out and lose points.

    On a network file system trackio writes fragments that its dashboard gathers. What they hold
    is not known here, so a run that was stopped has some steps twice, with the same values.
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        home = (directory / "trackio").absolute()
        # Where TRACKIO_DIR points, another run of this name may have left its series.
        self._resumed = home.is_dir()
        home.mkdir(parents=True, exist_ok=True)
        self._trackio = _imported(Path(os.environ.get("TRACKIO_DIR") or home))
        self._name, self._config = name, dict(config)
        self._waiting: dict[Series, list[tuple[int, Mapping[str, float]]]] = {}
        self._last: dict[Series, int] = {}
        self._due = 0.0

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Keeps a point until it is handed over."""
        self._waiting.setdefault(series, []).append((step, values))
        if time.monotonic() >= self._due:
            self._hand_over()

    def close(self) -> None:
        """Hands over what waits."""
        self._hand_over()

    def _hand_over(self) -> None:
        begun = time.monotonic()
        with contextlib.redirect_stdout(_OtherThreads(sys.stdout)):
            for series, points in self._waiting.items():
                self._add(series, points)
        self._waiting.clear()
        # However many series there are, most of the time is left for training.
        now = time.monotonic()
        self._due = now + max(INTERVAL, 9 * (now - begun))

    def _add(self, series: Series, points: list[tuple[int, Mapping[str, float]]]) -> None:
        """Adds to a run what it does not hold yet."""
        run = self._open(series)
        if series not in self._last:
            last = self._trackio.SQLiteStorage.get_max_step_for_run(PROJECT, run.name, run.id)
            self._last[series] = -1 if last is None else last
        for step, values in points:
            if step > self._last[series]:
                run.log(dict(values), step=step)
                self._last[series] = step
        run.finish()

    def _open(self, series: Series) -> Any:
        with _on_this_machine():
            # In a context of its own, which leaves alone any run that the caller has open.
            return Context().run(
                self._trackio.init,
                project=PROJECT,
                name=f"{self._name} {label(series)}",
                group=self._name,
                config=self._config | dict(series),
                resume="allow" if self._resumed or series in self._last else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )


def _imported(home: Path) -> types.ModuleType:
    """trackio, which decides on import where its files are."""
    with _environment(TRACKIO_DIR=str(home)):
        trackio = importlib.import_module("trackio")
    if trackio.TRACKIO_DIR != home:
        warnings.warn(
            f"trackio is imported already and keeps its files in {trackio.TRACKIO_DIR}",
            stacklevel=2,
        )
    return trackio


class _OtherThreads(io.TextIOBase):
    """A stream that leaves out what the thread that made it writes."""

    def __init__(self, stream: TextIO):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Writes what comes from another thread."""
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


@contextlib.contextmanager
def _on_this_machine() -> Iterator[None]:
    """Keeps trackio off the network: no space, no server, no asking who is logged in."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        with _environment(TRACKIO_SPACE_ID=None, TRACKIO_SERVER_URL=None):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Sets environment variables for a while; None takes one away."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
