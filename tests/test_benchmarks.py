"""The benchmark scripts run, at toy size; nothing is timed here."""

import runpy
import sys

import pytest


@pytest.mark.parametrize(
    "script", ["chunk_size", "gradient_norms", "oracle", "rejax_sweep", "sweep", "time_to_solve"]
)
def test_smoke(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--smoke"])
    runpy.run_module(f"benchmarks.{script}", run_name="__main__")
    assert capsys.readouterr().out
