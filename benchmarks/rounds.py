"""Programs timed in turn, each in a process of its own that is kept alive and told when to run.

A process is started with its settings, answers with one line of JSON once everything is compiled,
and then, to every line on its standard input, with what came of running the program named there.
Nothing here imports pgjax, and JAX only where it is served, so that other libraries can run it in
environments of their own.
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

# All of them share an accelerator, of which JAX would give the first three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

XLA_FLAGS = ""
"""What processes that are timed have of them, whatever this one has."""


class Command(NamedTuple):
    """How a process is started."""

    python: str
    module: str
    settings: dict  # among them `num_devices`
    environment: Mapping[str, str] = {}  # what it is told beside this process's own


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
    """Runs every program of every process in turn, round after round; the first is not counted."""
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

    JAX has `num_devices` of the settings there, of which it must know before anything asks. XLA's
    flags are `XLA_FLAGS`: those of pgjax are in this process, and others must not have them.
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
      evaluate: of what a program put out; see `answer`.
      packages: whose versions to tell.
      compiler_options: what a library itself tells XLA.
    """
    import jax

    options = dict(compiler_options or {})
    # Else GPUs and TPUs would round the factors of products; a CPU has nothing to choose.
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
    """Runs whichever is asked for, and times it.

    To `evaluate` it answers with what `evaluate(outputs of the last run)` makes of them, untimed.

    Args:
      runs: by name, what is timed; each returns when it is through.
      compile_seconds: by name.
      evaluate: of what a run put out.
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
    """Waits until this process does nothing any more, half a minute at most.

    XLA goes on to free memory when it has answered, at the expense of whoever is timed next.
    """
    for _ in range(300):
        cpu = time.process_time()
        time.sleep(0.1)
        if time.process_time() - cpu < 0.002:
            return


def _say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)
