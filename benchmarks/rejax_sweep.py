"""Trainings a minute: CartPole with 64 learning rates in one program, pgjax and rejax 0.1.3.

The two are timed in turn, round after round, each in a process of its own that is kept alive.
rejax gets a virtual environment of its own, because it needs another version of gymnax. It has two
programs: its vmapped `train`, and the same split over the cores as pgjax splits its runs. Nothing
is evaluated. Ratios are of pgjax's speed over that of the others, within a round.

    python -m benchmarks.rejax_sweep                # keeps the result
    python -m benchmarks.rejax_sweep --venv DIR     # keeps rejax's environment, or uses it again
    python -m benchmarks.rejax_sweep --smoke        # tiny; rejax only with --venv; writes nothing
"""

import argparse
import math
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax

from benchmarks import kept, rounds
from pgjax.lab import machine

EXTRAS = {"gpu": "[cuda13]", "tpu": "[tpu]"}
"""Extras of JAX, by the platform of its devices."""
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
    """An interpreter for rejax, with this one's version of JAX for the same devices."""
    own = f"jax{EXTRAS.get(jax.default_backend(), '')}=={version('jax')}"
    return rounds.interpreter(venv, ["rejax==0.1.3", "gymnax==0.0.9", own])


def compare(name: str, settings: dict, num_rounds: int, rejax: str | None) -> list[kept.Row]:
    """A row for each program; the first is pgjax's."""
    # Every core has the same number of runs.
    settings = settings | {"num_devices": math.gcd(settings["num_runs"], machine.cores())}
    own = settings | {"programs": ["sharded"]}
    commands = {"pgjax": rounds.Command(sys.executable, "benchmarks.pgjax_ppo", own)}
    if rejax is not None:
        own = settings | {"programs": ["vmap", "sharded"]}
        commands["rejax"] = rounds.Command(rejax, "benchmarks.rejax_ppo", own)
    first, *others = rounds.compare(commands, num_rounds)
    return [
        kept.row(
            {"shape": name, "library": timed.side, "program": timed.program},
            {
                "trainings_per_minute": [60 * settings["num_runs"] / x for x in timed.seconds],
                "ratio": [x / y for x, y in zip(timed.seconds, first.seconds, strict=True)],
            },
            {
                "seconds": statistics.median(timed.seconds),
                "cpu_seconds": statistics.median(timed.cpu_seconds),
                "compile_seconds": timed.compile_seconds,
                "mean_return": statistics.mean(timed.evaluation["returns"]),
                "best_return": max(timed.evaluation["returns"]),
                "versions": timed.versions,
            },
        )
        for timed in (first, *others)
    ]


def show(rows: list[kept.Row]) -> None:
    """Prints the table, and what is not compared."""
    print(kept.table(rows))
    for row in rows:
        print(
            "{library} {program}: ".format(**row["case"])
            + "{seconds:.2f} s ({cpu_seconds:.2f} s of CPU), compiled in {compile_seconds:.1f} s; "
            "return {mean_return:.0f}, best {best_return:.0f}".format(**row["facts"]),
            flush=True,
        )


def main(arguments: list[str]) -> None:
    """Measures, prints and keeps the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rejax_sweep")
    parser.add_argument("--smoke", action="store_true", help="toy size, nothing is kept")
    parser.add_argument("--compare", action="store_true", help="compare, and keep nothing")
    parser.add_argument("--venv", type=Path, help="directory of rejax's virtual environment")
    flags = parser.parse_args(arguments)
    if flags.smoke:
        tiny = {"num_runs": 2, "num_envs": 2, "num_steps": 8, "num_updates": 2}
        python = flags.venv and make_rejax(flags.venv)
        show(compare("tiny", SETTINGS | tiny, num_rounds=1, rejax=python))
        if python is None:
            print("rejax not run: give --venv")
        return
    machine.devices()  # before anything uses JAX
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        python = make_rejax(flags.venv or Path(directory) / "venv")
        for name, shape in SHAPES.items():
            print(f"{name}: {shape}", flush=True)
            found = compare(name, SETTINGS | shape, num_rounds=3, rejax=python)
            show(found)
            rows += found
    settings = SETTINGS | {"shapes": SHAPES}
    if flags.compare:
        print(*kept.compare("rejax_sweep", rows, settings=settings), sep="\n")
    else:
        notes = {"equal": EQUAL, "different": DIFFERENT}
        kept.keep("rejax_sweep", rows, settings=settings, notes=notes)


if __name__ == "__main__":
    main(sys.argv[1:])
