"""What a study leaves: a figure, its numbers, what it found, and the machine it ran on."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


class Findings(NamedTuple):
    """What a study returns."""

    figure: Figure
    numbers: dict[str, Any]
    paragraph: str


def main(name: str, study: Callable[[bool], Findings], description: str) -> None:
    """Runs a study from the command line and keeps what it found.

    A full run is kept in `experiments/results/<name>/`; a quick one, `--quick`, goes to
    `runs/`, so that it does not take the place of a full one.

    Args:
      name: of the study.
      study: told whether to be quick.
      description: for `--help`.
    """

    def command(quick: bool = False, output: Path | None = None) -> None:
        """Run the study.

        Args:
          quick: A smaller version, in less than a minute.
          output: Folder for what it finds.
        """
        begun = time.perf_counter()
        with jax.enable_x64(True):
            findings = study(quick)
        seconds = time.perf_counter() - begun
        folder = output or (Path("runs", f"quick-{name}") if quick else RESULTS / name)
        keep(folder, f"python -m experiments.{name}{' --quick' * quick}", findings, seconds)
        print(f"\n{findings.paragraph}\n\n{folder}: figure.png, numbers.json, finding.md")

    tyro.cli(command, prog=f"python -m experiments.{name}", description=description)


def keep(folder: Path, command: str, findings: Findings, seconds: float) -> None:
    """Writes figure, numbers and paragraph into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    findings.figure.savefig(folder / "figure.png", dpi=150)
    made = {"command": command, "machine": machine(), "seconds": round(seconds, 1)}
    numbers = json.dumps(made | {"numbers": plain(findings.numbers)}, indent=1) + "\n"
    (folder / "numbers.json").write_text(numbers)
    (folder / "finding.md").write_text(findings.paragraph + "\n")


def machine() -> str:
    """The machine that the figures were measured on."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"


def plain(tree: Any) -> Any:
    """Arrays as lists and their numbers to six digits, for JSON."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    if isinstance(tree, (jax.Array, np.ndarray, np.generic)):
        return plain(np.asarray(tree).tolist())
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree
