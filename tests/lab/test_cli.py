"""The command line: what it does, and one clear line for whatever the user got wrong."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

import pgjax
from pgjax.lab import cli, config, run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty directory."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def settings(monkeypatch):
    """The configs that `train` would have started."""
    started = []

    def start(settings, **_):
        started.append(settings)
        raise ValueError("not today")

    monkeypatch.setattr(run, "start", start)
    return started


def refuse(capsys, argv):
    """Runs a command that must be refused; returns the one line that says why."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("pgjax: error: ")
    return err


BAD = {
    "--env CartPol-v1": "did you mean 'CartPole-v1'",
    "--env MNISTBandit-bsuite": "download",
    "--env-params gravty 9": "did you mean 'gravity'",
    "--form reward_to_come": "did you mean 'reward_to_go'",
    "--baseline leave_on_out": "did you mean 'leave_one_out'",
    "--state-weighting discount": "did you mean 'discounted'",
    "--policy mpl": "did you mean 'mlp'",
    "--distribution norml": "did you mean 'normal'",
    "--activation tanhh": "did you mean 'tanh'",
    "--optimizer adma": "did you mean 'adam'",
    "--num-episodes -5": "num_episodes=-5",
    "--num-episodes 99999999999": "num_episodes=99999999999 must be at most 2147483647",
    "--horizon 99999999999": "horizon=99999999999",
    "--env-params max_steps_in_episode 99999999999": "max_steps_in_episode=99999999999",
    "--env-params gravity nan": "gravity=nan",
    "--learning-rate 1e400": "learning_rate=inf",
    "--seeds abc": "Error parsing --seeds: invalid literal for int() with base 10: 'abc'",
    "--bogus 3": "Unrecognized options: --bogus, 3",
    "--num-episodez 3": "Unrecognized options: --num-episodez, 3 (did you mean --num-episodes?)",
    "--seeds": "Missing value for argument '--seeds'",
    "--dry-run": "--dry-run (applied to pgjax train) (it goes with pgjax sweep)",
    "--env-params gravity": "--env-params: not names and numbers in turn",
    "--env-params gravity fast": "--env-params: not names and numbers in turn",
    "--config .": "config . cannot be read: Is a directory",
    "--num-episodes 1": "leave_one_out",
    "--num-updates 0": "num_updates=0",
    "--seeds 0": "seeds=0",
    "--seed -1": "seed=-1",
    "--horizon 0": "horizon=0",
    "--hidden 64 0": "hidden=0",
    "--chunk-size 0": "chunk_size=0",
    "--discount 1.5": "discount=1.5",
    "--discount -0.1": "discount=-0.1",
    "--discount nan": "discount=nan",
    "--lambda 2": "lambda=2",
    "--n 0": "n=0",
    "--entropy-cost inf": "entropy_cost=inf",
    "--learning-rate nan": "learning_rate=nan",
    "--max-grad-norm -1": "max_grad_norm=-1",
    "--form total_return --baseline value": "total_return",
    "--env Pendulum-v1 --distribution categorical": "does not fit",
    "--env Pendulum-v1 --policy tabular": "tabular",
    "--name a/b": "name='a/b'",
    "--directory /dev/null": "/dev/null",
    "--config absent.yaml": "config absent.yaml does not exist",
    "--devices 0": "devices=0 must be from 1 to",
    "--memory-limit many": "memory_limit='many'",
    "--coordinator here:1": "coordinator, num_processes and process_id go with distributed",
    "--distributed --coordinator here:1 --num-processes 2": "process_id=None must be given",
    "--distributed --coordinator here --num-processes 2 --process-id 0": "must be host:port",
    "--distributed --coordinator here:1 --num-processes 2 --process-id 2": "from 0 to 1",
    "--distributed --timeout 0": "timeout=0",
    "--resume absent": "no run at absent",
    "--resume absent --seeds 3": "drop the other flags",
    "--resume absent --seeds 1": "drop the other flags",  # though that is the default
    "--resume absent --num_episodes=512": "drop the other flags",
    "--resume absent --lambda 0.95": "drop the other flags",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_train_cannot_do_is_one_line_and_leaves_nothing(arguments, capsys, elsewhere):
    assert BAD[arguments] in refuse(capsys, ["train", *arguments.split()])
    assert list(elsewhere.iterdir()) == []


def test_a_command_that_there_is_not_is_refused(capsys):
    assert refuse(capsys, ["trian"]).startswith(
        "pgjax: error: command='trian' is unknown (did you mean 'train'?); choose from: train, "
    )


def test_a_reader_that_has_seen_enough_ends_the_program_quietly():
    program = subprocess.Popen(
        [sys.executable, "-m", "pgjax", "list", "envs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program.stdout.close()
    assert program.stderr.read() == ""
    assert program.wait() == 128 + signal.SIGPIPE


def test_a_run_directory_that_exists_is_refused(capsys, elsewhere):
    (elsewhere / "runs" / "mine").mkdir(parents=True)
    assert "mine exists" in refuse(capsys, ["train", "--name", "mine"])
    assert list((elsewhere / "runs" / "mine").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "seedz: 3",
        "seeds: many",
        "- 1",
        "false",
        "a: [",
        "horizon: 0",
        "learning_rate: 1" + "0" * 400,
        "num_episodes: 1" + "0" * 400,
        "seed: 1" + "0" * 400,
        "env_params: {max_steps_in_episode: 99999999999}",
    ],
)
def test_a_bad_config_file_is_refused(text, capsys, elsewhere):
    (elsewhere / "mine.yaml").write_text(text)
    refuse(capsys, ["train", "--config", "mine.yaml"])
    assert [path.name for path in elsewhere.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "absent"],
        ["plot", "absent"],
        ["plot"],
        ["evaluate", ".", "--episodes", "0"],
        ["evaluate", ".", "--seed", "99999999999"],
        ["evaluate", "."],
    ],
    ids=str,
)
def test_what_is_no_run_is_refused(argv, capsys, elsewhere):
    refuse(capsys, argv)
    assert list(elsewhere.iterdir()) == []


