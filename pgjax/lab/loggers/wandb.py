"""Weights & Biases, online or offline."""

import hashlib
import importlib
import os
import shutil
import types
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgjax.lab.directory import write
from pgjax.lab.loggers.series import PROJECT, Series, label


class WandB:
    """A run of wandb for each series, grouped by the name of the run that they belong to.

    wandb averages, compares and filters runs by their group and their config; a hundred seeds in
    the keys of one run could only be looked at one by one. Online, opening a series is a request:
    with hundreds of them, `WANDB_MODE=offline` and `wandb sync` afterwards is the better way.
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]):
        self._wandb = importlib.import_module("wandb")
        self._directory, self._name, self._config = directory, name, dict(config)
        self._mode = _mode(self._wandb)
        self._identity = _identity(directory / "wandb" / "pgjax-id")
        self._runs: dict[Series, Any] = {}

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Logs what the run of a series does not hold yet."""
        if series not in self._runs:
            self._runs[series] = self._open(series)
        run = self._runs[series]
        if step >= run.starting_step:
            run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        """Finishes the runs."""
        for run in self._runs.values():
            run.finish()

    def _open(self, series: Series) -> Any:
        identity = hashlib.sha256(f"{self._identity} {label(series)}".encode()).hexdigest()[:16]
        if self._mode == "offline":
            # An offline run cannot be continued: it is written anew, from its first step.
            for old in (self._directory / "wandb").glob(f"offline-run-*-{identity}"):
                shutil.rmtree(old)
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._name,
            name=f"{self._name} {label(series)}",
            config=self._config | dict(series),
            id=identity,
            resume=None if self._mode == "offline" else "allow",
            reinit="create_new",
            dir=str(self._directory),
            mode=self._mode,
            # The screen and the load of the machine are the same for every series.
            settings=self._wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )


def _mode(wandb: types.ModuleType) -> str:
    """The mode wandb is set to, or offline where it has no API key: it never asks for one."""
    mode = wandb.setup().settings.mode
    if mode in ("offline", "disabled"):
        return mode
    try:
        if wandb.login(prompt=False):
            return mode
        reason = "it has no API key"
    except wandb.Error as error:
        reason = str(error)
    warnings.warn(f"wandb stays offline, for `wandb sync` later on: {reason}", stacklevel=2)
    return "offline"


def _identity(path: Path) -> str:
    """An identity that no other run has, since runs in two places may share a name."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
