"""Searches: what Optuna asks for is what is run, whatever happens on the way."""

import builtins
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optuna
import pytest
import xarray as xr
from optuna.trial import TrialState

from pgjax.lab import advance, directory, statistics
from pgjax.lab.config import Config
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import dataset, design, report, run, search, study
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.run import Store
from pgjax.lab.sweep.settings import Sweep

from ..killing import KilledError, kill_at

RATE, DISCOUNT = Range(0.01, 1.0, "log"), Range(0.9, 1.0)
TRIALS, BATCH, UPDATES = 5, 2, 6


def made(folder, name="search", axes=None, fields=None, **options):
    """A search of two hyperparameters, whose last batch is half full."""
    base = Config(
        env="ShortCorridor",
        policy="tabular",
        horizon=12,
        num_episodes=4,
        num_updates=UPDATES,
        evaluation_episodes=5,
        seeds=2,
        name=name,
        directory=str(folder / "runs"),
    )
    base = dataclasses.replace(base, **fields or {})
    swept = {"learning_rate": RATE, "discount": DISCOUNT} if axes is None else axes
    return Sweep(base, swept, **{"search": "tpe", "trials": TRIALS, "batch": BATCH} | options)


def begun(sweep, **limits):
    """Starts a search."""
    return run.start(search.prepare(sweep, **limits))


def ended(sweep, **limits):
    """Carries a search out; its directory, and its dataset."""
    started = begun(sweep, **limits)
    assert search.follow(started) is None
    return started.store, dataset.load(started.store.path)


def trials_of(sweep, store):
    """The trials of a study, as the study has them."""
    return study.opened(sweep, store.study).get_trials()


def told(sweep, store):
    """What was tried and how it did, in order, without trials that a kill tore."""
    found = trials_of(sweep, store)
    return [(x.params, x.value, x.state) for x in found if x.state != TrialState.FAIL]


def assert_same(found, expected):
    """Results are equal, whatever time they took."""
    xr.testing.assert_equal(found.drop_vars("seconds"), expected.drop_vars("seconds"))


