"""What plain REINFORCE reaches on gymnax's environments, beside published PPO scores.

Question: how far do the estimators of this library go on real environments, and at what cost?
Trains every config in `experiments/configs/`, each for ten seeds in one program, and evaluates the
final policies on fresh episodes, sampling and greedy. Writes `experiments/results/table.json` and
prints the README's table.

    python -m experiments.results_table               # all, about six minutes on two cores
    python -m experiments.results_table CartPole-v1   # some, the others kept as they were
    python -m experiments.results_table --print       # only the table of the kept results
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import report

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "table.json"

PPO = {
    "CartPole-v1": 500,
    "Acrobot-v1": -80,
    "MountainCar-v0": -118,
    "MountainCarContinuous-v0": 92,
    "Pendulum-v1": -130,
    "Catch-bsuite": 1,
    "DeepSea-bsuite": 0,
    "DiscountingChain-bsuite": 1.1,
    "FourRooms-misc": 1,
}
"""Scores of gymnax-blines' PPO agents, as gymnax's README gives them (commit 086ad95)."""


def train(name: str, directory: Path) -> dict:
    """Runs the command as a user would, for its wall time, and evaluates what it left."""
    config = HERE / "configs" / f"{name}.yaml"
    command = [sys.executable, "-m", "pgjax", "train", "--config", str(config), "--name", name]
    begun = time.perf_counter()
    subprocess.run([*command, "--directory", str(directory)], check=True)
    seconds = time.perf_counter() - begun
    # Imported only now, so that the command had the machine to itself.
    from pgjax.lab import evaluation, records, run

    found, progress = run.load(directory / name)
    results = {
        acting: evaluation.evaluate(
            found.experiment,
            found.inputs,
            progress.state.params,
            num_episodes=found.config.evaluation_episodes,
            greedy=acting == "greedy",
        )["return"]
        for acting in ("sampled", "greedy")
    }
    steps = records.curves(found.directory.metrics)["env_steps"][:, -1]
    return {
        **results,
        "seeds": found.config.seeds,
        "episodes": found.config.evaluation_episodes,
        "env_steps_per_seed": float(steps.mean()),
        "seconds": seconds,
        "machine": report.machine(),
    }


def table(results: dict) -> str:
    """The results as the README shows them."""
    columns = ("environment", "PPO, published", "sampling", "greedy", "steps a seed", "seconds")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|"]
    for name in sorted(results, key=str.lower):
        row = results[name]
        published = f"{PPO[name]:g}" if name in PPO else "none"
        lines.append(
            f"| {name} | {published} | {_interval(row['sampled'])} | {_interval(row['greedy'])} "
            f"| {row['env_steps_per_seed'] / 1e6:.2g} M | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _interval(result: dict) -> str:
    low, high = result["interval"]
    return f"{_digits(result['centre'])} ({_digits(low)} to {_digits(high)})"


def _digits(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def main(arguments: list[str]) -> None:
    """Trains what is named, or all; keeps the results; prints the table."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known = sorted(path.stem for path in (HERE / "configs").glob("*.yaml"))
    if arguments != ["--print"]:
        for name in set(arguments) - set(known):
            raise SystemExit(f"no config for {name}; there are {', '.join(known)}")
        for name in arguments or known:
            with tempfile.TemporaryDirectory() as directory:
                results[name] = train(name, Path(directory))
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
