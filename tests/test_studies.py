"""Every study runs in its quick mode and leaves a figure, finite numbers and a paragraph."""

import importlib
import json
import math
from pathlib import Path

import jax
import pytest

from experiments import report

FOLDER = Path(report.__file__).parent
STUDIES = sorted(path.stem for path in FOLDER.glob("*.py") if "report.main(" in path.read_text())


def numbers_in(tree):
    """All numbers in a tree of dicts and lists."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for item in tree for number in numbers_in(item)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_quick_mode_leaves_what_a_study_leaves(name, tmp_path):
    study = importlib.import_module(f"experiments.{name}").study
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        findings = study(True)
    report.keep(tmp_path, name, findings, 0.0)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert len((tmp_path / "finding.md").read_text().split()) > 30
    numbers = numbers_in(json.loads((tmp_path / "numbers.json").read_text())["numbers"])
    assert numbers and all(math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_full_run_found_is_kept(name):
    folder = FOLDER / "results" / name
    kept = json.loads((folder / "numbers.json").read_text())
    assert kept["command"] == f"python -m experiments.{name}"
    assert kept["machine"]
    assert (folder / "figure.png").is_file()
    assert (folder / "finding.md").is_file()


def test_there_are_studies():
    assert len(STUDIES) >= 6
