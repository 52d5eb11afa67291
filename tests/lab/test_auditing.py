"""Audits along a run: what is measured, what is left on disk, and what is refused."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

from pgjax import backends, exact
from pgjax.lab import auditing, cli, config, directory, run

SMALL = "--num-episodes 2 --replicates 40 --chunk-size 20 --value-updates 2".split()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty directory."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def refuse(capsys, argv):
    """Runs a command that must be refused; returns the one line that says why."""
    assert cli.main(["audit", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("pgjax: error: ")
    return err


BAD = {
    "--replicates 1": "an audit needs at least two replicates",
    "--replicates 0": "replicates=0",
    "--replicates 3000000000": "error: replicates=3000000000 must be at most",
    "--reference-replicates 3000000000": "reference_replicates=3000000000 must be at most",
    "--reference-replicates 1": "reference_replicates=1",
    "--num-episodes 1": "num_episodes=1 must be a whole number >= 2",
    "--num-episodes 0": "num_episodes=0",
    "--chunk-size 0": "chunk_size=0",
    "--value-updates 0": "value_updates=0",
    "--seed -1": "seed=-1",
    "--env CartPol-v1": "did you mean 'CartPole-v1'",
    "--estimators reward_to_come+none": "did you mean 'reward_to_go'",
    "--estimators reward_to_go+non": "did you mean 'none'",
    "--estimators reward_to_go+none+unform": "did you mean 'uniform'",
    "--estimators reward_to_go": "must be form+baseline",
    "--estimators gae+value,gae+value": "names one twice",
    "--estimators total_return+value": "total_return",
    "--checkpoint absent": "no run at absent",
    "--checkpoint absent --config c.yaml": "drop --config",
    "--config absent.yaml": "absent.yaml",
    "--output /dev/null": "cannot be written to",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_cannot_be_audited_is_one_line_and_leaves_nothing(arguments, capsys, elsewhere):
    assert BAD[arguments] in refuse(capsys, arguments.split())
    assert list(elsewhere.iterdir()) == []


def test_an_audit_is_not_written_over(capsys, elsewhere):
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "audit.nc").write_text("precious")
    assert "holds an audit already" in refuse(capsys, ["--output", "mine"])
    assert (elsewhere / "mine" / "audit.nc").read_text() == "precious"
    (elsewhere / "file").touch()
    assert "cannot be written to" in refuse(capsys, ["--output", "file"])


def test_the_environment_of_a_run_is_its_own(finished, capsys, elsewhere):
    why = refuse(capsys, ["--checkpoint", str(finished.path), "--env", "CartPole-v1"])
    assert "not that of the run, 'ShortCorridor'" in why


def test_a_run_without_intact_checkpoints_is_refused(finished, capsys, elsewhere):
    (elsewhere / "run").mkdir()
    (elsewhere / "run" / "config.yaml").write_text(finished.config.read_text())
    assert "no checkpoint" in refuse(capsys, ["--checkpoint", "run"])


def test_checkpoints_that_the_records_do_not_reach_are_passed_over(finished, elsewhere):
    where = directory.Directory(elsewhere / "run")
    shutil.copytree(finished.path, where.path)
    lines = where.metrics.read_text().splitlines(keepends=True)
    where.metrics.write_text("".join(lines[: 2 * 6]))  # two seeds a line each
    with pytest.warns(UserWarning, match="passed over update 7"):
        points = auditing._points(directory.find(where.path)[1], where.path)
    assert [point.update for point in points] == [0, 4, 6]


def test_checkpoints_of_a_run_are_audited_against_the_truth(finished, capsys, elsewhere):
    names = "reward_to_go+none,gae+value,reward_to_go+leave_one_out+uniform"
    argv = ["audit", "--checkpoint", str(finished.path), "--estimators", names]
    argv += "--num-episodes 2 --replicates 2000 --chunk-size 200 --output out/deep".split()
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert "the exact gradient" in out and "audit" in err
    assert "seed: 0, the first of 2" in out
    assert "gae+value: biased, unless the values are exact" in out
    place = elsewhere / "out" / "deep"
    assert sorted(path.name for path in place.iterdir()) == ["audit.nc", "audit.png"]
    assert (place / "audit.png").stat().st_size > 5000

    data = xr.load_dataset(place / "audit.nc", engine="h5netcdf")
    assert list(data["estimator"].values) == names.split(",")
    # The start, and the checkpoints that the run kept.
    assert list(data["update"].values) == [0, 4, 6, 7]
    assert data["env_steps"].values[0] == 0 and np.all(np.diff(data["env_steps"]) > 0)
    assert data["trace"].dims == ("estimator", "update", "bound")
    assert np.all(data["trace"].sel(bound="low") <= data["trace"].sel(bound="high"))
    assert np.all(data["trace_ratio"].sel(estimator="reward_to_go+none") == 1)
    assert np.all((data["p_value"] >= 0) & (data["p_value"] <= 1))
    # At discount one, state weighting changes nothing.
    assert list(data["unbiased"].values) == [True, False, True]
    assert config.parse(config.yaml.safe_load(data.attrs["config"])).env == "ShortCorridor"
    assert data.attrs["num_replicates"] == 2000

    # Tabular: the squared norm of the exact gradient at the run's own parameters.
    found, settings = directory.find(finished.path)
    points = auditing._points(settings, found.path)
    with jax.enable_x64(True):
        env = auditing.experiment.setting(settings)
        params = jax.tree.map(lambda x: np.asarray(x, float), points[-1].params["policy"])
        oracle = exact.exact_gradient(env.env.mdp, env.policy, env.hyper, horizon=env.horizon)
        truth = np.sum(np.square(np.asarray(oracle(jax.random.key(0), params)[0])))
    at = data.isel(update=-1).sel(estimator="reward_to_go+none")
    _, low, high = at["squared_norm"].values
    assert 0 < low < truth < high  # zero is not among what it could be


@pytest.mark.parametrize(
    ("platform", "precision", "said"),
    [("cuda", "float32", "HIGHEST"), ("tpu", "float32", "HIGHEST"), ("tpu", "bfloat16", "DEFAULT")],
)
def test_products_are_of_the_precision_of_the_config(platform, precision, said, laid_out):
    laid_out(backends.TPU if platform == "tpu" else backends.GPU)
    settings = config.Config(horizon=4, num_episodes=2, hidden=(4,), precision=precision)
    choices = auditing.Choices(("reward_to_go+value",), num_episodes=2, value_updates=1)
    ready = auditing.plan(settings, None, choices, Path("out"))
    key, params = jax.random.key(0), ready.points[0].params
    fitted = jax.eval_shape(auditing._fit(ready), key, params)
    (gradient_fn,) = ready.gradient_fns.values()
    for function, at in ((auditing._fit(ready), params), (gradient_fn, fitted)):
        text = jax.jit(function).trace(key, at).lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products and all(f"precision = [{said}, {said}]" in line for line in products)


ON_DEVICES = """
import sys
from pathlib import Path
import jax
from pgjax.lab import auditing, cli, machine