def assert_as_in_a_grid(folder, sweep, found):
    """Runs of every trial have the curves of the same configs in a grid, as far as they go."""
    base = dataclasses.replace(sweep.base, directory=str(folder))
    grid = Sweep(base, {name: tuple(found[name].values.tolist()) for name in sweep.axes})
    started = run.start(run.prepare(grid))
    assert run.follow(started) is None
    expected = dataset.load(started.store.path)
    for index in range(found.sizes["configuration"]):
        own, same = found.isel(configuration=index), dict.fromkeys(sweep.axes, index)
        for name in ("return", "param_norm", "env_steps", "evaluation_return"):
            values = own[name].values
            kept = np.isfinite(values)
            assert kept.all() or own["pruned"].values.all()
            theirs = expected[name].isel(same).values
            np.testing.assert_allclose(values[kept], theirs[kept], rtol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function that gives a finished search of a kind: sweep, directory, dataset."""
    known = {}

    def get(kind):
        if kind not in known:
            sweep = made(tmp_path_factory.mktemp(kind), search=kind)
            known[kind] = (sweep, *ended(sweep))
        return known[kind]

    return get


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A finished search that stopped some trials early: sweep, directory, dataset."""
    sweep = made(tmp_path_factory.mktemp("pruned"), prune=True, trials=9)
    return sweep, *ended(sweep)


@pytest.fixture
def carried(monkeypatch):
    """The runs that were carried out to their end."""
    original, found = chunks.carry_out, []

    def carry_out(*args, indices, **kwargs):
        result = original(*args, indices=indices, **kwargs)
        found.extend(indices if result is not None else [])
        return result

    monkeypatch.setattr(chunks, "carry_out", carry_out)
    return found


@pytest.mark.parametrize("kind", ["tpe", "cmaes", "random"])
def test_the_dataset_holds_what_the_study_holds(undisturbed, kind):
    sweep, store, found = undisturbed(kind)
    assert found["evaluation_return"].dims == ("configuration", "seed")
    assert found.attrs["design"] == kind
    trials = trials_of(sweep, store)
    assert [x.state for x in trials] == [TrialState.COMPLETE] * TRIALS
    for name, axis in sweep.axes.items():
        values = [x.params[name] for x in trials]
        np.testing.assert_array_equal(found[name], values)
        assert all(axis.low <= value <= axis.high for value in values)
        assert len(set(values)) == TRIALS
    scores = found["evaluation_return"].values
    np.testing.assert_array_equal([x.value for x in trials], [statistics.iqm(x) for x in scores])
    assert found["finished"].all()


def test_a_trial_is_what_its_config_gives_in_a_grid(undisturbed, tmp_path):
    sweep, _, found = undisturbed("cmaes")
    assert_as_in_a_grid(tmp_path, sweep, found.isel(configuration=[1, TRIALS - 1]))


def test_the_seed_of_a_search_decides_what_it_draws(undisturbed, tmp_path):
    sweep, _, found = undisturbed("random")
    first = {}
    for seed in (0, 1):
        other = dataclasses.replace(sweep, design_seed=seed)
        opened = study.opened(other, tmp_path / f"{seed}.db")
        study.ask(opened, other, tmp_path, 2)
        first[seed] = [x.values["learning_rate"] for x in study.own(opened, other, tmp_path)]
    np.testing.assert_array_equal(first[0], found["learning_rate"][:2])
    assert set(first[0]).isdisjoint(first[1])


def test_values_are_of_the_type_and_range_of_their_fields(tmp_path):
    swept = {
        "learning_rate": RATE,
        "num_episodes": Range(2, 9, "log"),
        "lambda_": Range(0, 1),
        "hidden": ((8,), (16, 16)),
        "max_grad_norm": (None, 0.5),
    }
    sweep = made(tmp_path, axes=swept, trials=30, search="random")
    opened = study.opened(sweep, tmp_path / "study.db")
    study.ask(opened, sweep, tmp_path, 100)
    found = study.own(opened, sweep, tmp_path)
    assert len(found) == 30
    drawn = {name: [trial.values[name] for trial in found] for name in swept}
    assert all(type(x) is int and 2 <= x <= 9 for x in drawn["num_episodes"])
    assert {2, 3} < set(drawn["num_episodes"])
    assert all(type(x) is float and 0 <= x <= 1 for x in drawn["lambda_"])
    assert np.median(drawn["learning_rate"]) < 0.25  # of a linear range it would be 0.5
    assert set(drawn["hidden"]) == {(8,), (16, 16)}
    assert set(drawn["max_grad_norm"]) == {None, 0.5}


@pytest.mark.parametrize(
    ("prune", "groups"),
    [
        (True, 1),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 2, marks=pytest.mark.slow),
    ],
)
def test_a_search_compiles_its_training_once_a_group(tmp_path, caplog, prune, groups):
    # Choices of their own: no other test has compiled them.
    choices = {"max_grad_norm": (None, 0.5)} if groups == 2 else {}
    fields = {"num_episodes": 5 + prune + groups, "num_updates": 4}
    sweep = made(tmp_path, axes={"learning_rate": RATE} | choices, fields=fields, prune=prune)
    started = begun(sweep)
    assert len(started.plan.programs) == groups
    with jax.log_compiles():
        assert search.follow(started) is None
    found = dataset.load(started.store.path)
    assert np.isfinite(found["return"][:, :, 0]).all()
    assert found.sizes["configuration"] == TRIALS
    assert all(len(set(found[name].values)) == 2 for name in choices)
    for name in ("train", "evaluate"):
        # Preparing has compiled them, in threads whose messages do not come here.
        assert sum(f"XLA compilation of jit({name})" in x for x in caplog.messages) == 0


