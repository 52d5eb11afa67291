"""A sweep small enough to make often, and one that was carried out undisturbed."""

import dataclasses

import jax
import pytest

from pgjax.lab import machine
from pgjax.lab.config import Config
from pgjax.lab.sweep import dataset, plan, run
from pgjax.lab.sweep.settings import Sweep

RATES = (0.03, 0.1, 0.3)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Keeps what a test finds independent of whether another has told JAX of more devices."""
    monkeypatch.setattr(machine, "devices", lambda: jax.local_devices()[:1])


def made(folder, name="sweep"):
    """Three configurations of two seeds."""
    base = Config(
        env="ShortCorridor",
        policy="tabular",
        horizon=12,
        num_episodes=4,
        num_updates=6,
        updates_per_call=2,
        evaluation_episodes=5,
        seeds=2,
        name=name,
        directory=str(folder / "runs"),
    )
    return Sweep(base, {"learning_rate": RATES})


@pytest.fixture
def sweep(tmp_path):
    """A small sweep in a directory of its own."""
    return made(tmp_path)


@pytest.fixture
def changed(sweep):
    """A function that gives the small sweep with other axes and another base."""

    def change(axes=None, **fields):
        base = dataclasses.replace(sweep.base, **fields)
        return dataclasses.replace(sweep, base=base, axes=sweep.axes if axes is None else axes)

    return change


def begun(sweep, **limits):
    """Starts a sweep."""
    return run.start(plan.make(sweep, devices=jax.local_devices()[:1], **limits))


@pytest.fixture
def begin():
    """A function that starts a sweep."""
    return begun


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The small sweep at its end, two runs at once: its directory, and its dataset."""
    started = begun(made(tmp_path_factory.mktemp("undisturbed")), at_once=2)
    assert run.follow(started) is None
    return started.store, dataset.load(started.store.path)
