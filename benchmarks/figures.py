"""Draws the kept results, each figure beside its numbers: `python -m benchmarks.figures`.

Points are medians, bars the quartiles.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks import kept
from benchmarks.kept import Row
from pgjax.lab.plots import COLOURS, save

LABELS = {
    "num_rows": "rows",
    "horizon": "steps of a row",
    "width": "width of a layer",
    "depth": "layers",
}
BASE = {"num_rows": 1024, "horizon": 128, "width": 64, "depth": 2}


def draw(directory: Path) -> list[Path]:
    """Draws every figure whose result is kept in the directory of a kind of machine."""
    drawn = []
    for name, figure in FIGURES.items():
        rows = kept.read(directory / f"{name}.json").get("rows")
        if rows:
            drawn.append(directory / f"{name}.png")
            save(figure(rows), drawn[-1])
    return drawn


def throughput(rows: Sequence[Row]) -> Figure:
    """Steps per second against every axis, one line for each way to learn."""
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, 4)
    tasks = dict.fromkeys((row["case"]["env"], row["case"]["endless"]) for row in rows)
    axes = [("num_rows", task) for task in tasks]
    axes += [(axis, next(iter(tasks))) for axis in ("horizon", "width", "depth")]
    for panel, (axis, (env, endless)) in zip(panels.flat, axes, strict=False):
        chosen = [
            row
            for row in rows
            if (row["case"]["axis"], row["case"]["env"], row["case"]["endless"])
            == (axis, env, endless)
        ]
        ways = dict.fromkeys((row["case"]["rows"], row["case"]["learner"]) for row in chosen)
        for index, way in enumerate(ways):
            own = [row for row in chosen if (row["case"]["rows"], row["case"]["learner"]) == way]
            label = f"{way[1]}, {way[0]}"
            line(panel, own, axis, "steps_per_second", label, index)
        panel.set_ylim(bottom=0)
        title = f"{env}, no ends" if endless else env
        style(panel, title, LABELS[axis], "live steps per second")
    finish(figure, panels.flat[: len(axes)], panels.flat[len(axes) :])
    return figure


def memory(rows: Sequence[Row]) -> Figure:
    """Bytes against every axis, one row of panels for each way to learn."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    ways = list(dict.fromkeys((row["case"]["rows"], row["case"]["learner"]) for row in rows))
    axes = ("num_rows", "horizon", "depth")
    panels = figure.subplots(len(ways), len(axes), sharey="row", squeeze=False)
    figures = {
        "trajectory_bytes": "trajectory",
        "temporary_bytes": "temporaries, by XLA",
        "peak_bytes": "peak of the process, beyond before",
    }
    for of_way, way in zip(panels, ways, strict=True):
        for panel, axis in zip(of_way, axes, strict=True):
            others = {name: value for name, value in BASE.items() if name != axis}
            chosen = [
                row
                for row in rows
                if (row["case"]["rows"], row["case"]["learner"]) == way
                and all(row["case"][name] == value for name, value in others.items())
            ]
            for index, (name, label) in enumerate(figures.items()):
                line(panel, chosen, axis, name, label, index)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(EngFormatter())
            style(panel, f"{way[1]}, {way[0]}", LABELS[axis], "bytes")
    finish(figure, panels.flat, ())
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """Shares of what the machine can do, for each program."""
    programs = [row for row in rows if "num_rows" in row["case"]]
    figures = {
        "gemm_share": "matrix products, activations stored",
        "gemm_share_twice": "matrix products, computed twice",
        "tall_share_twice": "tall matrix products, computed twice",
        "tanh_share": "tanh",
        "bandwidth_share": "memory, trajectory alone",
        "bandwidth_share_uncached": "memory, nothing cached",
    }
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    height = 0.8 / len(programs)
    for index, row in enumerate(programs):
        own = [(at, name) for at, name in enumerate(figures) if name in row["measured"]]
        places = [at + (index - (len(programs) - 1) / 2) * height for at, _ in own]
        measured = [row["measured"][name] for _, name in own]
        label = f"{row['case']['of']}, {row['case']['num_rows']} rows"
        colour = COLOURS[index % len(COLOURS)]
        medians = [each["median"] for each in measured]
        panel.barh(places, medians, height, xerr=spread(measured), color=colour, label=label)
    panel.set_yticks(range(len(figures)), list(figures.values()))
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    style(panel, "", "share of what the machine has", "")
    panel.legend(frameon=False, fontsize="small")
    return figure


