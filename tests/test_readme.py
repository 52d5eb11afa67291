"""What the README shows runs as it stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from experiments import results_table
from pgjax import estimators
from pgjax.lab import cli, config, experiment
from pgjax.lab.sweep import design

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = re.findall(r"^(?:#.*?: )?(?:srun .*?)?(?:\.venv/bin/)?pgjax (.*)$", SHELL, flags=re.M)


def run(source):
    namespace = {}
    exec(compile(source, "README.md", "exec"), namespace)
    return namespace


def test_sweep_example_leaves_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = run(EXAMPLES[0])["results"]["evaluation_return"]
    assert scores.dims == ("learning_rate", "discount", "seed")
    assert float(scores.max()) > 3 * float(scores.min())


def test_library_example_learns():
    metrics = run(EXAMPLES[1])["metrics"]
    assert metrics["return"][-1] > 10 * metrics["return"][0]


def test_one_operator_example_finds_both_optima(capsys):
    run(EXAMPLES[2])
    found = re.findall(r"'loc': Array\((\S+),", capsys.readouterr().out)
    assert [float(x) for x in found] == pytest.approx([1.5, 2.0], abs=0.1)


def test_oracle_example_shows_an_unbiased_pair_and_less_variance(capsys):
    run(EXAMPLES[3])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (_, plain, error), (_, coupled, other_error) = lines
    assert float(coupled) < float(plain)
    assert float(error) < 1e-12 and float(other_error) < 1e-12


def test_commands_are_found():
    assert len(COMMANDS) > 20
    assert {line.split()[0] for line in COMMANDS} == set(cli._commands(config.Config()))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_ones_that_there_are(line):
    argv = shlex.split(line, comments=True)
    assert callable(cli._parse(cli._commands(cli._defaults(argv)), argv))


def test_a_command_that_there_is_not_is_found():
    argv = ["train", "--no-such-flag", "3"]
    with pytest.raises(cli.RefusalError, match="no-such-flag"):
        cli._parse(cli._commands(cli._defaults(argv)), argv)


def test_every_benchmark_that_is_named_exists():
    named = set(re.findall(r"python -m benchmarks\.(\w+)", README))
    assert named and named <= set(BENCHMARKS)


def test_every_study_is_named():
    for path in results_table.HERE.glob("*.py"):
        if "report.main(" in path.read_text():
            assert f"| `{path.stem}` |" in README


@pytest.mark.parametrize("registry", [estimators.FORMS, estimators.BASELINES])
def test_tables_name_every_choice(registry):
    for name in registry:
        assert f"| `{name}` |" in README


def test_results_are_those_that_are_kept():
    assert results_table.table(json.loads(results_table.RESULTS.read_text())) in README


def test_every_config_has_results_and_is_valid():
    configs = sorted(path for path in (results_table.HERE / "configs").glob("*.yaml"))
    assert {path.stem for path in configs} == set(json.loads(results_table.RESULTS.read_text()))
    for path in (results_table.HERE / "sweeps").glob("*.yaml"):
        design.validate(design.parse(config.read(path)))
    for path in configs:
        loaded = config.load(path)
        assert loaded.env == path.stem and loaded.seeds >= 10
        experiment.build(loaded)
