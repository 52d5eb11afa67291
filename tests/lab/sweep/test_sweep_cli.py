"""`pgjax sweep`: what it does, and one clear line for whatever the user got wrong."""

import contextlib
import dataclasses
import json
import signal

import pytest

from pgjax.lab import cli, config, directory, machine
from pgjax.lab.config import Config
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import dataset, design, plan, run
from pgjax.lab.sweep import program as programs
from pgjax.lab.sweep.settings import OPTIONS

TINY = (
    "--env ShortCorridor --policy tabular --horizon 12 --num-episodes 4 --num-updates 6 "
    "--updates-per-call 2 --evaluation-episodes 5 --seeds 2 --learning-rate 0.03,0.1,0.3 "
    "--at-once 2"
).split()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty directory."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def refuse(capsys, *argv):
    """Runs a sweep that must be refused; returns the one line that says why."""
    assert cli.main(["sweep", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("pgjax: error: ")
    return err


BAD = {
    "--learning-rat 0.1": "--learning-rat",
    "--learning-rate 1e-2..1e-1:log": "needs its number of levels",
    "--learning-rate 0..1:log:3": "through zero",
    "--learning-rate 1..1:3": "empty range",
    "--learning-rate a..b:3": "from a number to a number",
    "--learning-rate 0.1,0.1": "twice",
    "--learning-rate [": "learning_rate='['",
    "--form gae,reward_to_come": "did you mean 'reward_to_go'",
    "--form total_return,reward_to_go --baseline value": "total_return",
    "--discount 0.5,1.5": "discount=1.5",
    "--env CartPole-v1,CartPol-v1": "did you mean 'CartPole-v1'",
    "--env-params gravty 9,10": "did you mean 'gravity'",
    "--env-params gravity 9,heavy": "gravity",
    "--env-params gravity": "--env-params",
    "--seeds 1,2": "seeds='1,2' must be of type int (it cannot be swept)",
    "--seeds 0 --discount 0.5,1": "seeds=0",
    "--seed 4294967295 --seeds 2": "seed=4294967295",
    "--num-updates 4,0": "num_updates=0",
    "--name a/b": "name='a/b'",
    "--name [a/": "name='[a/'",
    "--directory /dev/null": "/dev/null",
    "--design gird": "did you mean 'grid'",
    "--design sobol --discount 0..1": "needs a number of configurations",
    "--design random --configurations 3": "needs something to sweep",
    "--design random --configurations 0 --discount 0..1": "configurations=0",
    "--configurations 3 --discount 0.5,1": "configurations=3",
    "--discount 0..1:10000 --lambda 0..1:10000": "100,000,000 runs",
    "--discount 0..1:1000 --num-updates 1000000 --memory-limit 1G": "the design is too large",
    "--memory-limit many": "memory_limit='many'",
    "--memory-limit 0": "memory_limit='0'",
    "--memory-limit 5k --num-updates 1": "memory_limit=5 kB is too little",
    "--at-once 0": "at_once=0",
    "--config absent.yaml": "absent.yaml",
    "--resume absent": "no sweep at absent",
    "--resume absent --discount 0.5,1": "--resume goes by the sweep's own settings",
    "--resume absent --config absent.yaml": "--resume goes by the sweep's own settings",
    "--resume absent --env-params g 1": "--resume goes by the sweep's own settings",
    "--resume absent --design-seed 0": "--resume goes by the sweep's own settings",
}


@pytest.mark.parametrize("arguments", BAD)
@pytest.mark.parametrize("extra", [[], ["--dry-run"]], ids=["", "dry"])
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    arguments, extra, capsys, elsewhere, monkeypatch
):
    # Nothing needs to be compiled to find out.
    kilobytes = lambda placed, inputs, config: 10_000 * len(inputs.init)
    monkeypatch.setattr(programs.parallel, "memory", kilobytes)
    assert BAD[arguments] in refuse(capsys, *arguments.split(), *extra)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["- 1", "a: [", "learning_rat: 3", "discount: [0.5, 1.5]", "seeds: [1, 2]"]
)
def test_a_bad_file_is_refused(text, capsys, elsewhere):
    (elsewhere / "mine.yaml").write_text(text)
    refuse(capsys, "--config", "mine.yaml")
    assert [path.name for path in elsewhere.iterdir()] == ["mine.yaml"]


@pytest.fixture
def sweeps(monkeypatch):
    """The sweeps that would have been prepared."""
    found = []

    def prepare(sweep, **limits):
        found.append((sweep, limits))
        raise ValueError("not today")

    monkeypatch.setattr(run, "prepare", prepare)
    return found


def test_flags_become_the_sweep(sweeps, capsys):
    refuse(
        capsys,
        *"--env Pendulum-v1 --hidden 8x8,4 --lambda 0.5..1:3 --max-grad-norm None,1 --seeds 3 "
        "--env-params g 9..11:2 max_torque 1.5 --design random --configurations 4 "
        "--memory-limit 1.5G --at-once 7".split(),
    )
    ((sweep, limits),) = sweeps
    expected = design.parse(
        {
            "env": "Pendulum-v1",
            "hidden": [[8, 8], [4]],
            "lambda": "0.5..1:3",
            "max_grad_norm": [None, 1],
            "seeds": 3,
            "env_params": {"g": "9..11:2", "max_torque": 1.5},
            "design": "random",
            "configurations": 4,
        }
    )
    assert sweep == expected and set(sweep.axes) == set(expected.axes)
    assert limits == {"memory_limit": 1_500_000_000, "at_once": 7}


