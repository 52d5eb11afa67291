"""Compiled calls in turn make the same updates, whether or not the next one begins early."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pgjax.lab import advance, experiment, parallel
from pgjax.lab.config import Config

CONFIG = Config(
    env="ShortCorridor", policy="tabular", horizon=12, num_episodes=4, num_updates=7, seeds=2
)


@pytest.fixture(scope="module")
def trained():
    """An experiment, its inputs, how far it comes, and what its updates give, call by call."""
    placed = parallel.fit(CONFIG, jax.local_devices()[:1], None)
    trainer, inputs = placed.experiment, experiment.inputs(experiment.each_seed(CONFIG))
    progress, found = advance.begin(trainer, inputs), []
    for size in (3, 3, 1):
        progress, metrics = advance.call(trainer, inputs, progress, size)
        found.append(metrics)
    return trainer, inputs, progress, found


def leaves(state):
    """The arrays of a state without its keys."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [x for x in jax.tree.leaves(state) if not is_key(x)]


def followed(trained, monkeypatch, hold):
    """The order in which calls in turn began and were fetched, and what they gave."""
    trainer, inputs, *_ = trained
    order, fetch = [], advance.fetch

    def train(*args, num_steps):
        order.append(f"begin {num_steps}")
        return trainer.train(*args, num_steps=num_steps)

    def noted(before, size, *args):
        order.append(f"fetch {size}")
        return fetch(before, size, *args)

    monkeypatch.setattr(advance, "fetch", noted)
    start = advance.begin(trainer, inputs)
    found = list(advance.calls(SimpleNamespace(train=train), inputs, start, (3, 3, 1), hold))
    return order, found


@pytest.mark.parametrize(
    ("held", "order"),
    [
        ((), ["begin 3", "begin 3", "fetch 3", "begin 1", "fetch 3", "fetch 1"]),
        ((0,), ["begin 3", "fetch 3", "begin 3", "begin 1", "fetch 3", "fetch 1"]),
        ((0, 1), ["begin 3", "fetch 3", "begin 3", "fetch 3", "begin 1", "fetch 1"]),
    ],
    ids=["never", "once", "always"],
)
def test_calls_in_turn_are_the_same_whenever_they_begin(trained, monkeypatch, held, order):
    _, _, end, expected = trained
    asked = iter(range(3))
    begun, found = followed(trained, monkeypatch, lambda: next(asked) in held)
    assert begun == order
    progress, metrics = zip(*found, strict=True)
    assert [x.update for x in progress] == [3, 6, 7]
    assert [x.state is not None for x in progress] == [0 in held, 1 in held, True]
    jax.tree.map(np.testing.assert_array_equal, list(metrics), expected)
    jax.tree.map(np.testing.assert_array_equal, leaves(progress[-1].state), leaves(end.state))
    np.testing.assert_array_equal(progress[-1].env_steps, metrics[-1]["env_steps"][:, -1])


def test_no_calls_give_nothing(trained):
    trainer, inputs, *_ = trained
    assert not list(advance.calls(trainer, inputs, advance.begin(trainer, inputs), ()))


@pytest.mark.parametrize(
    ("per_call", "update", "expected"),
    [(3, 0, [3, 3, 1]), (3, 3, [3, 1]), (3, 5, [2]), (9, 0, [7]), (3, 7, [])],
)
def test_the_last_call_makes_what_remains(per_call, update, expected):
    config = Config(num_updates=7, updates_per_call=per_call)
    assert list(advance.sizes(config, update)) == expected
