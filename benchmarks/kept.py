"""The one place that keeps results, and says what moved since they were last kept.

A result is a list of rows: what was measured (`case`) and, by name, what each round measured. The
results of a machine are in `results/<machine kind>/<benchmark>.json`, and are compared with those
of the same kind only. A figure has moved if its medians differ by more than the sum of both
interquartile ranges, and by more than 5%. Times and rates with five cases or more must also have
moved by that much relative to their median change, which is told by itself: a slower machine
changes all of them, and so may slower code.
"""

import argparse
import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
LEAST = 0.05
"""Differences of less than this share of a figure do not count."""
DRIFTING = re.compile("second|minute")
"""Names of figures that depend on how busy the host is."""
ENOUGH = 5
"""Cases that tell the drift of a machine from a change of some."""

CPUINFO = Path("/proc/cpuinfo")
NUMBERS = {"family": "cpu family", "model": "model"}
"""Numbers that tell processors of one name apart, and what Linux calls them."""

Row = dict[str, Any]
"""`case`, `measured` (median, quartiles and rounds by name) and `facts`, as `row` makes it."""


class Move(NamedTuple):
    """A figure that has moved."""

    case: str
    name: str
    before: float
    after: float


def row(
    case: Mapping[str, str | int | float | bool],
    rounds: Mapping[str, Sequence[float]],
    facts: Mapping[str, Any] | None = None,
) -> Row:
    """One row of a result.

    Args:
      case: what was measured; it tells the row from the others of its benchmark.
      rounds: by name, what each round measured; one round for what has no spread, such as bytes.
      facts: what else to keep; it is never compared.

    Raises:
      ValueError: there are no rounds, or one is not a finite number.
    """
    made = {"case": dict(case), "measured": {name: _summary(name, rounds[name]) for name in rounds}}
    return made | ({"facts": dict(facts)} if facts else {})


def median(of: Row, name: str) -> float:
    """The median of one figure of a row."""
    return of["measured"][name]["median"]


def machine() -> dict[str, str]:
    """The machine that was measured on; results are kept under its `kind`."""
    import jax

    from pgjax.lab import machine

    return {
        "kind": kind(),
        "devices": machine.describe(),
        "cores": str(machine.cores()),
        "processor": _processor(),
        "jax": jax.__version__,
    }


def kind() -> str:
    """The kind of machine, such as cpu-2-amd-epyc-family-25-model-17 or gpu-1-nvidia-h200."""
    import jax

    from pgjax.lab import machine

    machine.prepare()  # a benchmark that measures other processes may not have used JAX
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return _slug(f"cpu-{machine.cores()}-{_processor()}")
    return _slug(f"{devices[0].platform}-{len(devices)}-{devices[0].device_kind}")


