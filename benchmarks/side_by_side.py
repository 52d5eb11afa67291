"""Environment steps per second of whole trainings on CartPole: pgjax beside other programs.

Every program has a process of its own that is kept alive. They take turns, round after round, each
time training from the start. Steps are live ones; ratios are taken within a round. rejax and
Stable-Baselines3 get virtual environments of their own.

    python -m benchmarks.side_by_side                # keeps the result
    python -m benchmarks.side_by_side --venv DIR     # keeps rejax's environment, or uses it again
    python -m benchmarks.side_by_side --sb3 DIR      # the same for Stable-Baselines3's
    python -m benchmarks.side_by_side --only "actor only"        # one comparison, nothing kept
    python -m benchmarks.side_by_side --smoke        # tiny; others only with --venv, --sb3
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import kept, rejax_sweep, rounds
from pgjax.lab import machine

SB3 = ["stable-baselines3==2.9.2"]
SETTINGS = {
    "num_envs": 1024,
    "num_steps": 128,
    "num_updates": 50,
    "learning_rate": 1e-2,
    "discount": 0.99,
    "lambda_": 0.95,
    "entropy_cost": 0.01,
    "value_cost": 0.5,
    "clip": 0.5,
}
COMPARISONS = {
    "actor-critic": {},
    "actor only": {},
    "actor only, many rows": {"num_envs": 65536, "num_updates": 3},
}
SMOKE = {"num_envs": 4, "num_steps": 8, "num_updates": 2}
# Few, as one process steps them in Python; fewer updates, as it is slow.
OF_SB3 = {"num_envs": 16, "num_updates": 20}
ROUNDS = 9
EQUAL = {
    "all": "CartPole-v1; rows and steps of a window; updates; one step of Adam on every window; "
    "2 x 64 tanh; products in float32; discount; evaluation over whole episodes, apart and untimed",
    "actor-critic": "actor and critic apart; GAE, advantages standardised over the batch; entropy "
    "bonus; half the squared error of the value",
    "actor only": "returns to go to the end of the episode or the window, standardised over the "
    "batch; the scale of the gradient",
}
DIFFERENT = {
    "pgjax": "all devices, one per core; what it tells XLA; bootstraps at the time limit; reports "
    "the metrics of every update; skips updates that are not finite",
    "pgjax, episodes": "whole episodes cut at as many steps instead of windows: only live steps "
    "count as steps",
    "plain": "one device with all cores' threads",
    "rejax, one run": "one device with all cores' threads, as it has no way to share out the "
    "environments of a run; shuffles the batch and computes PPO's ratio, which is one; clips the "
    "value loss; takes the time limit for an end; initial weights; the version of gymnax",
    "rejax, a run a core": "the same, as many independent runs as cores, each with all of the "
    "environments: what it can do with the whole machine",
    "Stable-Baselines3": f"{OF_SB3['num_envs']} environments stepped in turn in Python, and "
    f"{OF_SB3['num_updates']} updates; A2C; the norm of the gradient is clipped, not its entries; "
    "orthogonal initial weights; PyTorch on all cores and never on a GPU; gymnasium's CartPole-v1",
}


def commands(
    comparison: str, settings: dict, rejax: str | None, sb3: str | None
) -> dict[str, rounds.Command]:
    """How the programs of a comparison are started; the first is pgjax's."""
    cores = machine.cores()
    one, own = settings | {"num_devices": 1}, sys.executable
    every = settings | {"num_devices": cores}
    if comparison != "actor-critic":
        module = "benchmarks.pgjax_reinforce"
        return {
            "pgjax, segments": rounds.Command(own, module, every | {"programs": ["segments"]}),
            "pgjax, episodes": rounds.Command(own, module, every | {"programs": ["episodes"]}),
            "plain": rounds.Command(own, "benchmarks.plain_reinforce", one),
        }
    run = {"num_runs": 1, "programs": ["one"], "learning_rates": 2 * [settings["learning_rate"]]}
    found = {"pgjax": rounds.Command(own, "benchmarks.pgjax_ppo", every | run)}
    if rejax is not None:
        module, several = "benchmarks.rejax_ppo", {"num_runs": cores, "programs": ["sharded"]}
        found["rejax, one run"] = rounds.Command(rejax, module, one | run)
        found["rejax, a run a core"] = rounds.Command(rejax, module, every | run | several)
    if sb3 is not None:
        found["Stable-Baselines3"] = rounds.Command(sb3, "benchmarks.sb3_a2c", one | OF_SB3)
    return found


