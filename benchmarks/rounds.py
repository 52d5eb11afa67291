"""Programs timed in turn, each in a process of its own that is kept alive and told when to run.

A process is started with its settings. It answers with one line of JSON once everything is
compiled, and then answers every line on its standard input with the outcome of running the program
named there. Nothing here imports pgjax, and only `serve` imports JAX, so that other libraries can
run this in environments of their own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# The processes share an accelerator; by itself JAX would give the first three quarters of it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

XLA_FLAGS = ""
"""Flags of XLA in the processes that are timed, whatever this process has."""


class Command(NamedTuple):
    """How a process is started."""

    python: str
    module: str
    settings: dict  # among them `num_devices`
    environment: Mapping[str, str] = {}  # added to this process's own


class Side(NamedTuple):
    """A process that serves, and what it said of itself when it was ready."""

    process: Any  # a `subprocess.Popen` with pipes
    about: dict  # `versions` and, by program, `compile_seconds`


class Timed(NamedTuple):
    """What a process said of one of its programs."""

    side: str
    program: str
    versions: dict[str, str]
    compile_seconds: float
    seconds: list[float]  # by round
    cpu_seconds: list[float]
    evaluation: dict  # what the process made of the outputs of its last run


def compare(commands: Mapping[str, Command], num_rounds: int) -> list[Timed]:
    """Runs every program of every process in turn, in rounds of which the first is not counted."""
    sides = {}
    try:
        for name, command in commands.items():
            sides[name] = start(command)
        answers = {
            (name, program): []
            for name, side in sides.items()
            for program in side.about["compile_seconds"]
        }
        for _ in range(1 + num_rounds):
            for (name, program), answered in answers.items():
                answered.append(ask(sides[name], program))
        evaluations = {name: ask(side, "evaluate") for name, side in sides.items()}
    finally:
        for side in sides.values():
            stop(side)
    return [
        Timed(
            side=name,
            program=program,
            versions=sides[name].about["versions"],
            compile_seconds=sides[name].about["compile_seconds"][program],
            seconds=[one["seconds"] for one in answered[1:]],
            cpu_seconds=[one["cpu_seconds"] for one in answered[1:]],
            evaluation=evaluations[name],
        )
        for (name, program), answered in answers.items()
    ]


def interpreter(venv: Path, packages: list[str]) -> str:
    """The interpreter of a virtual environment that is made or completed first."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return str(python)


def start(command: Command) -> Side:
    """Starts `python -m module` on the settings, and waits until it has compiled.

    JAX has `num_devices` of the settings there, which it must know before anything asks for
    devices. XLA's flags are `XLA_FLAGS`: this process has those of pgjax, and others must not.
    """
    python, module, settings, environment = command
    told = {"JAX_NUM_CPU_DEVICES": str(settings["num_devices"]), "XLA_FLAGS": XLA_FLAGS}
    process = subprocess.Popen(
        [python, "-m", module, json.dumps(settings)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | told | dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Side(process, _answer(process))


def ask(side: Side, what: str) -> dict:
    """The answer to one line."""
    side.process.stdin.write(what + "\n")
    side.process.stdin.flush()
    return _answer(side.process)


def stop(side: Side) -> None:
    """Ends the process, by closing its input."""
    side.process.stdin.close()
    side.process.wait()


def _answer(process: Any) -> dict:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args[:3]} ended with status {process.wait()}")
    return json.loads(line)


def read_settings() -> dict:
    """The settings this process was started with."""
    return json.loads(sys.argv[1])


def serve(
    programs: dict[str, Callable],
    arguments: tuple,
    evaluate: Callable[[Any], dict],
    packages: list[str],
    compiler_options: Mapping[str, Any] | None = None,
) -> None:
    """Compiles the programs with JAX, and serves them.

    Args:
      programs: by name, functions that can be jitted.
      arguments: of all of them.
      evaluate: called with the outputs of a program; see `answer`.
      packages: whose versions to tell.
      compiler_options: what a library itself tells XLA.
    """
    import jax

    options = dict(compiler_options or {})
    # Otherwise GPUs and TPUs would round the factors of products; on a CPU there is no choice.
    precision = None if jax.default_backend() == "cpu" else "float32"

    compiled, compile_seconds = {}, {}
    for name, program in programs.items():
        begun = time.perf_counter()
        with jax.default_matmul_precision(precision):
            lowered = jax.jit(program, compiler_options=options).lower(*arguments)
        compiled[name] = lowered.compile()
        compile_seconds[name] = time.perf_counter() - begun

    def run(name):
        return jax.block_until_ready(compiled[name](*arguments))

    runs = {name: partial(run, name) for name in programs}
    answer(runs, compile_seconds, evaluate, packages)


def answer(
    runs: dict[str, Callable[[], Any]],
    compile_seconds: dict[str, float],
    evaluate: Callable[[Any], dict],
    packages: list[str],
) -> None:
    """Runs whichever program is asked for, and times it.

    The line `evaluate` is answered with `evaluate(outputs of the last run)`, untimed.

    Args:
      runs: by name, what is timed; each returns when it is done.
      compile_seconds: by name.
      evaluate: called with the outputs of a run.
      packages: whose versions to tell.
    """
    versions = {package: version(package) for package in packages}
    _say({"versions": versions, "compile_seconds": compile_seconds})
    outputs = None
    for line in sys.stdin:
        if line.strip() == "evaluate":
            _say(evaluate(outputs))
            continue
        begun, cpu = time.perf_counter(), time.process_time()
        outputs = runs[line.strip()]()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        come_to_rest()
        _say({"seconds": seconds, "cpu_seconds": cpu_seconds})


def come_to_rest() -> None:
    """Waits until this process is idle, half a minute at most.

    XLA goes on freeing memory after it has answered, at the expense of whatever is timed next.
    """
    for _ in range(300):
        cpu = time.process_time()
        time.sleep(0.1)
        if time.process_time() - cpu < 0.002:
            return


def _say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)
