"""Functions called in fresh processes, for what depends on all that a process has done."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a benchmark returns in a process of its own.

    Args:
      function: at the top of a module of `benchmarks`; what it returns can be written as JSON.
      *args: can be written as JSON, too.

    Raises:
      RuntimeError: the process failed; the message is what it said.
    """
    script = Path(function.__code__.co_filename).stem
    program = (
        "import json, sys; "
        f"from benchmarks.{script} import {function.__name__} as function; "
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(args)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{script}.{function.__name__}{args} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
