"""Programs timed in turn, each in a process of its own that is kept alive and told when to run.

A process is started with its settings, answers with one line of JSON once everything is compiled,
and then, to every line on its standard input, with what came of running the program named there.
Nothing here imports pgjax, so that other libraries can run it in environments of their own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Side(NamedTuple):
    """A process that serves, and what it said of itself when it was ready."""

    process: Any  # a `subprocess.Popen` with pipes
    about: dict  # `versions` and, by program, `compile_seconds`


def start(python: str, module: str, settings: dict) -> Side:
    """Starts `python -m module` on the settings, and waits until it has compiled.

    JAX has `num_devices` of the settings there, of which it must know before anything asks.
    """
    process = subprocess.Popen(
        [python, "-m", module, json.dumps(settings)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(settings["num_devices"])},
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
    evaluate: Callable[[Any], list[float]],
    packages: list[str],
) -> None:
    """Compiles the programs, then runs whichever is asked for, and times it.

    To `evaluate` it answers with what `evaluate(outputs of the last run)` makes of them, untimed.

    Args:
      programs: by name, functions that can be jitted.
      arguments: of all of them.
      evaluate: of what a program put out.
      packages: whose versions to tell.
    """
    compiled, compile_seconds = {}, {}
    for name, program in programs.items():
        begun = time.perf_counter()
        compiled[name] = jax.jit(program).lower(*arguments).compile()
        compile_seconds[name] = time.perf_counter() - begun
    versions = {package: version(package) for package in packages}
    _say({"versions": versions, "compile_seconds": compile_seconds})
    outputs = None
    for line in sys.stdin:
        if line.strip() == "evaluate":
            _say({"returns": evaluate(outputs)})
            continue
        begun, cpu = time.perf_counter(), time.process_time()
        outputs = jax.block_until_ready(compiled[line.strip()](*arguments))
        cpu_seconds = time.process_time() - cpu
        _say({"seconds": time.perf_counter() - begun, "cpu_seconds": cpu_seconds})


def _say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)
