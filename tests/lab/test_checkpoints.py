"""Checkpoints: exact, whole or not there, and never taken for what they are not."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax import train
from pgjax.lab import checkpoints

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def state(seed, shape=(3, 4)):
    """A state of training with something of everything: floats, counts, flags, typed keys."""
    key = jax.random.key(seed)
    params = {"policy": jax.random.normal(key, shape), "value": {"bias": jnp.float32(seed)}}
    keys = {"key": jax.random.split(key, 2), "flag": jnp.array([True, False])}
    return train.init(key, params, OPTIMIZER)._replace(gradient_state=keys, step=jnp.int32(seed))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert bool(jnp.all(a == b))


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints."""
    for update in (1, 2, 3):
        checkpoints.save(tmp_path, update, state(update), "run")
    return tmp_path


def test_the_newest_comes_back_exactly(saved):
    update, restored = checkpoints.restore(saved, state(0), "run")
    assert update == 3
    assert_same(restored, state(3))
    assert type(restored) is train.TrainState


def test_what_a_state_looks_like_is_enough_to_restore_it(saved):
    _, restored = checkpoints.restore(saved, jax.eval_shape(lambda: state(0)), "run")
    assert_same(restored, state(3))


def test_only_folders_named_by_a_number_are_checkpoints(saved):
    (saved / "²").mkdir()
    (saved / "٣").mkdir()
    (saved / "9").touch()
    assert checkpoints.updates(saved) == [3, 2, 1]


def test_a_restored_state_trains_on(saved):
    _, restored = checkpoints.restore(saved, state(0), "run")
    ascend = lambda state: OPTIMIZER.update(state.params, state.opt_state, state.params)
    assert_same(ascend(restored), ascend(state(3)))


def test_none_without_checkpoints(tmp_path):
    assert checkpoints.restore(tmp_path, state(0), "run") is None
    assert checkpoints.restore(tmp_path / "absent", state(0), "run") is None


def test_only_the_newest_are_kept(saved):
    checkpoints.save(saved, 10, state(4), "run", keep=2)
    assert checkpoints.updates(saved) == [10, 3]


def test_saving_again_replaces(saved):
    checkpoints.save(saved, 3, state(7), "run")
    assert_same(checkpoints.restore(saved, state(0), "run")[1], state(7))


def test_what_a_kill_left_behind_is_not_a_checkpoint(saved):
    shutil.copytree(saved / "3", saved / ".part")
    (saved / ".part" / "seal.json").unlink()
    assert checkpoints.restore(saved, state(0), "run")[0] == 3
    checkpoints.save(saved, 4, state(4), "run")
    assert not (saved / ".part").exists()


def flip(content):
    place = random.Random(0).randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


DAMAGES = {"flip": flip, "cut": lambda content: content[: len(content) // 2]}


@pytest.mark.parametrize("damage", [*DAMAGES, "remove"])
def test_damage_to_any_file_of_the_newest_is_passed_over(saved, damage):
    files = [path for path in (saved / "3").rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(DAMAGES[damage](content))
        with pytest.warns(UserWarning, match="passed over the damaged checkpoint"):
            update, restored = checkpoints.restore(saved, state(0), "run")
        assert update == 2
        assert_same(restored, state(2))
        file.write_bytes(content)
    assert checkpoints.restore(saved, state(0), "run")[0] == 3


def test_if_all_are_damaged_it_says_so(saved):
    for update in (1, 2, 3):
        (saved / str(update) / "seal.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all are damaged"):
        checkpoints.restore(saved, state(0), "run")


def test_anothers_checkpoint_is_refused(saved):
    with pytest.raises(ValueError, match="does not belong to this run"):
        checkpoints.restore(saved, state(0), "another run")


@pytest.mark.parametrize(
    "template",
    [
        state(0, shape=(3, 5)),
        state(0)._replace(step=jnp.float32(0)),
        state(0)._replace(gradient_state=()),
        jax.tree.map(np.asarray, state(0).params),
    ],
    ids=["shape", "dtype", "structure", "type"],
)
def test_a_state_of_another_kind_is_refused(saved, template):
    with pytest.raises(ValueError, match="does not belong to this run"):
        checkpoints.restore(saved, template, "run")
