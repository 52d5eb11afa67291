"""The report of a sweep: text, tables and figures, in a directory."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pgjax.lab import comparisons, directory, statistics
from pgjax.lab.comparisons import Comparison
from pgjax.lab.sweep import figures, scores, tables, words
from pgjax.lab.sweep.scores import Ranking

MOST_ROWS = 10
"""Rows of a table that the text shows; the files of comma-separated values have them all."""

MOST_NAMED = 50
"""Configurations that are named for each thing that may befall a run."""

FEW_SEEDS = 10

SHORT_INTERVALS = (
    "Percentile bootstrap intervals of few seeds are too short: of normal scores, those of 3 seeds "
    "hold the truth about 75% of the time instead of 95%, those of 5 about 89%, of 10 about 93%."
)
CAPTIONS = {
    "sensitivity": "The score against each hyperparameter. Where there are two lines, the best of "
    "the other hyperparameters was chosen by the seeds that it is scored by: it is optimistic.",
    "heat_maps": "The score over pairs of hyperparameters.",
    "sample_efficiency": "Learning curves of finished runs: centres over seeds and 95% bands. A "
    "run that took fewer steps than the others of its configuration goes on at its last value.",
    "performance_profiles": "Share of runs that score more than a threshold, with 95% bands.",
    "probability_of_improvement": "The best configuration against those that follow it.",
}


def write(dataset: xr.Dataset, output: Path) -> list[Path]:
    """Writes the report of a sweep: `report.md`, two tables in full and the figures.

    Args:
      dataset: runs over hyperparameters (or `configuration`) and `seed`.
      output: directory; it is made where there is none, and files of the same name are replaced.

    Returns:
      The files, the text first.

    Raises:
      ValueError: no run has a score yet.
    """
    rankings = scores.rankings(dataset)
    output.mkdir(parents=True, exist_ok=True)
    text, drawn = _introduction(dataset), []
    rows: dict[str, list[tables.Row]] = {"configurations.csv": [], "comparisons.csv": []}
    for ranking in rankings:
        compared = tables.against_best(ranking)
        rows["configurations.csv"] += tables.configurations(ranking)
        rows["comparisons.csv"] += tables.comparison_rows(ranking, compared)
        new = figures.draw_ranking(ranking, compared, output)
        text += _section(ranking, compared, [path.name for path in new])
        drawn += new
    text += _befallen(rankings) + _provenance(dataset.attrs)
    for name, table in rows.items():
        directory.write(output / name, tables.as_csv(table, tables.COMPARED))
    # The text comes last: once it is there, so is all that it refers to.
    directory.write(output / "report.md", "\n\n".join(text) + "\n")
    return [output / "report.md", *(output / name for name in rows), *drawn]


def _introduction(dataset: xr.Dataset) -> list[str]:
    swept = json.loads(dataset.attrs["swept"])
    scales = json.loads(dataset.attrs["scales"])
    finished = dataset["finished"].values == 1
    runs, seeds = finished.size, dataset.sizes["seed"]
    diverged = int(np.sum(dataset["diverged"].values == 1))
    sizes = (runs // seeds, "configuration"), (seeds, "seed"), (runs, "run")
    configurations, each, total = (words.counted(*size) for size in sizes)
    names = [", ".join(swept[:-1]), *swept[-1:]]
    title = "Sweep of " + (" and ".join(filter(None, names)) or "seeds")
    pruned = int(np.sum(dataset["pruned"].values == 1)) if "pruned" in dataset else 0
    stopped = f"{pruned} stopped early for others to be tried, " if pruned else ""
    counts = (
        f"Design: {dataset.attrs['design']}. {configurations} x {each} = {total}: "
        f"{finished.sum()} finished, {stopped}{np.sum(~finished) - pruned} not finished, "
        f"{diverged} diverged. Runs that were not carried out to their end are left out of "
        "everything below; runs that diverged are scored as they are. They are named at the end."
    )
    physics = [name for name in swept if name.startswith("env_params.")]
    if physics:
        counts += (
            f" Mind that {', '.join(physics)} belongs to the task: scores at different values of "
            "it are scores of different tasks, and the best configuration is the best of the "
            "easiest."
        )
    score = (
        "The score of a run is the mean return of its final policy in fresh episodes. Seeds are "
        "summarised by the interquartile mean (IQM; of fewer than four, the mean), with 95% "
        "intervals from a bootstrap over seeds (Agarwal et al. 2021)."
    )
    rows = [{"hyperparameter": name, **_tried(dataset[name], scales, name)} for name in swept]
    return [f"# {title}", counts, score, *([tables.markdown(rows)] if rows else []), *_few(seeds)]


def _few(seeds: int) -> list[str]:
    if seeds == 1:
        return ["There is one seed: no interval, and no telling how far off another seed would be."]
    return [SHORT_INTERVALS] if seeds <= FEW_SEEDS else []


def _tried(column: xr.DataArray, scales: Mapping[str, str], name: str) -> tables.Row:
    scale, values = scales.get(name, "choice"), list(dict.fromkeys(column.values.tolist()))
    if len(values) > MOST_ROWS and scale != "choice":
        shown = f"{words.short(min(values))} to {words.short(max(values))}"
    else:
        shown = ", ".join(map(words.short, values))
    return {"scale": scale, "distinct values": len(values), "values": shown}


def _section(ranking: Ranking, compared: Sequence[Comparison], drawn: Sequence[str]) -> list[str]:
    deeper = "#" if ranking.name else ""
    text = [f"## {ranking.name}"] if ranking.name else []
    if ranking.name == scores.ALL:
        text.append(
            "Scores are normalised: in each environment, 0 is the lowest and 1 the highest mean "
            "over seeds of any configuration of this sweep. They compare configurations of this "
            "sweep, and nothing else."
        )
    text += [f"##{deeper} Best configuration", *_best(ranking)]
    text += [f"##{deeper} Configurations", *_configurations(ranking)]
    text += _figure(drawn, "sample_efficiency") + _figure(drawn, "performance_profiles")
    if ranking.hyper:
        text += [f"##{deeper} Hyperparameters"]
        found = tables.hyperparameter_levels(ranking), tables.hyperparameter_trends(ranking)
        text += [tables.markdown(rows) for rows in found if rows]
        text += _figure(drawn, "sensitivity") + _figure(drawn, "heat_maps")
    if compared:
        text += [f"##{deeper} Comparisons with the best", *_comparisons(ranking, compared)]
        text += _figure(drawn, "probability_of_improvement")
    return text


def _best(ranking: Ranking) -> list[str]:
    best = ranking.best
    centre = statistics.centre_name(int(ranking.num_runs[best]))
    found = words.in_words(ranking.summary, best)
    text = [
        f"**{words.named(ranking, best)}**: {ranking.label}, {centre} over "
        f"{words.counted(ranking.num_runs[best], 'run')}: {found}."
    ]
    if len(ranking.order) == 1:
        return text
    warning = (
        f"It was chosen from {len(ranking.order)} by the same runs that it is scored by, so this "
        "score is optimistic, and the interval does not allow for it. For a score without this "
        "selection effect, train the configuration again with seeds that no run here had."
    )
    other = scores.held_out(ranking)
    if not math.isnan(other):
        warning += (
            f" Choosing on one half of the seeds and scoring the choice on the other half gives "
            f"{other:.4g} on average."
        )
    return [*text, warning]


def _configurations(ranking: Ranking) -> Iterator[str]:
    rows = tables.configurations(ranking)
    yield _shown(rows, ("env", "configuration"), "configurations.csv")
    if np.ptp(ranking.num_runs) > 0:
        yield "Configurations with fewer scores than others rank behind them, whatever they score."
    if ranking.name == scores.ALL:
        yield tables.markdown(tables.metrics(ranking, MOST_ROWS))


def _comparisons(ranking: Ranking, compared: Sequence[Comparison]) -> Iterator[str]:
    first = compared[0]
    likely = (
        "The probability of improvement is how likely a run of the best scores more than a run of "
        "the other, with a 95% bootstrap interval, which ignores how the best was chosen; "
        "an interval without width says that these runs do not overlap, not that none ever would."
    )
    if first.test == tables.NO_TEST:
        yield f"{likely} The tests are with the single environments."
    else:
        yield (
            f"Test: {first.test}, of the runs of the best against those of each other "
            f"configuration (their numbers are in the table). p-values are corrected by "
            f"{first.correction}'s method for {first.num_comparisons} comparisons, those of all "
            f"pairs of configurations, since which is best was seen in the same runs. {likely}"
        )
        smallest = min(comparisons.smallest_p_value(*one.num_runs) for one in compared)
        if smallest * first.num_comparisons > 0.05:
            yield (
                f"Mind that no test of so few runs gives a p-value below {smallest:.2g}, which is "
                f"{min(1.0, smallest * first.num_comparisons):.2g} once corrected: this sweep "
                "could not have shown any difference. More seeds could, or fewer configurations."
            )
    rows = tables.comparison_rows(ranking, compared)
    dropped = ("env", "best", "configuration", "test", "correction", "num_comparisons")
    yield _shown(rows, dropped, "comparisons.csv")


def _shown(rows: Sequence[tables.Row], dropped: Sequence[str], file: str) -> str:
    """The first rows, and where all of them are."""
    kept = [{k: x for k, x in row.items() if k not in dropped} for row in rows[:MOST_ROWS]]
    count = f"The first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else "All"
    return f"{tables.markdown(kept)}\n\n{count}; in full in [{file}]({file})."


def _figure(drawn: Sequence[str], name: str) -> list[str]:
    return [
        f"![{CAPTIONS[name]}]({file})\n\n*{CAPTIONS[name]}*"
        for file in drawn
        if file.startswith(name)
    ]


def _befallen(rankings: Sequence[Ranking]) -> list[str]:
    """What befell single runs, each with its coordinates."""
    text = ["## Runs to look at"]
    kinds = {
        "Diverged (scored as they are)": "diverged",
        "Stopped early, for others to be tried (left out)": "pruned",
        "Not finished (left out)": "unfinished",
        "Finished without a finite evaluation (left out)": "unscored",
    }
    for title, kind in kinds.items():
        lines = [line for one in rankings if one.name != scores.ALL for line in _named(one, kind)]
        if lines:
            more = len(lines) - MOST_NAMED
            rest = [f"- and {more} more configurations, in configurations.csv"] if more > 0 else []
            text.append("\n".join([f"{title}:", "", *lines[:MOST_NAMED], *rest]))
    return text if len(text) > 1 else [*text, "None: every run finished, and none diverged."]


def _named(ranking: Ranking, kind: str) -> Iterator[str]:
    finished = scores.flags(ranking, "finished") == 1
    pruned = np.zeros_like(finished)
    if "pruned" in ranking.data:
        pruned = scores.flags(ranking, "pruned") == 1
    which = {
        "diverged": scores.flags(ranking, "diverged") == 1,
        "pruned": pruned,
        "unfinished": ~finished & ~pruned,
        "unscored": finished & np.isnan(ranking.values[:, 0]),
    }[kind]
    seeds = ranking.data["seed"].values
    for configuration in np.flatnonzero(which.any(axis=1)):
        found = ", ".join(map(str, seeds[which[configuration]]))
        env = f"env={ranking.name}, " if ranking.name else ""
        yield f"- {env}{words.named(ranking, int(configuration))}: seed {found}"


def _provenance(attrs: Mapping[str, Any]) -> list[str]:
    versions = json.loads(attrs.get("versions", "{}"))
    rows = [
        {"what": name, "value": attrs.get(key, "unknown")}
        for name, key in (("created", "created"), ("commit", "git_commit"), ("device", "device"))
    ]
    rows += [{"what": name, "value": version} for name, version in versions.items()]
    config = str(attrs.get("config", "")).rstrip()
    return [
        "## Provenance",
        tables.markdown(rows),
        "What was not swept:",
        f"```yaml\n{config}\n```",
    ]
