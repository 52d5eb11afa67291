"""Series, the curves of a run, and what takes them."""

from collections.abc import Mapping
from typing import Any, Protocol

Series = tuple[tuple[str, Any], ...]
"""What tells one curve from the others: names and values."""

PROJECT = "pgjax"
"""The project that runs are filed under where a backend has projects."""


class Logger(Protocol):
    """Takes metrics, each series by itself; the steps of a series come in order."""

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve of a series."""
        ...

    def close(self) -> None:
        """Ends all series."""
        ...


def label(series: Series) -> str:
    """A series as people read it: `learning_rate=0.01,seed=3`."""
    return ",".join(f"{name}={value}" for name, value in series)