def code() -> dict[str, str]:
    """Which code was measured, and when."""
    from pgjax.lab import revision

    here = Path(__file__).parent
    return {
        "commit": revision.commit(revision.PACKAGE, *here.glob("*.py")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def path(benchmark: str, results: Path | None = None) -> Path:
    """Where a benchmark's result for this kind of machine is kept."""
    return (results or RESULTS) / kind() / f"{benchmark}.json"


def read(file: Path) -> dict[str, Any]:
    """A kept result; empty if there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def compare(
    benchmark: str,
    rows: Iterable[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    results: Path | None = None,
) -> list[str]:
    """Lines that say what moved, or is gone, since the result for this kind of machine was kept."""
    rows = list(rows)
    before = read(path(benchmark, results))
    if not before:
        return [f"{benchmark}: nothing is kept of {kind()} to compare with"]
    if before.get("settings", {}) != _plain(settings):
        return [f"{benchmark}: kept with other settings, so nothing is compared"]
    pairs = _pairs(before["rows"], rows)
    moves = moved(before["rows"], rows)
    ratios = [new["median"] / old["median"] for *_, old, new in pairs if old["median"]]
    lines = [
        f"moved: {move.case}, {move.name}: {in_short(move.before)} -> {in_short(move.after)} "
        f"({_change(move)})"
        for move in moves
    ]
    lines += [
        f"all {name}: {drift - 1:+.0%} in the median, by the machine or by a change to most cases"
        for name, drift in _drifts(pairs).items()
        if abs(drift - 1) > LEAST
    ]
    gone = _by_case(before["rows"]).keys() - _by_case(rows)
    lines += [f"not measured this time: {case}" for case in sorted(gone)]
    kept = before.get("code", {})
    lines += [f"kept of {kept['commit']}, {kept['date']}"] if kept else []
    together = f", all by a median of {statistics.median(ratios) - 1:+.0%}" if ratios else ""
    count = f"{len(moves)} of {len(pairs)} figures"
    return [*lines, f"{benchmark}: {count} moved by more than their noise{together}"]


def moved(before: Iterable[Row], after: Iterable[Row]) -> list[Move]:
    """The figures that differ by more than their noise, in the cases that both have."""
    pairs = _pairs(before, after)
    drifts = _drifts(pairs)
    return [
        Move(case, name, old["median"], new["median"])
        for case, name, old, new in pairs
        if _differ(old, new, 1.0) and _differ(old, new, drifts.get(name, 1.0))
    ]


def keep(
    benchmark: str,
    rows: Sequence[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    results: Path | None = None,
) -> None:
    """Says what moved since the last time, and keeps these rows in place of the last ones.

    Args:
      benchmark: its module's name.
      rows: from `row`, each with a case of its own.
      settings: what all rows have in common; results with other settings are not compared.
      notes: what else to keep about all of them, in words.
      results: the directory of all kinds of machines; None for the one beside this file.

    Raises:
      ValueError: two rows have the same case.
    """
    _by_case(rows)
    for line in compare(benchmark, rows, settings=settings, results=results):
        print(line)
    file = path(benchmark, results)
    content = {
        "command": f"python -m benchmarks.{benchmark}",
        "code": code(),
        "machine": machine(),
        "settings": _plain(settings),
        **({"notes": _plain(notes)} if notes else {}),
        "rows": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_lines(content) + "\n", encoding="utf-8")


def run(
    benchmark: str,
    measure: Callable[[bool], list[Row]],
    arguments: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """The command line of a benchmark: measures, prints a table, and keeps the rows.

    Args:
      benchmark: its module's name.
      measure: gives the rows; told whether to be quick instead of right.
      arguments: of the command line.
      settings: what all rows have in common.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--smoke", action="store_true", help="toy size, nothing is kept")
    parser.add_argument("--compare", action="store_true", help="compare, and keep nothing")
    flags = parser.parse_args(arguments)
    rows = measure(flags.smoke)
    print(table(rows))
    if flags.compare and not flags.smoke:
        print(*compare(benchmark, rows, settings=settings), sep="\n")
    elif not flags.smoke:
        keep(benchmark, rows, settings=settings)


def table(rows: Sequence[Row]) -> str:
    """Cases, medians and half the interquartile range, in columns."""
    cases = list(dict.fromkeys(name for row in rows for name in row["case"]))
    figures = list(dict.fromkeys(name for row in rows for name in row["measured"]))
    cells = [[*cases, *figures]]
    for row in rows:
        own = [str(row["case"].get(name, "")) for name in cases]
        cells.append(own + [_with_spread(row["measured"].get(name)) for name in figures])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    justified = (
        [
            cell.ljust(width) if index < len(cases) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in justified)


def in_short(number: float) -> str:
    """A number to three digits, with a letter for thousands, millions and so on."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def _summary(name: str, rounds: Sequence[float]) -> dict[str, Any]:
    numbers = [float(f"{x:.9g}") for x in rounds]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must have finite rounds, and has {numbers}")
    low, middle, high = (
        statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else 3 * numbers
    )
    return {"median": middle, "low": low, "high": high, "rounds": numbers}


def _differ(old: Mapping[str, Any], new: Mapping[str, Any], drift: float) -> bool:
    noise = drift * (old["high"] - old["low"]) + new["high"] - new["low"]
    difference = abs(new["median"] - drift * old["median"])
    return difference > max(noise, LEAST * abs(drift * old["median"]))


def _drifts(pairs: Iterable[tuple[str, str, dict, dict]]) -> dict[str, float]:
    """By name, the median change of figures that drift, where there are enough of them."""
    changes: dict[str, list[float]] = {}
    for _, name, old, new in pairs:
        if DRIFTING.search(name) and old["median"]:
            changes.setdefault(name, []).append(new["median"] / old["median"])
    return {name: statistics.median(x) for name, x in changes.items() if len(x) >= ENOUGH}


def _pairs(before: Iterable[Row], after: Iterable[Row]) -> list[tuple[str, str, dict, dict]]:
    """Case, name, and the figures then and now, wherever there are both."""
    then = _by_case(before)
    return [
        (case, name, then[case]["measured"][name], figure)
        for case, now in _by_case(after).items()
        for name, figure in now["measured"].items()
        if case in then and name in then[case]["measured"]
    ]


def _by_case(rows: Iterable[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for each in rows:
        case = ", ".join(f"{name} {value}" for name, value in each["case"].items())
        if case in found:
            raise ValueError(f"two rows are of the case {case!r}")
        found[case] = each
    return found


def _change(move: Move) -> str:
    return f"{move.after / move.before - 1:+.0%}" if move.before else "from zero"


def _with_spread(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    if len(figure["rounds"]) == 1 or not figure["median"]:
        return in_short(figure["median"])
    spread = (figure["high"] - figure["low"]) / 2 / abs(figure["median"])
    return f"{in_short(figure['median'])} ±{spread:.0%}"


def _plain(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(dict(settings or {})))


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with one case or figure on a line."""
    text = json.dumps(content, indent=1, allow_nan=False)
    for innermost in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    return text


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def _processor() -> str:
    """The processor's own name, and its family and model where it gives them.

    To a virtual machine, processors that differ by a factor of two in speed are both an AMD EPYC.
    """
    try:
        lines = [line.split(":", 1) for line in CPUINFO.read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    told = {name.strip(): value.strip() for name, value in lines}
    name = told.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{of} {told[key]}" for of, key in NUMBERS.items() if key in told]
    return " ".join([name, *numbers])