def test_flags_override_the_file_and_the_file_the_defaults(sweeps, capsys, elsewhere):
    (elsewhere / "mine.yaml").write_text(
        "seeds: 3\nlambda: [0.5, 0.6]\ndiscount: 0.5..1:3\nenv_params: {gravity: [9, 10]}\n"
        "design_seed: 4\n"
    )
    given = "--lambda 0.9 --discount 0.5,0.7 --env-params gravity 8 --design-seed 0"
    refuse(capsys, "--config", "mine.yaml", *given.split())
    ((sweep, _),) = sweeps
    assert sweep.base == Config(seeds=3, lambda_=0.9, env_params={"gravity": 8})
    assert sweep.axes == {"discount": (0.5, 0.7)}
    assert sweep.design_seed == 0


def test_everything_that_can_be_chosen_is_a_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["sweep", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for name in (*(field.name for field in dataclasses.fields(Config)), *OPTIONS):
        assert f"--{name.replace('_', '-').rstrip('-')}" in text, name


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(capsys, elsewhere):
    assert cli.main(["sweep", *TINY, "--name", "mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "3 configurations (grid, 3 learning_rate) x 2 seeds = 6 runs, in 1 group of one program"
    )
    assert out.splitlines()[2].split()[:5] == ["1", "-", "6", "2", "3"]
    assert list(elsewhere.iterdir()) == []


def test_a_sweep_from_beginning_to_end(capsys, elsewhere, monkeypatch, undisturbed):
    original = chunks.carry_out

    def interrupting(*args, observe, **kwargs):
        def observing(update, found):
            observe(update, found)
            if not update:  # a second signal would end the process
                signal.raise_signal(signal.SIGTERM)

        return original(*args, observe=observing, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "carry_out", interrupting)
        assert cli.main(["sweep", *TINY, "--name", "mine"]) == 143
    assert "continue with: pgjax sweep --resume runs/mine" in capsys.readouterr().out

    before = sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*"))
    assert "runs/mine holds this sweep already; continue it with --resume runs/mine" in refuse(
        capsys, *TINY, "--name", "mine"
    )
    assert "runs/mine holds a different sweep; choose another --name" in refuse(
        capsys, *TINY, "--name", "mine", "--num-updates", "5"
    )
    assert "--resume goes by" in refuse(capsys, "--resume", "runs/mine", "--num-updates", "5")
    assert cli.main(["sweep", "--resume", "runs/mine", "--dry-run"]) == 0
    assert "6 runs" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*")) == before

    assert cli.main(["sweep", "--resume", "runs/mine"]) == 0
    out = capsys.readouterr().out
    assert "no run diverged\nbest: learning_rate=" in out
    assert out.splitlines()[-1].startswith("runs/mine: best.yaml, chunks, sweep.nc")
    found, expected = dataset.load("runs/mine"), undisturbed[1]
    assert found.drop_vars("seconds").equals(expected.drop_vars("seconds"))
    assert json.loads((elsewhere / "runs/mine/widths.json").read_text()) == [2]
    assert config.load("runs/mine/best.yaml").seeds == 2


def test_the_figures_of_a_sweep_are_drawn_whatever_is_named_beside_it(undisturbed, elsewhere):
    (elsewhere / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match="passed over notes.txt"):
        assert cli.main(["plot", "notes.txt", str(undisturbed[0].path), "--output", "figures"]) == 0
    assert list((elsewhere / "figures").iterdir())


def test_a_train_run_is_not_taken_for_a_sweep(finished, capsys, elsewhere):
    assert f"no sweep at {finished.path}" in refuse(capsys, "--resume", str(finished.path))
    parent, name = str(finished.path.parent), finished.path.name
    before = sorted(path.name for path in finished.path.iterdir())
    assert "exists" in refuse(capsys, *TINY, "--directory", parent, "--name", name)
    assert sorted(path.name for path in finished.path.iterdir()) == before
    assert list(elsewhere.iterdir()) == []


def test_a_sweep_that_is_followed_elsewhere_is_refused(capsys, undisturbed):
    store, _ = undisturbed
    with directory.locked(store.path):
        assert "in use by another process" in refuse(capsys, "--resume", str(store.path))


def test_a_sweep_that_another_process_takes_during_planning_is_refused(
    capsys, undisturbed, monkeypatch
):
    store, _ = undisturbed
    with contextlib.ExitStack() as stack:

        def describe(_):
            stack.enter_context(directory.locked(store.path))
            return "planned"

        monkeypatch.setattr(plan, "describe", describe)
        assert cli.main(["sweep", "--resume", str(store.path)]) == 2
    out, err = capsys.readouterr()
    assert out == "planned\n"
    assert err == f"pgjax: error: run {store.path} is in use by another process\n"


def test_mistakes_of_ours_are_not_blamed_on_the_user(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(machine, "parse_bytes", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["sweep", "--memory-limit", "1G"])
