"""What a run writes down as it goes: JSON lines, appended and flushed.

A line is a mapping of names to numbers, or to lists of them. A number that is not finite is written
as null, which is what JSON has for it, and read back as NaN.
"""

import json
import math
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Records:
    """An open file of JSON lines; a context manager."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes one line a row, and flushes."""
        lines = (json.dumps({name: plain(x) for name, x in row.items()}) for row in rows)
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()

    def sync(self) -> None:
        """Waits until all that was appended is on disk, where a crash of the machine leaves it."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a last line torn by a kill is left out.

    Raises:
      ValueError: there is no such file, or a whole line is not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"there are no records at {path}")
    rows = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            row = json.loads(line)
            rows.append({name: math.nan if x is None else x for name, x in row.items()})
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is not a record: {line[:60]!r}") from error
    return rows


def curves(path: Path) -> dict[str, np.ndarray]:
    """The metrics of a run, one `[seeds, updates]` array a name.

    Raises:
      ValueError: the records are missing, empty or not complete for every seed.
    """
    rows = read(path)
    if not rows:
        raise ValueError(f"there are no records in {path} yet")
    try:
        seeds = len({row["seed"] for row in rows})
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        whole = {name: x[: len(x) // seeds * seeds] for name, x in table.items()}
        return {name: x.reshape(-1, seeds).T for name, x in whole.items()}
    except KeyError as error:
        raise ValueError(f"{path} holds records without {error}") from error


def truncate(path: Path, update: int) -> None:
    """Drops what was written after `update`: records of work that will be done again.

    Raises:
      ValueError: a line is not a record of an update.
    """
    if not path.is_file():
        return
    try:
        done = [row["update"] <= update for row in read(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds a line that is not a record of an update") from error
    # Updates only grow, so what stays comes first.
    kept = sum(map(len, _whole_lines(path)[: sum(done)]))
    if kept < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(kept)


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]


def plain(value: Any) -> Any:
    """A number as JSON has it: float32 by its shortest digits, null where it is not finite."""
    if isinstance(value, np.ndarray):
        return [plain(number) for number in value]
    if isinstance(value, np.floating | float):
        return float(str(value)) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
