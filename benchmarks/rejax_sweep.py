"""Trainings a minute: CartPole with 64 learning rates in one program, pgjax and rejax 0.1.3.

The two are timed in turn, round after round, each in a process of its own that is kept alive.
rejax gets a virtual environment of its own, because it wants another gymnax. Its programs are its
vmapped `train`, and the same split over the cores as pgjax splits its runs; nothing is evaluated.

    python -m benchmarks.rejax_sweep                # writes benchmarks/results/rejax_sweep.json
    python -m benchmarks.rejax_sweep --venv DIR     # keeps rejax's environment, or uses it again
    python -m benchmarks.rejax_sweep --smoke        # tiny; rejax only with --venv; writes nothing
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks import rounds

RESULTS = Path(__file__).parent / "results" / "rejax_sweep.json"
REJAX = ["rejax==0.1.3", "gymnax==0.0.9", f"jax=={version('jax')}"]
SHAPES = {
    "rejax's settings for CartPole": {"num_envs": 5, "num_steps": 100, "num_updates": 200},
    "16 long rows": {"num_envs": 16, "num_steps": 128, "num_updates": 49},
    "rejax's defaults": {
        "num_envs": 64,
        "num_steps": 64,
        "num_updates": 25,
    },
}
SETTINGS = {
    "num_runs": 64,
    "learning_rates": [1e-4, 1e-2],
    "discount": 0.99,
    "lambda_": 0.95,
    "entropy_cost": 0.01,
    "value_cost": 0.5,
    "clip": 0.5,
}
EQUAL = (
    "CartPole-v1; steps a window, rows, updates and learning rates; actor and critic apart, 2 x 64 "
    "tanh; GAE, advantages standardised over the batch; entropy bonus; half the squared error of "
    "the value; gradients clipped entry by entry; Adam; the version of JAX; no evaluation"
)
DIFFERENT = (
    "rejax shuffles the batch and computes PPO's ratio, which is one, and takes the time limit for "
    "an end; pgjax bootstraps there, reports the metrics of every update and skips updates that "
    "are not finite; initial weights; the version of gymnax"
)


def make_rejax(venv: Path) -> str:
    """rejax's own interpreter, in a virtual environment that is made or completed first."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REJAX], check=True)
    return str(python)


def compare(settings: dict, num_rounds: int, rejax: str | None) -> list[dict]:
    """Median seconds and trainings a minute of each program; the first round is not counted."""
    modules = {"pgjax": (sys.executable, "benchmarks.pgjax_ppo")}
    if rejax is not None:
        modules["rejax"] = (rejax, "benchmarks.rejax_ppo")
    # Each core has as many runs as the others.
    settings = settings | {"num_devices": math.gcd(settings["num_runs"], os.cpu_count() or 1)}
    sides = {}
    try:
        for name, (python, module) in modules.items():
            sides[name] = rounds.start(python, module, settings)
        times = {
            (name, program): []
            for name, side in sides.items()
            for program in side.about["compile_seconds"]
        }
        for _ in range(1 + num_rounds):
            for (name, program), taken in times.items():
                taken.append(rounds.ask(sides[name], program))
        returns = {name: rounds.ask(side, "evaluate")["returns"] for name, side in sides.items()}
    finally:
        for side in sides.values():
            rounds.stop(side)
    rows = []
    for (name, program), taken in times.items():
        seconds = [one["seconds"] for one in taken[1:]]
        rows.append(
            {
                "library": name,
                "program": program,
                "versions": sides[name].about["versions"],
                "compile_seconds": sides[name].about["compile_seconds"][program],
                "seconds": statistics.median(seconds),
                "all_seconds": seconds,
                "cpu_seconds": statistics.median(one["cpu_seconds"] for one in taken[1:]),
                "trainings_per_minute": 60 * settings["num_runs"] / statistics.median(seconds),
                "mean_return": statistics.mean(returns[name]),
                "best_return": max(returns[name]),
            }
        )
    return rows


def ratio(rows: list[dict], program: str) -> float:
    """pgjax's trainings a minute over those of one of rejax's programs."""
    per_minute = {(row["library"], row["program"]): row["trainings_per_minute"] for row in rows}
    return per_minute["pgjax", "sharded"] / per_minute["rejax", program]


def show(rows: list[dict]) -> None:
    """One line for each program."""
    for row in rows:
        print(
            "{library} {program:<8} {trainings_per_minute:7.0f} trainings a minute, median of "
            "{seconds:.2f} s ({cpu_seconds:.2f} s of CPU); compiled in {compile_seconds:.1f} s; "
            "return {mean_return:.0f}, best {best_return:.0f}".format(**row),
            flush=True,
        )


def measure(python: str) -> list[dict]:
    """All shapes, in full."""
    shapes = []
    for name, shape in SHAPES.items():
        print(f"{name}: {shape}", flush=True)
        settings = SETTINGS | shape
        rows = compare(settings, num_rounds=3, rejax=python)
        show(rows)
        of_rejax = [row["program"] for row in rows if row["library"] == "rejax"]
        ratios = {program: ratio(rows, program) for program in of_rejax}
        print("pgjax over rejax:", {program: round(x, 2) for program, x in ratios.items()})
        shapes.append({"name": name, **shape, "ratio": ratios, "rows": rows})
    return shapes


def main(arguments: list[str]) -> None:
    """Measures, prints and keeps the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--venv", type=Path)
    flags = parser.parse_args(arguments)
    if flags.smoke:
        tiny = {"num_runs": 2, "num_envs": 2, "num_steps": 8, "num_updates": 2}
        python = flags.venv and make_rejax(flags.venv)
        show(compare(SETTINGS | tiny, num_rounds=1, rejax=python))
        if python is None:
            print("rejax not run: give --venv")
        return
    with tempfile.TemporaryDirectory() as directory:
        shapes = measure(make_rejax(flags.venv or Path(directory) / "venv"))
    kept = {
        "command": "python -m benchmarks.rejax_sweep",
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {version('jax')}",
        "settings": SETTINGS,
        "equal": EQUAL,
        "different": DIFFERENT,
        "shapes": shapes,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
