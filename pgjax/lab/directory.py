"""A run's directory: where each thing stands, how it is made and how it is found again."""

import contextlib
import errno
import fcntl
import itertools
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.lab.refusals import RefusalError

LOCK = ".lock"
"""The file by whose lock a process has a directory for itself; it stays there, empty."""
SWEEP = "sweep.yaml"
"""The first file written of a sweep, by which its directory is known."""


class Directory(NamedTuple):
    """The files of a run."""

    CONFIG = "config.yaml"

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, the first thing written."""
        return self.path / self.CONFIG

    @property
    def metrics(self) -> Path:
        """One line for each update and seed, the same bits whenever the run is repeated."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """One line for each call: what depends on the machine."""
        return self.path / "timings.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint, named by its update."""
        return self.path / "checkpoints"

    @property
    def figure(self) -> Path:
        """The learning curve."""
        return self.path / "learning_curve.png"

    @property
    def evaluation(self) -> Path:
        """How the final policy did; written last, so it marks a finished run."""
        return self.path / "evaluation.json"


def vacant(config: Config) -> None:
    """Refuses a config whose directory exists or cannot be made.

    Raises:
      ValueError: names the directory.
    """
    parent = Path(config.directory)
    if config.name and (parent / config.name).exists():
        raise ValueError(
            f"run directory {parent / config.name} exists; choose another --name, or continue it "
            f"with --resume {quoted(parent / config.name)}"
        )
    writable("directory", parent)


def writable(argument: str, path: Path) -> None:
    """Refuses a directory that cannot be written to, or cannot be made.

    Raises:
      ValueError: names the argument and the directory.
    """
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{argument}={str(path)!r} cannot be written to")


def create(config: Config) -> Directory:
    """Makes the directory of a new run with its config in it, whole or not at all.

    Raises:
      ValueError: a directory of that name exists.
    """
    vacant(config)
    name = config.name or f"{config.env}-{config.form}-{config.baseline}-{stamp()}"
    return Directory(make(config, name, {Directory.CONFIG: configs.dump(config)}))


def make(config: Config, name: str, files: Mapping[str, str]) -> Path:
    """Makes a new directory with files in it, whole or not at all.

    Args:
      config: says where, and whether it chose the name.
      name: of the directory; if it is taken, a number is added, unless the config chose it.
      files: name -> text.

    Raises:
      ValueError: the config chose the name, and a directory of that name exists; or none can be
        made there.
    """
    parent = Path(config.directory)
    # Named by the process, so that runs that start in the same second do not share it.
    part = parent / f".{name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ValueError(
            f"directory={str(parent)!r} cannot be written to: {error.strerror}"
        ) from error
    try:
        for file, text in files.items():
            write(part / file, text)
        names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        for free in [name] if config.name is not None else names:
            if _move(part, parent / free):
                return parent / free
    finally:
        shutil.rmtree(part, ignore_errors=True)
    raise ValueError(f"run directory {parent / name} exists")


def quoted(path: Path) -> str:
    """A path as it stands in a command."""
    return shlex.quote(str(path))


def stamp() -> str:
    """The time, as part of a name."""
    return time.strftime("%Y%m%d-%H%M%S")


def find(path: str | Path) -> tuple[Directory, Config]:
    """The directory of a run that exists, and its config.

    Raises:
      ValueError: there is no run, or its config cannot be read.
    """
    found = Directory(Path(path))
    if not found.path.exists():
        raise ValueError(f"no run at {path}: no such directory")
    if not found.path.is_dir():
        raise ValueError(f"no run at {path}: it is not a run directory")
    if not found.config.is_file():
        if (found.path / SWEEP).is_file():
            raise ValueError(
                f"no run at {path}, which is a sweep: see pgjax sweep --resume, pgjax plot and "
                "pgjax report"
            )
        raise ValueError(f"no run at {path}: it holds no {found.config.name}")
    return found, configs.load(found.config)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes, on other hosts too, from following the same run.

    A process that is killed lets go. Where the file system has no locks, a warning says so.

    Raises:
      RefusalError: another process has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            # NFS locks only files that are open for writing.
            file = stack.enter_context((directory / LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusalError(f"run {directory} is in use by another process") from error
        except OSError as error:  # better unguarded than not at all
            warnings.warn(
                f"run {directory} cannot be locked, so take care that no other process follows it: "
                f"{error}",
                stacklevel=1,
            )
        yield


def listing(path: Path) -> str:
    """What a directory holds, in a line; hidden files are left out."""
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    return f"{path}: {', '.join(names)}"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields where to write a file or a directory, which is moved to `path` if all goes well."""
    # With the same suffix, by which some writers choose the format.
    part = path.with_name(f".part-{path.name}")
    _remove(part)
    try:
        yield part
        if part.is_dir():
            _remove(path)  # a directory cannot replace one that is not empty
        part.replace(path)
    finally:
        _remove(part)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    """Removes a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(part: Path, whole: Path) -> bool:
    """Moves a directory to a name that is free; False where it is taken."""
    if whole.exists():
        return False
    try:
        part.rename(whole)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True