@pytest.mark.parametrize(
    ("kind", "module", "name", "call", "before"),
    [
        pytest.param(
            *("tpe", directory, "make", 1, False), marks=pytest.mark.slow
        ),  # nothing was asked for
        pytest.param(
            *("tpe", optuna.Study, "ask", 4, False), marks=pytest.mark.slow
        ),  # asked for, and not known whose it is
        ("random", optuna.trial.Trial, "_suggest", 4, True),  # asked for in part
        pytest.param("tpe", study, "ask", 2, False, marks=pytest.mark.slow),
        ("cmaes", advance, "fetch", 8, False),  # amid the second batch
        pytest.param(
            *("tpe", chunks, "final", 2, True), marks=pytest.mark.slow
        ),  # all its updates are made
        ("tpe", study, "tell", 3, True),  # the second batch has results, none is told
        ("cmaes", study, "tell", 3, False),  # told in part
        pytest.param(*("random", study, "tell", 4, False), marks=pytest.mark.slow),  # told in full
    ],
)
def test_a_killed_search_ends_as_if_never_killed(
    undisturbed, tmp_path, monkeypatch, carried, kind, module, name, call, before
):
    expected_sweep, expected_store, expected = undisturbed(kind)
    carried.clear()
    numbers, tell = [], study.tell
    monkeypatch.setattr(
        study, "tell", lambda *args: (tell(*args), numbers.append(args[1])) and None
    )
    sweep = made(tmp_path, search=kind)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, module, name, call, before)
        search.follow(begun(sweep), save_every=0)
    path = f"{sweep.base.directory}/search"
    assert search.follow(search.resume(path)) is None
    store = Store(Path(path))
    assert told(sweep, store) == told(expected_sweep, expected_store)
    assert_same(dataset.load(path), expected)
    assert len(numbers) == len(set(numbers)) == TRIALS
    assert sorted(carried) == [(c, s) for c in range(TRIALS) for s in range(2)]


def test_a_search_at_its_end_is_not_carried_out_again(tmp_path, carried):
    sweep = made(tmp_path, trials=2)
    store, found = ended(sweep)
    carried.clear()
    assert search.follow(search.resume(store.path)) is None
    assert carried == []
    assert_same(dataset.load(store.path), found)
    assert len(trials_of(sweep, store)) == 2


def test_a_resumed_search_is_as_wide_as_it_was(tmp_path, monkeypatch):
    started = begun(made(tmp_path))
    assert started.store.widths.read_text() == "[4]"
    started.store.widths.write_text("[3]")
    asked = []
    monkeypatch.setattr(search.plans, "compiled", lambda *_, at_once, **__: asked.append(at_once))
    search.resume(started.store.path)
    search.resume(started.store.path, at_once=2)
    assert asked == [[3], 2]


def test_a_signal_stops_a_search_and_it_goes_on(undisturbed, tmp_path, monkeypatch, capsys):
    original, calls = advance.fetch, []

    def interrupting(*args):
        calls.append(args)
        if len(calls) == UPDATES + 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    sweep = made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(advance, "fetch", interrupting)
        started = begun(sweep)
        assert search.follow(started) == signal.SIGTERM
    assert f"continue with: pgjax sweep --resume {started.store.path}\n" in capsys.readouterr().out
    assert dataset.load(started.store.path)["finished"].sum() == 4
    assert search.follow(search.resume(started.store.path)) is None
    assert_same(dataset.load(started.store.path), undisturbed("tpe")[2])


def test_pruned_trials_stop_and_others_take_their_places(pruned):
    sweep, store, found = pruned
    trials = trials_of(sweep, store)
    stopped = np.array([x.state == TrialState.PRUNED for x in trials])
    assert len(trials) == 9 and 2 <= stopped.sum() < 9
    np.testing.assert_array_equal(found["pruned"], np.repeat(stopped[:, None], 2, axis=1))
    np.testing.assert_array_equal(found["finished"], found["pruned"] == 0)
    np.testing.assert_array_equal(np.isnan(found["evaluation_return"]), found["pruned"])
    lengths = [x.last_step if x.state == TrialState.PRUNED else UPDATES for x in trials]
    made_updates = np.isfinite(found["param_norm"]).values
    expected = np.arange(UPDATES) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(made_updates, np.repeat(expected[:, None], 2, axis=1))
    assert made_updates.sum() < made_updates.size
    for index, trial in enumerate(trials):
        # What was reported is the interquartile mean of the last returns at every update.
        returns = found["return"].values[index]
        for update, value in trial.intermediate_values.items():
            assert value == pytest.approx(statistics.iqm(returns[:, update - 1]))