found = jax.devices()
assert len(found) == 2
# Values are fitted on episodes that only one device can have.
for num in (1, 2):
    machine.take = lambda: found[:num]
    assert (auditing._mesh(4) is None) == (num == 1) and auditing._mesh(3) is None
    argv = ["audit", "--config", "c.yaml", "--num-episodes", "4", "--replicates", "16",
            "--estimators", "reward_to_go+value", "--value-updates", "2", "--output", f"on-{num}"]
    assert cli.main(argv) == 0
"""


@pytest.mark.slow
def test_an_audit_is_the_same_on_any_number_of_devices(elsewhere):
    (elsewhere / "c.yaml").write_text("env: ShortCorridor\npolicy: tabular\nnum_episodes: 3\n")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", ON_DEVICES]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True)
    one, two = (
        xr.load_dataset(elsewhere / f"on-{num}" / "audit.nc", engine="h5netcdf") for num in (1, 2)
    )
    for name in ("trace", "squared_norm", "gradient_env_steps"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)


@pytest.mark.slow
def test_the_same_audit_gives_the_same_numbers(finished, capsys, elsewhere):
    argv = ["audit", "--checkpoint", str(finished.path), "--estimators", "gae+value", *SMALL]
    for output in ("one", "two"):
        assert cli.main([*argv, "--output", output]) == 0
    one, two = (
        xr.load_dataset(elsewhere / output / "audit.nc", engine="h5netcdf")
        for output in ("one", "two")
    )
    for name in ("trace", "squared_bias", "p_value"):
        np.testing.assert_array_equal(one[name], two[name])


def test_a_run_of_a_precision_that_this_device_lacks_can_be_looked_at(tiny, laid_out, capsys):
    laid_out(backends.TPU)
    settings = dataclasses.replace(tiny, precision="bfloat16", num_updates=1)
    started = run.start(settings)
    assert run.follow(started) is None
    laid_out(backends.CPU)
    path = str(started.directory.path)
    argv = ["audit", "--checkpoint", path, "--estimators", "reward_to_go+none", *SMALL]
    for command in (argv, ["evaluate", path, "--episodes", "2"], ["train", "--resume", path]):
        with pytest.warns(UserWarning, match="precision='bfloat16'.* computes in float32 here"):
            assert cli.main(command) == 0
    assert (started.directory.path / "audit" / "audit.nc").is_file()


def test_without_a_run_the_start_is_audited_with_fitted_values(capsys, elsewhere):
    (elsewhere / "c.yaml").write_text("policy: linear\nhorizon: 8\nnum_episodes: 4\n")
    argv = ["audit", "--config", "c.yaml", "--env", "CartPole-v1", *SMALL]
    argv += ["--estimators", "reward_to_go+value", "--reference-replicates", "60"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "reward_to_go+leave_one_out+discounted, 60 independent replicates" in out
    data = xr.load_dataset(elsewhere / "audit" / "audit.nc", engine="h5netcdf")
    assert list(data["update"].values) == [0] and data.attrs["env"] == "CartPole-v1"
    assert float(data["gradient_env_steps"].sel(bound="value").squeeze()) == 16


def test_a_run_keeps_as_many_checkpoints_as_it_is_told(tiny, finished):
    settings = dataclasses.replace(tiny, keep_checkpoints=5)
    assert run.identity(settings) == run.identity(tiny)
    started = run.start(settings)
    assert run.follow(started) is None
    points = auditing._points(settings, started.directory.path)
    assert [point.update for point in points] == [0, 2, 4, 6, 7]
    kept = auditing._points(config.load(finished.config), finished.path)
    assert [point.update for point in kept] == [0, 4, 6, 7]