def measure(comparison: str, started: dict[str, rounds.Command], num_rounds: int) -> list[kept.Row]:
    """A row for each program: steps per second, and those of the first as a multiple of them."""
    timed = rounds.compare(started, num_rounds)
    speeds = [[one.evaluation["env_steps"] / x for x in one.seconds] for one in timed]
    return [
        kept.row(
            {"comparison": comparison, "program": one.side},
            {
                "steps_per_second": speed,
                "ratio": [first / x for first, x in zip(speeds[0], speed, strict=True)],
                "busy_cores": [
                    cpu / x for cpu, x in zip(one.cpu_seconds, one.seconds, strict=True)
                ],
            },
            {
                "env_steps": one.evaluation["env_steps"],
                "seconds": statistics.median(one.seconds),
                "compile_seconds": one.compile_seconds,
                "returns": one.evaluation["returns"],
                "versions": one.versions,
            },
        )
        for one, speed in zip(timed, speeds, strict=True)
    ]


def show(rows: list[kept.Row]) -> None:
    """One line for each program; the ratio is of the first program over it."""
    form = "{:<22}{:>11}{:>20}{:>8}{:>16}{:>7}{:>10}{:>8}"
    head = (
        "program",
        "steps/s",
        "low to high",
        "ratio",
        "low to high",
        "cores",
        "compiled",
        "return",
    )
    print(rows[0]["case"]["comparison"])
    print(form.format(*head))
    for row in rows:
        speed, ratio = row["measured"]["steps_per_second"], row["measured"]["ratio"]
        facts = row["facts"]
        print(
            form.format(
                row["case"]["program"],
                kept.in_short(speed["median"]),
                " to ".join(kept.in_short(pick(speed["rounds"])) for pick in (min, max)),
                f"{ratio['median']:.2f}",
                " to ".join(f"{pick(ratio['rounds']):.2f}" for pick in (min, max)),
                f"{kept.median(row, 'busy_cores'):.1f}",
                f"{facts['compile_seconds']:.1f} s",
                f"{statistics.mean(facts['returns']):.0f}",
            ),
            flush=True,
        )


def differences(rows: list[kept.Row]) -> list[str]:
    """How each program differs from the others, a line for each."""
    programs = [str(row["case"]["program"]) for row in rows]
    return [
        f"{name}: {text}"
        for name, text in DIFFERENT.items()
        if any(program.startswith(name) for program in programs)
    ]


def main(arguments: list[str]) -> None:
    """Measures, prints and keeps the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side")
    parser.add_argument("--smoke", action="store_true", help="toy size, nothing is kept")
    parser.add_argument("--compare", action="store_true", help="compare, and keep nothing")
    parser.add_argument("--only", choices=COMPARISONS, help="one comparison, nothing is kept")
    parser.add_argument("--venv", type=Path, help="directory of rejax's virtual environment")
    parser.add_argument("--sb3", type=Path, help="directory of Stable-Baselines3's")
    flags = parser.parse_args(arguments)
    machine.devices()  # before anything uses JAX
    chosen = [flags.only] if flags.only else list(COMPARISONS)[: 2 if flags.smoke else None]
    with tempfile.TemporaryDirectory() as directory:
        rejax = sb3 = None
        needed = not flags.smoke and "actor-critic" in chosen
        if flags.venv is not None or needed:
            rejax = rejax_sweep.make_rejax(flags.venv or Path(directory) / "rejax")
        if flags.sb3 is not None or needed:
            sb3 = rounds.interpreter(flags.sb3 or Path(directory) / "sb3", SB3)
        rows = []
        for comparison in chosen:
            changes = SMOKE if flags.smoke else COMPARISONS[comparison]
            started = commands(comparison, SETTINGS | changes, rejax, sb3)
            found = measure(comparison, started, num_rounds=1 if flags.smoke else ROUNDS)
            show(found)
            print(f"equal: {EQUAL['all']}; {EQUAL[comparison.partition(',')[0]]}")
            rows += found
    print("different:", *differences(rows), sep="\n  ")
    for name, missing in (("rejax: give --venv", rejax), ("Stable-Baselines3: give --sb3", sb3)):
        if missing is None and "actor-critic" in chosen:
            print(f"not run, {name}")
    settings = SETTINGS | {"changes": COMPARISONS, "rounds": ROUNDS}
    if flags.compare and not flags.smoke:
        print(*kept.compare("side_by_side", rows, settings=settings), sep="\n")
    elif not flags.smoke and not flags.only:
        notes = {"equal": EQUAL, "different": DIFFERENT}
        kept.keep("side_by_side", rows, settings=settings, notes=notes)


if __name__ == "__main__":
    main(sys.argv[1:])