def test_pruning_changes_no_curve(pruned, tmp_path):
    sweep, _, found = pruned
    stopped = found["pruned"].values[:, 0] == 1
    # The last of either kind: their places were others' before.
    some = [int(np.flatnonzero(which)[-1]) for which in (stopped, ~stopped)]
    assert_as_in_a_grid(tmp_path, sweep, found.isel(configuration=some))


@pytest.mark.parametrize(
    ("module", "name", "call", "before"),
    [
        (advance, "fetch", 9, False),
        (study, "is_bad", 12, False),
        pytest.param(
            *(chunks, "write", 3, False), marks=pytest.mark.slow
        ),  # there are results, they are not told
        pytest.param(study, "stop", 1, True, marks=pytest.mark.slow),
        pytest.param(*(study, "ask", 4, False), marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_that_prunes_is_completed(
    tmp_path, monkeypatch, module, name, call, before
):
    sweep = made(tmp_path, prune=True, trials=7)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, module, name, call, before)
        search.follow(begun(sweep))
    store = Store(Path(sweep.base.directory) / "search")
    finished = [x for x in trials_of(sweep, store) if x.state.is_finished()]
    assert search.follow(search.resume(store.path)) is None
    trials = [x for x in trials_of(sweep, store) if x.state != TrialState.FAIL]
    assert [x for x in trials if x.number in {y.number for y in finished}] == finished
    found = dataset.load(store.path)
    assert len(trials) == found.sizes["configuration"] == 7
    assert all(x.state.is_finished() for x in trials)
    stopped = np.array([x.state == TrialState.PRUNED for x in trials])
    np.testing.assert_array_equal(found["pruned"][:, 0], stopped)
    np.testing.assert_array_equal(found["finished"][:, 0], ~stopped)
    np.testing.assert_array_equal(np.isfinite(found["param_norm"][:, 0, -1]), ~stopped)


def test_a_batch_may_be_larger_than_the_search(tmp_path):
    for prune in (False, True):
        _, found = ended(made(tmp_path, f"prune-{prune}", prune=prune, trials=1))
        assert found["finished"].shape == (1, 2) and found["finished"].all()


def test_calls_of_several_updates_are_reported_at_their_ends(tmp_path):
    sweep = made(tmp_path, fields={"updates_per_call": 3}, prune=True, trials=3)
    store, found = ended(sweep)
    for trial in trials_of(sweep, store):
        assert set(trial.intermediate_values) == {3}
    assert set(found["return"].notnull().sum("update").values.flat) <= {3, UPDATES}


@pytest.mark.parametrize(
    ("axes", "fields"),
    [(None, {"updates_per_call": 4}), ({"num_updates": Range(4, 8)}, {"updates_per_call": 2})],
)
def test_a_trial_cannot_end_amid_a_call(tmp_path, axes, fields):
    sweep = made(tmp_path, axes=axes, fields=fields, prune=True)
    with pytest.raises(ValueError, match=r"num_updates=\d+ .*updates_per_call=[24]"):
        search.prepare(sweep)
    assert not (tmp_path / "runs").exists()


def test_trials_may_be_of_different_lengths(tmp_path):
    swept = {"num_updates": Range(2, 3), "learning_rate": RATE}
    _, found = ended(made(tmp_path, axes=swept, trials=4, search="random"))
    assert found.sizes["update"] == 3 and set(found["num_updates"].values) == {2, 3}
    lengths = found["return"].notnull().sum("update")
    np.testing.assert_array_equal(lengths, np.repeat(found["num_updates"].values[:, None], 2, 1))


def test_a_score_that_is_not_finite_fails_its_trial_and_the_search_goes_on(tmp_path, monkeypatch):
    original, calls = chunks.final, []

    def final(*args):
        calls.append(args)
        found = original(*args)
        return (
            found | {"evaluation_return": found["evaluation_return"] * np.nan}
            if len(calls) == 1
            else found
        )

    monkeypatch.setattr(chunks, "final", final)
    sweep = made(tmp_path)
    store, found = ended(sweep)
    states = [x.state for x in trials_of(sweep, store)]
    assert states == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 3
    assert found.sizes["configuration"] == TRIALS
    assert np.isnan(found["evaluation_return"][:2]).all()
    assert (store.path / "best.yaml").is_file()


def test_a_search_whose_scores_are_never_finite_ends(tmp_path, monkeypatch):
    original = chunks.final
    monkeypatch.setattr(
        chunks, "final", lambda *args: original(*args) | {"evaluation_return": np.full(4, np.nan)}
    )
    sweep = made(tmp_path, trials=3)
    store, found = ended(sweep)
    assert [x.state for x in trials_of(sweep, store)] == [TrialState.FAIL] * 3
    assert np.isnan(found["evaluation_return"]).all()
    assert not (store.path / "best.yaml").exists()


def test_workers_one_after_the_other_share_a_storage(tmp_path, monkeypatch, carried, capsys):
    storage = str(tmp_path / "journal.log")
    first, second, third = (
        made(tmp_path, name, storage=storage) for name in ("first", "second", "third")
    )
    begun_second = begun(second)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, study, "ask", 2)
        search.follow(begun(first))
    assert search.follow(begun_second) is None
    assert search.follow(search.resume(f"{first.base.directory}/first")) is None
    assert len(carried) == len(
        set(carried) | {(c, s, "second") for c in range(1) for s in range(2)}
    )
    stores = [Store(Path(first.base.directory) / name) for name in ("first", "second")]
    rates = [dataset.load(store.path)["learning_rate"].values for store in stores]
    assert [len(x) for x in rates] == [4, 1]
    trials = trials_of(first, stores[0])
    assert sorted(np.concatenate(rates)) == sorted(x.params["learning_rate"] for x in trials)
    assert [x.state for x in trials] == [TrialState.COMPLETE] * TRIALS
    capsys.readouterr()
    assert search.follow(begun(third)) is None  # nothing is left for it
    assert f"other workers have had all {TRIALS} trials" in capsys.readouterr().out
    assert len(trials_of(first, stores[0])) == TRIALS


def test_workers_that_ask_at_once_do_not_draw_the_same(tmp_path, monkeypatch):
    sweep = made(tmp_path, storage=str(tmp_path / "journal.log"), search="random")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    opened, other = (study.opened(sweep, tmp_path) for _ in range(2))
    original, calls = optuna.Study.ask, []

    def ask(self, *args, **kwargs):
        calls.append(self)
        if len(calls) in (1, 5):  # just before this one is drawn, another worker asks
            study.ask(other, sweep, theirs, 1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "ask", ask)
    study.ask(opened, sweep, ours, 100)
    found = [study.own(opened, sweep, where) for where in (ours, theirs)]
    assert [len(x) for x in found] == [TRIALS - 2, 2]
    rates = [x.values["learning_rate"] for x in found[0] + found[1]]
    assert len(set(rates)) == TRIALS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"search": "magic"}, "search='magic'"),
        ({"axes": {"learning_rate": Range(0.1, 1.0, "log", 3)}}, "learning_rate needs no number"),
        ({"axes": {"max_grad_norm": (None, 1.0)}, "search": "cmaes"}, "max_grad_norm is a list"),
        ({"axes": {}}, "needs something to sweep"),
        ({"trials": 0}, "trials=0"),
        ({"batch": 0}, "batch=0"),
        ({"batch": -3}, "batch=-3"),
        ({"axes": {"discount": Range(0.5, 1.5)}}, "discount=1.5"),
        ({"axes": {"discount": Range(-0.5, 0.5)}}, "discount=-0.5"),
        ({"storage": "nonsense://somewhere"}, "storage='nonsense://somewhere'"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "storage='sqlite:////nowhere/at/all.db'"),
        ({"storage": "/nowhere/at/all/journal.log"}, "storage='/nowhere/at/all/journal.log'"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused(tmp_path, changes, match):
    with pytest.raises(ValueError, match=re.escape(match)):
        search.prepare(made(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_pruning_holds_all_seeds_of_a_trial(tmp_path):
    with pytest.raises(ValueError, match="all seeds of a trial at once: 2 do not fit, only 1"):
        search.prepare(made(tmp_path, prune=True), at_once=1)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_leaves_no_storage(tmp_path):
    begun(made(tmp_path))
    with pytest.raises(ValueError, match="continue it with --resume"):
        search.prepare(made(tmp_path, storage=str(tmp_path / "journal.log")))
    assert [x.name for x in tmp_path.iterdir()] == ["runs"]


def test_a_search_that_is_followed_is_not_followed_twice(tmp_path):
    started = begun(made(tmp_path))
    with directory.locked(started.store.path):
        attempts = (lambda: search.resume(started.store.path), lambda: search.follow(started))
        for attempt in attempts:
            with pytest.raises(ValueError, match="in use by another process"):
                attempt()


@pytest.mark.parametrize(("package", "kind"), [("optuna", "tpe"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, kind):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    message = f"search='{kind}' needs {package}: pip install 'pgjax[search]'"
    with pytest.raises(ValueError, match=re.escape(message)):
        search.prepare(made(tmp_path, search=kind))
    assert list(tmp_path.iterdir()) == []


def test_a_search_with_pruned_trials_is_reported(pruned, tmp_path):
    _, _, found = pruned
    text, *rest = report.write(found, tmp_path / "report")
    num = int(found["pruned"].sum()) // 2
    assert text.read_text().count(": seed 0, 1") == num  # all of them, and no other
    assert all(file.stat().st_size for file in rest)


def written(tmp_path, name, **options):
    """A search in a file, long enough to be killed."""
    sweep = made(tmp_path, name, fields={"num_updates": 100}, **options)
    file = tmp_path / f"{name}.yaml"
    file.write_text(design.dump(sweep))
    return sweep, file, Store(Path(sweep.base.directory) / name)


def command(*arguments):
    """A process of its own."""
    argv = [sys.executable, "-m", "pgjax", "sweep", "--save-every", "0", *map(str, arguments)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_process_killed_in_its_second_batch_ends_as_if_never_killed(tmp_path):
    straight, file, expected = written(tmp_path, "straight")
    assert command("--config", file).wait() == 0
    sweep, file, store = written(tmp_path, "killed")
    with command("--config", file) as process:
        while process.poll() is None and len(list(store.chunks.glob("*"))) < 2:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert command("--resume", store.path).wait() == 0
    assert told(sweep, store) == told(straight, expected)
    assert_same(dataset.load(store.path), dataset.load(expected.path))


@pytest.mark.slow
@pytest.mark.parametrize("prune", [False, True])
def test_two_processes_share_a_search(tmp_path, prune):
    storage = str(tmp_path / "journal.log")
    options = {"storage": storage, "trials": 12, "prune": prune}
    prepared = [written(tmp_path, name, **options) for name in ("first", "second")]
    processes = [command("--config", file) for _, file, _ in prepared]
    assert [process.wait() for process in processes] == [0, 0]
    sweep, _, store = prepared[0]
    trials = [x for x in trials_of(sweep, store) if x.state != TrialState.FAIL]
    assert len(trials) == 12 and all(x.state.is_finished() for x in trials)
    rates = [dataset.load(store.path)["learning_rate"].values for *_, store in prepared]
    assert sorted(np.concatenate(rates)) == sorted(x.params["learning_rate"] for x in trials)
    assert len(set(np.concatenate(rates))) == 12
