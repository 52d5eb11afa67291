"""The state of a run on disk: orbax checkpoints, each sealed so that it proves whole and its own.

Orbax writes a checkpoint beside its place and then moves it there: a kill leaves a whole one or
none. The seal travels in the same move; it names the run and holds a digest of every array, so
bytes that change later are noticed even where the file format would not notice.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def save(directory: Path, update: int, state: Any, identity: str, *, keep: int = 3) -> None:
    """Saves a state whole or not at all, then drops all but the newest checkpoints.

    Args:
      directory: where checkpoints stand, one folder each.
      update: updates done, the name of the folder.
      state: pytree of arrays; typed keys are welcome.
      identity: names the run the state belongs to.
      keep: number of checkpoints that stay.
    """
    names, leaves = _flatten(state)
    seal = {"identity": identity, "leaves": [*zip(names, map(_describe, leaves), strict=True)]}
    seal["digests"] = [_digest(leaf.tobytes()) for leaf in leaves]
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(leaves),
        seal=ocp.args.JsonSave({"text": json.dumps(seal), "digest": _digest(json.dumps(seal))}),
    )
    with _checkpointer() as checkpointer:
        checkpointer.save(_folder(directory, update), items, force=True)
    for old in updates(directory)[keep:]:
        shutil.rmtree(_folder(directory, old))
    for torn in directory.glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(torn)


def updates(directory: Path) -> list[int]:
    """The updates checkpoints stand for, newest first."""
    folders = directory.iterdir() if directory.is_dir() else ()
    return sorted((int(folder.name) for folder in folders if folder.name.isdigit()), reverse=True)


def restore(directory: Path, template: Any, identity: str) -> tuple[int, Any] | None:
    """The newest intact checkpoint, if there is any checkpoint at all.

    A damaged one is passed over with a warning.

    Args:
      directory: where checkpoints stand.
      template: a state of the run, for its structure, shapes and dtypes.
      identity: names the run the state must belong to.

    Returns:
      Updates done and the state, in the template's structure; None without checkpoints.

    Raises:
      ValueError: a checkpoint belongs to another run, or none is intact.
    """
    found = updates(directory)
    for update in found:
        folder = _folder(directory, update)
        try:
            return update, _open(folder, template, identity)
        except _DamagedError as damage:
            warnings.warn(f"passed over the damaged checkpoint {folder}: {damage}", stacklevel=2)
    if found:
        raise ValueError(f"no checkpoint in {directory} can be read: all are damaged")
    return None


class _DamagedError(Exception):
    """A checkpoint is not what was saved."""


def _open(folder: Path, template: Any, identity: str) -> Any:
    names, leaves = _flatten(template)
    seal = _read_seal(folder)
    expected = [[name, _describe(leaf)] for name, leaf in zip(names, leaves, strict=True)]
    if seal["identity"] != identity or seal["leaves"] != expected:
        raise ValueError(f"checkpoint {folder} does not belong to this run")
    restored = _read_item(folder, "state", ocp.args.StandardRestore(leaves))
    if [_digest(leaf.tobytes()) for leaf in restored] != seal["digests"]:
        raise _DamagedError("its arrays are not the ones that were saved")
    return _unflatten(template, restored)


def _read_seal(folder: Path) -> dict[str, Any]:
    sealed = _read_item(folder, "seal", ocp.args.JsonRestore())
    if not isinstance(sealed, dict) or sealed.get("digest") != _digest(str(sealed.get("text"))):
        raise _DamagedError("its seal is broken")
    return json.loads(sealed["text"])


def _read_item(folder: Path, name: str, how: Any) -> Any:
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(folder, ocp.args.Composite(**{name: how}))[name]
    # Damage surfaces as whatever the layer that meets it raises: JSON, file system, tensorstore.
    except Exception as error:
        raise _DamagedError(f"its {name} cannot be read ({type(error).__name__})") from error


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _folder(directory: Path, update: int) -> Path:
    return directory.absolute() / str(update)


def _flatten(state: Any) -> tuple[list[str], list[Any]]:
    """Paths and leaves of a pytree, host arrays; a typed key is its data."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path) for path, _ in leaves], [_host(leaf) for _, leaf in leaves]


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _unflatten(template: Any, leaves: list[np.ndarray]) -> Any:
    def typed(like: Any, leaf: np.ndarray) -> Any:
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))

    likes, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, map(typed, likes, leaves))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: np.ndarray) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _digest(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()