def compile_time(rows: Sequence[Row]) -> Figure:
    """Seconds of tracing and compiling, stacked."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    panel = figure.subplots()
    names = [row["case"]["cache"] for row in rows]
    under = [0.0] * len(rows)
    for index, part in enumerate(("tracing", "compiling")):
        medians = [kept.median(row, f"{part}_seconds") for row in rows]
        panel.bar(names, medians, 0.5, bottom=under, color=COLOURS[index], label=part)
        under = [a + b for a, b in zip(under, medians, strict=True)]
    both = [row["measured"]["tracing_and_compiling_seconds"] for row in rows]
    middles = [each["median"] for each in both]
    panel.errorbar(names, middles, yerr=spread(both), fmt="none", ecolor="black", capsize=4)
    style(panel, "", "compilation cache", "seconds")
    panel.legend(frameon=False, fontsize="small")
    return figure


def chunk_size(rows: Sequence[Row]) -> Figure:
    """Steps per second and temporary bytes against the number of samples in a chunk."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    names = {"steps_per_second": "live steps per second", "temporary_bytes": "temporary bytes"}
    for panel, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        line(panel, rows, "chunk_size", name, "", 0)
        panel.set_ylim(bottom=0)
        style(panel, "", "samples of a chunk", label)
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Steps per second against devices, in one process or one in each, beside what is ideal."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    kinds = ("strong", "weak")
    panels = figure.subplots(1, len(kinds), sharey=True)
    ways = {"devices of one process": "processes", "processes of one device": "devices"}
    for panel, kind in zip(panels, kinds, strict=True):
        sized = [
            row
            | {"case": row["case"] | {"size": row["case"]["processes"] * row["case"]["devices"]}}
            for row in rows
            if row["case"]["scaling"] == kind
        ]
        for index, (label, held) in enumerate(ways.items()):
            chosen = [row for row in sized if row["case"][held] == 1]
            line(panel, chosen, "size", "steps_per_second", label, index)
        (alone,) = [row for row in sized if row["case"]["size"] == 1]
        sizes = sorted({row["case"]["size"] for row in sized})
        ideal = [kept.median(alone, "steps_per_second") * size for size in sizes]
        panel.plot(sizes, ideal, color="grey", linestyle=":", label="ideal")
        panel.set_ylim(bottom=0)
        style(panel, f"{kind} scaling", "devices", "steps per second")
    finish(figure, panels, ())
    return figure


def bars(name: str, across: str) -> Callable[[Sequence[Row]], Figure]:
    """Draws one bar for each case that has a figure of a name, and a line at one for ratios."""

    def draw(rows: Sequence[Row]) -> Figure:
        chosen = [row for row in rows if name in row["measured"]]
        values = {key: {str(row["case"].get(key)) for row in chosen} for key in chosen[0]["case"]}
        telling = [key for key, found in values.items() if len(found) > 1]
        labels = [", ".join(described(key, row["case"][key]) for key in telling) for row in chosen]
        measured = [row["measured"][name] for row in chosen]
        figure = Figure(figsize=(9, 1.2 + 0.24 * len(chosen)), layout="constrained")
        panel = figure.subplots()
        medians = [each["median"] for each in measured]
        panel.barh(range(len(chosen)), medians, xerr=spread(measured), color=COLOURS[0], capsize=2)
        panel.set_yticks(range(len(chosen)), labels, fontsize="small")
        panel.invert_yaxis()
        if max(medians) > 20 * min(medians):
            panel.set_xscale("log")
        else:
            panel.set_xlim(left=0)
        if name in ("ratio", "speed", "gain"):
            panel.axvline(1, color="black", linewidth=0.8)
        style(panel, "", across, "")
        return figure

    return draw


def described(key: str, value: str | int | float | bool) -> str:
    """A value of a case; numbers and truths with what they are of."""
    return value if isinstance(value, str) else f"{key.replace('_', ' ')} {value}"


FIGURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "throughput": throughput,
    "memory": memory,
    "roofline": roofline,
    "compile_time": compile_time,
    "chunk_size": chunk_size,
    "scaling": scaling,
    "side_by_side": bars("ratio", "throughput of pgjax, over that of the program"),
    "rejax_sweep": bars("ratio", "trainings per minute of pgjax, over those of the program"),
    "sweep": bars("ratio", "throughput, over that of a single run"),
    "short_episodes": bars("ratio", "live steps per second, over those with segments"),
    "audit_cost": bars("ratio", "seconds of an audit, over those of training"),
    "layout": bars("speed", "live steps per second, over those with pgjax's layout"),
    "huge_pages": bars("gain", "live steps per second with huge pages, over those without"),
    "gradient_norms": bars("milliseconds", "milliseconds"),
    "oracle": bars("seconds", "seconds, compilation included"),
    "kernels": bars("milliseconds", "milliseconds"),
}


def line(panel: Axes, rows: Sequence[Row], axis: str, name: str, label: str, index: int) -> None:
    """Draws one figure of some rows against a logarithmic axis."""
    ordered = sorted(rows, key=lambda row: row["case"][axis])
    measured = [row["measured"][name] for row in ordered]
    points = [row["case"][axis] for row in ordered]
    panel.errorbar(
        points,
        [each["median"] for each in measured],
        yerr=spread(measured),
        color=COLOURS[index % len(COLOURS)],
        marker="os^Dv"[index % 5],
        markersize=4,
        capsize=2,
        label=label,
    )
    panel.set_xscale("log", base=2)
    shown = sorted({x for each in panel.containers for x in each.lines[0].get_xdata()})
    panel.set_xticks(shown, [str(point) for point in shown], fontsize="x-small")
    panel.yaxis.set_major_formatter(EngFormatter())


def spread(measured: Iterable[dict]) -> tuple[list[float], list[float]]:
    """Distances from the median down to the lower quartile and up to the upper one."""
    figures = list(measured)
    return (
        [each["median"] - each["low"] for each in figures],
        [each["high"] - each["median"] for each in figures],
    )


def style(panel: Axes, title: str, across: str, up: str) -> None:
    """Sets the title, the names of the axes and a faint grid."""
    panel.set_title(title, fontsize="medium")
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def finish(figure: Figure, panels: Iterable[Axes], empty: Iterable[Axes]) -> None:
    """Puts one legend above all panels; removes those that show nothing."""
    found = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    for panel in empty:
        panel.remove()
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside upper center",
        ncols=len(found),
        frameon=False,
    )


def main() -> int:
    """Draws the figures of every kind of machine; returns 1 if nothing is kept."""
    drawn = [
        path for each in sorted(kept.RESULTS.iterdir()) if each.is_dir() for path in draw(each)
    ]
    print(*(path.relative_to(kept.RESULTS.parent) for path in drawn), sep="\n")
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
