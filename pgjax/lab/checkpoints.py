"""The state of a run on disk: orbax checkpoints, each sealed against damage and mix-ups.

A checkpoint is written beside its place and then moved there: a kill leaves a whole one or none.
Its seal names the run and holds a digest of every file, so that damage is noticed before anything
is read from it, even where the file format would not notice.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pgjax.lab import distributed

SEAL = "seal.json"


def save(directory: Path, update: int, state: Any, identity: str, *, keep: int = 3) -> None:
    """Saves a state whole or not at all, then drops all but the newest checkpoints.

    With several processes, all must call it with the same state, on a file system that they share.

    Args:
      directory: where checkpoints stand, one folder each.
      update: updates done, the name of the folder.
      state: pytree of arrays; typed keys are welcome.
      identity: names the run the state belongs to.
      keep: number of checkpoints that stay.
    """
    part, whole = directory / ".part", directory / str(update)
    if distributed.is_leader():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.wait_for_all()
    with _checkpointer() as checkpointer:
        checkpointer.save(_arrays(part), args=ocp.args.StandardSave(_leaves(state)))
    if distributed.is_leader():
        _seal(part, identity, state)
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
        for old in updates(directory)[keep:]:
            shutil.rmtree(directory / str(old))
    distributed.wait_for_all()


def updates(directory: Path) -> list[int]:
    """The updates that have checkpoints, newest first."""
    entries = directory.iterdir() if directory.is_dir() else ()
    found = (int(x.name) for x in entries if x.name.isascii() and x.name.isdecimal() and x.is_dir())
    return sorted(found, reverse=True)


def restore(
    directory: Path,
    template: Any,
    identity: str,
    *,
    recorded: Callable[[int], bool] = lambda update: True,
) -> tuple[int, Any] | None:
    """The newest intact checkpoint that the records reach, or None where there are no checkpoints.

    Any other is passed over with a warning.

    Args:
      directory: where checkpoints stand.
      template: a state of the run or what `jax.eval_shape` says of one; only its structure,
        shapes and dtypes count.
      identity: names the run the state must belong to.
      recorded: whether the records of the run hold an update.

    Returns:
      Updates done and the state.

    Raises:
      ValueError: a checkpoint belongs to another run, or none can be used.
    """
    for update, state in intact(directory, template, identity):
        if recorded(update):
            return update, state
        warnings.warn(
            f"passed over checkpoint {directory / str(update)}, which the records do not reach",
            stacklevel=2,
        )
    if updates(directory):
        raise ValueError(
            f"no checkpoint in {directory} can be used: all are damaged, or the records end earlier"
        )
    return None


def intact(directory: Path, template: Any, identity: str) -> Iterator[tuple[int, Any]]:
    """Every intact checkpoint, newest first: updates done and the state; see `restore`."""
    for update in updates(directory):
        folder = directory / str(update)
        seal = _intact_seal(folder)
        if seal is None:
            warnings.warn(f"passed over the damaged checkpoint {folder}", stacklevel=2)
        elif seal["identity"] != identity or seal["arrays"] != _describe(template):
            raise ValueError(f"checkpoint {folder} does not belong to this run")
        else:
            yield update, _open(folder, template)


def _open(folder: Path, template: Any) -> Any:
    like, structure = jax.tree.flatten(template)
    blank = [np.empty(leaf.shape, leaf.dtype) for leaf in map(_stored, like)]
    with _checkpointer() as checkpointer:
        leaves = checkpointer.restore(_arrays(folder), args=ocp.args.StandardRestore(blank))
    return jax.tree.unflatten(structure, map(_as, like, leaves))


def _seal(folder: Path, identity: str, state: Any) -> None:
    content = {"identity": identity, "arrays": _describe(state), "files": _digests(folder)}
    sealed = {"content": content, "digest": _digest(json.dumps(content).encode())}
    (folder / SEAL).write_text(json.dumps(sealed), encoding="utf-8")


def _intact_seal(folder: Path) -> dict[str, Any] | None:
    """What the seal says, if it and all files that it covers are as they were written."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        content = sealed["content"]
        whole = sealed["digest"] == _digest(json.dumps(content).encode())
        return content if whole and content["files"] == _digests(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in _arrays(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder.absolute())): _digest(path.read_bytes()) for path in files}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _arrays(folder: Path) -> Path:
    # Orbax takes absolute paths only.
    return folder.absolute() / "arrays"


def _leaves(state: Any) -> list[np.ndarray]:
    """The leaves on the host; a typed key is its data."""
    return [
        np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def _stored(leaf: Any) -> Any:
    """Something of the shape and dtype that a leaf is stored with."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _describe(state: Any) -> list[str]:
    """One line a leaf: path, dtype and shape."""
    leaves = [(path, _stored(leaf)) for path, leaf in jax.tree.leaves_with_path(state)]
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]


def _as(like: Any, leaf: np.ndarray) -> Any:
    """`leaf` as a typed key where `like` is one."""
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
