"""The report of a sweep."""

import csv
import re

import numpy as np
import pytest
from scipy import stats

from pgjax.lab import comparisons, statistics
from pgjax.lab.sweep import report

from . import synthetic


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a grid in which one run diverged and one is not finished."""
    output = tmp_path_factory.mktemp("sweep") / "report"
    return output, report.write(synthetic.grid(), output)


def text_of(output):
    return (output / "report.md").read_text(encoding="utf-8")


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_it_leaves_what_it_says_and_nothing_else(written):
    output, paths = written
    assert paths[0] == output / "report.md"
    assert sorted(output.iterdir()) == sorted(paths)
    embedded = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text_of(output))
    assert sorted(embedded) == sorted(path.name for path in paths if path.suffix == ".png")
    assert len(embedded) == 5


def test_it_says_what_was_swept_and_what_became_of_it(written):
    text = text_of(written[0])
    assert text.startswith("# Sweep of learning_rate, discount and form\n")
    assert (
        "16 configurations x 8 seeds = 128 runs: 127 finished, 1 not finished, 1 diverged" in text
    )
    place = "learning_rate=0.03, discount=0.9, form=reward_to_go"
    assert f"scored as they are):\n\n- {place}: seed 1\n" in text
    assert f"Not finished (left out):\n\n- {place}: seed 2\n" in text
    assert "num_updates: 12" in text and "| jax | 0.10.2 |" in text and "0123abc" in text


def test_it_names_the_best_and_admits_how_it_was_chosen(written):
    text = text_of(written[0])
    runs = synthetic.grid()["evaluation_return"].sel(synthetic.BEST).values
    centre = stats.trim_mean(runs, 0.25)
    assert "**learning_rate=0.01, discount=0.99, form=gae**: mean return of fresh episodes" in text
    assert f"IQM over 8 runs: {centre:.4g} [" in text
    assert "chosen from 16 by the same runs" in text
    assert "scoring the choice on the other half gives" in text


def test_it_states_the_test_the_runs_and_the_correction(written):
    text = text_of(written[0])
    assert "Mann-Whitney U, two-sided" in text and "Holm's method for 120 comparisons" in text
    assert "| runs_of_best | runs_of_other |" in text
    assert "could not have shown" not in text
    rows = rows_of(written[0] / "comparisons.csv")
    assert len(rows) == 15 and {row["correction"] for row in rows} == {"Holm"}


def test_every_configuration_is_in_the_table(written):
    rows = rows_of(written[0] / "configurations.csv")
    assert len(rows) == 16
    assert (float(rows[0]["learning_rate"]), rows[0]["form"]) == (0.01, "gae")
    assert float(rows[0]["low"]) < float(rows[0]["iqm"]) < float(rows[0]["high"])


def test_a_sweep_too_small_to_show_anything_says_so(tmp_path):
    report.write(synthetic.grid(seeds=3), tmp_path)
    text = text_of(tmp_path)
    assert f"below {comparisons.smallest_p_value(3, 3):.2g}, which is 1 once corrected" in text
    assert report.SHORT_INTERVALS in text and "the other half gives" not in text


def test_one_seed_has_no_interval_and_the_report_says_so(tmp_path):
    report.write(synthetic.random(5, seeds=1), tmp_path)
    assert "There is one seed: no interval" in text_of(tmp_path)
    assert {row["low"] for row in rows_of(tmp_path / "configurations.csv")} == {""}


def test_of_seeds_alone_there_is_nothing_to_compare(tmp_path):
    report.write(synthetic.alone(), tmp_path)
    text = text_of(tmp_path)
    assert text.startswith("# Sweep of seeds\n")
    assert "1 configuration x 8 seeds = 8 runs: 8 finished" in text
    assert "chosen from" not in text and "## Comparisons" not in text
    assert "None: every run finished, and none diverged." in text
    assert rows_of(tmp_path / "comparisons.csv") == []


def test_an_evaluation_that_is_not_finite_is_named(tmp_path):
    data = synthetic.alone()
    data["evaluation_return"][3] = np.inf
    report.write(data, tmp_path)
    found = "without a finite evaluation (left out):\n\n- the only configuration: seed 3\n"
    assert found in text_of(tmp_path)


def test_environments_have_sections_of_their_own_and_normalised_scores_are_explained(tmp_path):
    axes = {"env": ["CartPole-v1", "Acrobot-v1"], **synthetic.GRID}
    data = synthetic.grid(axes=axes)
    data["diverged"][{"env": 1, "learning_rate": 0, "discount": 0, "form": 0, "seed": 4}] = 1
    report.write(data, tmp_path)
    text = text_of(tmp_path)
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections == [*axes["env"], "all environments", "Runs to look at", "Provenance"]
    assert "0 is the lowest and 1 the highest mean over seeds" in text
    assert "- env=Acrobot-v1, learning_rate=0.001, discount=0.9, form=reward_to_go: seed 4" in text
    rows = rows_of(tmp_path / "configurations.csv")
    assert [row["env"] for row in rows].count("all environments") == 16 == len(rows) / 3


def test_nothing_finished_is_an_error_and_leaves_nothing(tmp_path):
    data = synthetic.grid()
    data["finished"][:] = False
    with pytest.raises(ValueError, match="nothing finished yet"):
        report.write(data, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_it_can_be_written_again(written):
    output, paths = written
    before = text_of(output), {path.name for path in output.iterdir()}
    assert report.write(synthetic.grid(), output) == paths
    assert before == (text_of(output), {path.name for path in output.iterdir()})


def test_what_it_says_of_short_intervals_is_so():
    # 4000 sets of normal scores; the standard error of a share is below 0.008.
    rng = np.random.default_rng(0)
    for seeds, percent in ((3, 75), (5, 89), (10, 93)):
        assert f"{percent}%" in report.SHORT_INTERVALS
        values = rng.normal(size=(4000, 1, seeds))
        low, high = statistics.interval(statistics.resampled_iqms(values))
        assert abs(np.mean((low <= 0) & (high >= 0)) - percent / 100) < 0.025
