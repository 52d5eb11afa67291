"""Learning curves."""

import matplotlib.image
import numpy as np
import pytest

from pgjax.lab import plots, records


def write_metrics(path, seeds, num_updates=5, start=0):
    rng = np.random.default_rng(seeds)
    env_steps = np.cumsum(rng.integers(5, 20, size=(num_updates, seeds)), axis=0)
    with records.Records(path) as file:
        for update in range(num_updates):
            file.append(
                {
                    "update": update + 1,
                    "seed": seed,
                    "env_steps": env_steps[update, seed],
                    "return": rng.normal(),
                }
                for seed in range(seeds)
            )
    return path


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_runs_are_drawn_into_one_figure(tmp_path, suffix):
    runs = {
        f"run {seeds}": write_metrics(tmp_path / f"{seeds}.jsonl", seeds) for seeds in (1, 3, 10)
    }
    output = tmp_path / f"figure.{suffix}"
    plots.learning_curves(runs, output)
    assert output.stat().st_size > 5000
    assert sorted(x.suffix for x in tmp_path.iterdir()) == sorted([f".{suffix}", *[".jsonl"] * 3])


def test_the_figure_is_not_blank(tmp_path):
    output = tmp_path / "figure.png"
    plots.learning_curves({"run": write_metrics(tmp_path / "m.jsonl", 4)}, output)
    image = matplotlib.image.imread(output)[..., :3]
    blue = np.array([0, 0x72, 0xB2]) / 255
    assert np.sum(np.all(np.abs(image - blue) < 0.02, axis=-1)) > 500


@pytest.mark.parametrize("seeds", [1, 4])
def test_one_update_is_enough_to_be_seen(tmp_path, seeds):
    output = tmp_path / "figure.png"
    metrics = write_metrics(tmp_path / "m.jsonl", seeds, num_updates=1)
    plots.learning_curves({"run": metrics}, output)
    image = matplotlib.image.imread(output)[..., :3]
    blue = np.all(np.abs(image - np.array([0, 0x72, 0xB2]) / 255) < 0.02, axis=-1)
    assert np.any(blue.sum(axis=0) > 8)  # the legend's line is thin


def test_a_format_nobody_knows_is_refused_and_leaves_nothing(tmp_path):
    metrics = write_metrics(tmp_path / "m.jsonl", 2)
    with pytest.raises(ValueError, match="xyz"):
        plots.learning_curves({"run": metrics}, tmp_path / "figure.xyz")
    assert list(tmp_path.iterdir()) == [metrics]


@pytest.mark.parametrize("name", ["figure", "folder.png"])
def test_what_is_no_name_of_a_figure_is_refused_and_leaves_nothing(tmp_path, name):
    metrics = write_metrics(tmp_path / "m.jsonl", 2)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=f"output=.*{name}"):
        plots.learning_curves({"run": metrics}, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "m.jsonl"]


def test_a_drawing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def torn(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    metrics = write_metrics(tmp_path / "m.jsonl", 2)
    monkeypatch.setattr(plots.Figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        plots.learning_curves({"run": metrics}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == [metrics]


def test_curves_begin_where_all_seeds_have_and_go_on_to_where_the_last_one_ends():
    env_steps = np.array([[10.0, 20.0, 30.0], [5.0, 20.0, 50.0]])
    grid, values = plots.common_grid(env_steps, 2 * env_steps)
    assert grid[0] == 10 and grid[-1] == 50
    np.testing.assert_allclose(values, np.stack([2 * np.minimum(grid, 30), 2 * grid]))
