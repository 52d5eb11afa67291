"""Seconds from the return key to a solved CartPole: `pgjax train`, once for each of ten seeds.

Imports, compilation, training, the evaluation, a checkpoint and the figure are all in it. Solved is
a mean return of at least 475 over 100 fresh episodes.

    python -m benchmarks.time_to_solve            # writes benchmarks/results/time_to_solve.json
    python -m benchmarks.time_to_solve --smoke    # one tiny run, to see that it works
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "time_to_solve.json"
SOLVED = 475


def solve(seed: int, *flags: str) -> dict:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pgjax", "train", "--seed", str(seed), "--name", "run"]
        begun = time.perf_counter()
        subprocess.run(
            [*command, "--directory", directory, *flags], check=True, capture_output=True
        )
        seconds = time.perf_counter() - begun
        evaluation = json.loads((Path(directory) / "run" / "evaluation.json").read_text())
    return {"seed": seed, "seconds": seconds, "return": evaluation["return"]["centre"]}


def main(arguments: list[str]) -> None:
    """Runs, prints and keeps the numbers."""
    if arguments == ["--smoke"]:
        print(solve(0, "--num-episodes", "4", "--num-updates", "1", "--hidden", "4"))
        return
    runs = []
    for seed in range(10):
        runs.append(solve(seed))
        print("seed {seed}: {seconds:.1f} s, return {return:.1f}".format(**runs[-1]), flush=True)
    seconds = [run["seconds"] for run in runs]
    solved = sum(run["return"] >= SOLVED for run in runs)
    print(f"{solved} of {len(runs)} solved; median {statistics.median(seconds):.1f} s")
    kept = {
        "command": "python -m benchmarks.time_to_solve",
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {version('jax')}",
        "solved": solved,
        "median_seconds": statistics.median(seconds),
        "worst_seconds": max(seconds),
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
