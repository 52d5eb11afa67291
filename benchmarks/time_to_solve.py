"""Seconds from the return key to a solved CartPole: `pgjax train`, once for each of ten seeds.

Imports, compilation, training, the evaluation, a checkpoint and the figure are all included. Solved
means a mean return of at least 475 over 100 fresh episodes.

    python -m benchmarks.time_to_solve            # all of it
    python -m benchmarks.time_to_solve --smoke    # one tiny run, to see that it works
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import kept

SOLVED = 475
TOY = ("--num-episodes", "4", "--num-updates", "1", "--hidden", "4")


def solve(seed: int, *flags: str) -> dict[str, float]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pgjax", "train", "--seed", str(seed), "--name", "run"]
        begun = time.perf_counter()
        subprocess.run(
            [*command, "--directory", directory, *flags], check=True, capture_output=True
        )
        seconds = time.perf_counter() - begun
        evaluation = json.loads((Path(directory) / "run" / "evaluation.json").read_text())
    print(f"seed {seed}: {seconds:.1f} s, return {evaluation['return']['centre']:.1f}", flush=True)
    return {"seconds": seconds, "return": evaluation["return"]["centre"]}


def measure(smoke: bool) -> list[kept.Row]:
    """Seconds and returns of all seeds, and how many of them solve the task."""
    runs = [solve(0, *TOY)] if smoke else [solve(seed) for seed in range(10)]
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    solved = sum(each >= SOLVED for each in figures["return"])
    return [kept.row({"task": "CartPole-v1", "seeds": len(runs)}, figures | {"solved": [solved]})]


if __name__ == "__main__":
    kept.run("time_to_solve", measure, sys.argv[1:])
