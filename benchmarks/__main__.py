"""Runs all benchmarks or those that are named, one after the other.

python -m benchmarks                        # all; each keeps its result and says what moved,
                                            # and what is kept is drawn
python -m benchmarks throughput memory      # these two
python -m benchmarks --smoke                # all at toy size; keeps nothing
"""

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "time_to_solve",
    "compile_time",
    "layout",
    "chunk_size",
    "gradient_norms",
    "oracle",
    "kernels",
    "roofline",
    "memory",
    "throughput",
    "short_episodes",
    "huge_pages",
    "scaling",
    "sweep",
    "audit_cost",
    "rejax_sweep",
    "side_by_side",
)


def main(arguments: list[str]) -> int:
    """Runs each in a process of its own; returns how many failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--smoke", action="store_true", help="toy size, nothing is kept")
    parser.add_argument("--compare", action="store_true", help="compare, and keep nothing")
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    passed = [f"--{flag}" for flag in ("smoke", "compare") if getattr(flags, flag)]
    failed = []
    for name in flags.names or BENCHMARKS:
        print(f"== {name}", flush=True)
        if not run(name, *passed):
            failed.append(name)
    if not passed:
        run("figures")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def run(module: str, *arguments: str) -> bool:
    """Runs a module of the suite in a process of its own; whether it succeeded."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
