"""TensorBoard: event files, encoded with the help of tensorboardX."""

import importlib
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgjax.lab.loggers.series import Series, label


class TensorBoard:
    """A folder of events for each series, so that seeds overlay as curves of one tag.

    Events are appended whole, and no file stays open: a thousand series are no strain, whereas a
    `SummaryWriter` keeps two threads and three files for each.
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        self._event = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        self._checksum = importlib.import_module("tensorboardX.record_writer").masked_crc32c
        self._directory = directory / "tensorboard"
        self._files: dict[Series, Path] = {}

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Appends an event that holds all values; before the first one, those that start a file."""
        events = [] if series in self._files else self._start(series, step)
        points = [self._summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
        events.append({"step": step, "summary": self._summary(value=points)})
        with self._files[series].open("ab") as file:
            file.write(b"".join(self._record(event) for event in events))

    def close(self) -> None:
        """Does nothing: all is written."""

    def _start(self, series: Series, step: int) -> list[dict[str, Any]]:
        """Names the file of a series, and gives the events that it begins with."""
        folder = self._directory / re.sub(r"[^\w.,=+-]", "_", label(series))
        folder.mkdir(parents=True, exist_ok=True)
        self._files[series] = folder / f"events.out.tfevents.{time.time_ns()}"
        # By this mark TensorBoard forgets what an earlier process logged from this step on.
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        return [{"file_version": "brain.Event:2"}, {"step": step, "session_log": start}]

    def _record(self, event: Mapping[str, Any]) -> bytes:
        """An event as event files frame it: its length and itself, each with a checksum."""
        data = self._event.Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        return b"".join(part + struct.pack("<I", self._checksum(part)) for part in (length, data))