def test_a_file_is_not_a_run_directory(capsys, elsewhere):
    (elsewhere / "file").touch()
    assert "is not a run directory" in refuse(capsys, ["evaluate", "file"])


def test_a_run_without_checkpoints_cannot_be_evaluated(finished, capsys, elsewhere):
    (elsewhere / "run").mkdir()
    (elsewhere / "run" / "config.yaml").write_text(finished.config.read_text())
    assert "no checkpoint" in refuse(capsys, ["evaluate", "run"])


def test_a_run_whose_checkpoints_are_not_its_own_is_refused(finished, capsys, elsewhere):
    (elsewhere / "run").mkdir()
    other = dataclasses.replace(config.load(finished.config), seed=9)
    (elsewhere / "run" / "config.yaml").write_text(config.dump(other))
    (elsewhere / "run" / "checkpoints").symlink_to(finished.checkpoints)
    for argv in (["evaluate", "run"], ["train", "--resume", "run"]):
        assert "does not belong" in refuse(capsys, argv)


def test_mistakes_of_ours_are_not_blamed_on_the_user(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(run, "start", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_what_does_not_fit_an_override_is_laid_to_it_and_else_to_us(monkeypatch, capsys):
    def broken(*_, **__):
        raise TypeError("no such array")

    monkeypatch.setattr(run.experiment, "build", broken)
    why = refuse(capsys, ["train", "--env-params", "gravity", "9"])
    assert "env_params={'gravity': 9} do not fit: no such array" in why
    with pytest.raises(TypeError):
        cli.main(["train"])


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "start", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "pgjax: interrupted\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Expected one of {train, sweep, evaluate, audit, plot, report, list}."),
        (["list", "x"], "'policies', 'distributions')."),
        (["plot", "--config", "absent.yaml"], "options: --config"),
    ],
    ids=str,
)
def test_what_cannot_be_parsed_is_one_line(argv, message, capsys):
    assert message in refuse(capsys, argv)


def test_every_field_of_the_config_is_a_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(config.Config):
        assert f"--{field.name.replace('_', '-').rstrip('-')} " in text


def test_flags_become_the_config(settings, capsys):
    refuse(
        capsys,
        "train --env Acrobot-v1 --form gae --baseline value --seeds 8 --learning-rate 3e-3 "
        "--lambda 0.9 --hidden 8 8 --horizon 50 --env-params a 1 b 0.5".split(),
    )
    assert settings == [
        config.Config(
            env="Acrobot-v1",
            form="gae",
            baseline="value",
            seeds=8,
            learning_rate=3e-3,
            lambda_=0.9,
            hidden=(8, 8),
            horizon=50,
            env_params={"a": 1, "b": 0.5},
        )
    ]


@pytest.mark.parametrize("flag", [["--config", "mine.yaml"], ["--config=mine.yaml"]])
def test_flags_override_the_file_and_the_file_the_defaults(flag, settings, capsys, elsewhere):
    (elsewhere / "mine.yaml").write_text("seeds: 3\ndiscount: 0.5\n")
    refuse(capsys, ["train", *flag, "--seeds", "4"])
    assert settings == [config.Config(seeds=4, discount=0.5)]


