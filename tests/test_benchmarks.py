"""The benchmark scripts run, at toy size; nothing is timed here."""

import json
import os
import runpy
import subprocess
import sys

import jax
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    figures,
    kept,
    kernels,
    layout,
    memory,
    processes,
    rounds,
    scaling,
    test_kernels,
    throughput,
    timing,
)
from pgjax import backends

# Tests of their own: audit_cost and side_by_side.
SCRIPTS = sorted(set(command.BENCHMARKS) - {"audit_cost", "side_by_side"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_smoke(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--smoke"])
    monkeypatch.setattr(rounds, "XLA_FLAGS", os.environ["XLA_FLAGS"])  # compiled as tests are
    # Programs written as users write them promote ranks.
    with jax.numpy_rank_promotion("allow"):
        runpy.run_module(f"benchmarks.{script}", run_name="__main__")
    assert capsys.readouterr().out


def test_kernels_run():
    made = kernels.kernels(kernels.TOY)
    assert tuple(made) == test_kernels.NAMES
    for kernel in made.values():
        assert kernels.is_finite(kernel.compile()())


def test_all_runs_what_is_named_and_says_what_failed(monkeypatch, capfd):
    ran = []

    def run(arguments, **_):
        ran.append(arguments[2:])
        return subprocess.CompletedProcess(arguments, returncode="memory" in arguments[2])

    monkeypatch.setattr(subprocess, "run", run)
    assert command.main(["memory", "oracle", "--smoke"]) == 1
    assert ran == [["benchmarks.memory", "--smoke"], ["benchmarks.oracle", "--smoke"]]
    assert "failed: memory" in capfd.readouterr().err
    ran.clear()
    assert command.main(["oracle"]) == 0
    assert ran == [["benchmarks.oracle"], ["benchmarks.figures"]]


def test_unknown_benchmarks_are_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "no benchmark 'nonsense'" in capsys.readouterr().err


def test_programs_take_turns():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = timing.interleaved(calls, rounds=3)
    assert called == ["a", "b"] * 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_a_process_answers_or_says_why_not():
    assert processes.call(kept.kind) == kept.kind()
    with pytest.raises(RuntimeError, match="takes 1 positional argument but 2 were given"):
        processes.call(kept.in_short, 1, 2)


@pytest.mark.parametrize("kind", ["cpu", "gpu", "tpu"])
def test_layouts_differ_from_that_of_the_device_in_ways_that_xla_takes(kind):
    own = backends.KINDS[kind]
    changes = layout.choices(own, kind)
    others = {name: own._replace(**change) for name, change in changes.items()}
    assert own not in others.values()
    for other in others.values():
        options = dict(other.compiler_options)
        assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_figures_are_drawn_of_what_is_kept(tmp_path):
    measured = [1.0, 2.0, 4.0]
    of_throughput = [
        kept.row({"axis": axis} | setting._asdict(), {"steps_per_second": measured})
        for axis, settings in throughput.groups(smoke=False)
        for setting in settings
    ]
    names = ("trajectory_bytes", "temporary_bytes", "peak_bytes")
    of_memory = [
        kept.row(setting._asdict(), dict.fromkeys(names, measured))
        for setting in memory.settings(smoke=False)
    ]
    of_scaling = [
        kept.row({"scaling": kind} | shape._asdict(), {"steps_per_second": measured})
        for kind in ("strong", "weak")
        for shape in scaling.shapes(4)
    ]
    results = {"throughput": of_throughput, "memory": of_memory, "scaling": of_scaling, "other": []}
    for name, rows in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    drawn = figures.draw(tmp_path)
    assert [path.name for path in drawn] == ["throughput.png", "memory.png", "scaling.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_figures_have_a_panel_for_every_axis_and_task():
    rows = [
        kept.row({"axis": axis} | setting._asdict(), {"steps_per_second": [1.0]})
        for axis, settings in throughput.groups(smoke=False)
        for setting in settings
    ]
    panels = figures.throughput(rows).axes
    assert len(panels) == len(throughput.TASKS) + len(throughput.AXES) - 1
    assert all(len(panel.containers) == len(throughput.LEARNERS) for panel in panels)
