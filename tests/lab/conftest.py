"""A run small enough to make often, and one that was followed to its end."""

import dataclasses
import functools

import pytest

from pgjax.lab import config, experiment, parallel, run

TINY = config.Config(
    env="ShortCorridor",
    policy="tabular",
    form="gae",
    baseline="value",
    horizon=12,
    num_episodes=4,
    num_updates=7,
    updates_per_call=2,
    checkpoint_every=2,
    max_grad_norm=1.0,
    seeds=2,
    evaluation_episodes=5,
    name="tiny",
)


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Runs of the same choices share compiled programs; otherwise the tests would only compile."""
    build, over_runs, built = experiment.build, parallel.over_runs, {}

    def build_once(settings, mesh=None):
        choices = run.identity(dataclasses.replace(settings, seed=0, seeds=1)), mesh
        if choices not in built:
            built[choices] = build(settings, mesh)
        return built[choices]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build", build_once)
        patch.setattr(parallel, "over_runs", functools.cache(over_runs))
        yield


@pytest.fixture
def tiny(tmp_path):
    """The config of a small run in a directory of its own."""
    return dataclasses.replace(TINY, directory=str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run at its end; look, don't touch."""
    settings = dataclasses.replace(TINY, directory=str(tmp_path_factory.mktemp("finished")))
    started = run.start(settings)
    assert run.follow(started) is None
    return started.directory