def test_train_and_resume_and_evaluate_and_plot(tiny, capsys, elsewhere):
    (elsewhere / "tiny.yaml").write_text(config.dump(tiny))
    assert cli.main(["train", "--config", "tiny.yaml"]) == 0
    path = f"{tiny.directory}/tiny"
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(path) and "metrics.jsonl" in out
    assert "return" in err and "steps/s" in err

    assert cli.main(["train", "--resume", path]) == 0
    assert "finished" in capsys.readouterr().out

    results = []
    for extra in ([], [], ["--seed", "1"], ["--greedy"]):
        assert cli.main(["evaluate", path, "--episodes", "5", *extra]) == 0
        results.append(capsys.readouterr().out)
    assert results[0] == results[1] != results[2]
    assert "greedy" in results[3]

    assert cli.main(["plot", path, path, "--output", "both.png"]) == 0
    assert (elsewhere / "both.png").stat().st_size > 5000
    assert [file.name for file in sorted(elsewhere.iterdir())] == ["both.png", "tiny.yaml"]

    # As `*` gives them, with the figure of the last time.
    with pytest.warns(UserWarning, match="passed over") as caught:
        assert cli.main(["plot", "both.png", path, "tiny.yaml", "--output", "both.png"]) == 0
    assert ["both.png" in str(warning.message) for warning in caught] == [True, False]
    capsys.readouterr()
    assert "no run at absent" in refuse(capsys, ["plot", path, "absent"])
    assert cli.main(["plot", path, "--output", "new/deep/one.svg"]) == 0
    assert (elsewhere / "new" / "deep" / "one.svg").is_file()
    capsys.readouterr()
    said = refuse(capsys, ["plot", path, "--output", "both.png/one.png"])
    assert "output='both.png/one.png' cannot be written to: " in said


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("envs", ["CartPole-v1", "Pendulum-v1", "ShortCorridor"]),
        ("forms", ["reward_to_go", "gae"]),
        ("baselines", ["leave_one_out", "standardise"]),
        ("policies", ["tabular", "linear", "mlp"]),
        ("distributions", ["categorical", "tanh_normal"]),
    ],
)
def test_list_names_what_can_be_chosen(what, names, capsys):
    assert cli.main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines]
    assert set(names) <= set(listed)
    if what != "envs":
        assert all(len(line.split()) > 2 for line in lines)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pgjax {pgjax.__version__}\n"


def python(*arguments):
    environment = os.environ | {"XLA_FLAGS": ""}  # compiled as users compile, not as tests do
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def test_as_a_program_it_refuses_without_a_traceback(elsewhere):
    result = python("-m", "pgjax", "train", "--env", "CartPol-v1")
    assert result.returncode == 2
    assert result.stderr.startswith("pgjax: error: env='CartPol-v1' is unknown")
    assert result.stderr.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_parsing_waits_for_nothing_slow():
    code = (
        "import sys, pgjax.lab.cli; print(*sorted({'jax', 'gymnax', 'orbax'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == ""


MINE = '''
import gymnax
from gymnax.environments.classic_control.cartpole import CartPole
from pgjax import estimators


class Mine(CartPole):
    name = "Mine-v0"


def mine(steps, hyper):
    """Twice the reward to go."""
    return 2 * estimators.reward_to_go(steps, hyper)


if "Mine-v0" not in gymnax.registered_envs:
    gymnax.register("Mine-v0", Mine)
estimators.FORMS["mine"] = mine
'''


def test_what_modules_register_can_be_chosen_and_is_found_again(tmp_path):
    """In processes of their own: the module is imported by none of them but through the flag."""
    (tmp_path / "mylib.py").write_text(MINE)
    tiny = "--hidden 4 --num-episodes 4 --horizon 8 --num-updates 1 --evaluation-episodes 2"
    commands = (
        f"train --modules mylib --env Mine-v0 --form mine {tiny} --name own",
        "evaluate runs/own --episodes 2",
        "audit --checkpoint runs/own --estimators mine+none --replicates 4 --num-episodes 2",
        f"sweep --modules mylib --env Mine-v0 --form mine,gae {tiny} --env-params gravity 5,9",
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pgjax", *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["", ".mylib", "my lib", "mylib."])
def test_what_is_no_name_of_a_module_is_refused(name, capsys):
    assert cli.main(["train", "--modules", name]) == 2
    assert f"modules={name!r} must be the name of a module" in capsys.readouterr().err


def test_modules_that_are_not_there_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--modules", "nothing_of_the_sort"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pgjax: error: modules='nothing_of_the_sort' cannot be imported: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nraise RuntimeError('not today')\n", "RuntimeError: not today"),
        ("def broken(:\n", "SyntaxError: "),
        ("assert 1 > 2\n", "AssertionError"),
    ],
)
def test_modules_that_fail_are_refused_with_where_they_do(text, reason, elsewhere, capsys):
    name = f"fails_{len(text)}"
    (elsewhere / f"{name}.py").write_text(text)
    said = refuse(capsys, ["train", "--modules", name])
    assert f"modules='{name}' cannot be imported: {reason}" in said
    if "x = 1" in text:
        assert f"{name}.py, line 2)" in said


def test_a_sweep_is_told_from_a_run(elsewhere, capsys):
    (elsewhere / "grid").mkdir()
    (elsewhere / "grid" / "sweep.yaml").write_text("seeds: 2")
    for arguments in (["train", "--resume"], ["evaluate"], ["audit", "--checkpoint"]):
        assert "which is a sweep" in refuse(capsys, [*arguments, "grid"])
    assert "pgjax sweep --resume grid goes on" in refuse(capsys, ["report", "grid"])
