"""The tables of a sweep: every configuration, every hyperparameter, and what differs from the best.

A table is a list of rows, and a row a mapping of columns to values.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from pgjax.lab import comparisons, statistics
from pgjax.lab.comparisons import Comparison
from pgjax.lab.sweep import scores, words
from pgjax.lab.sweep.scores import Ranking

Row = dict[str, Any]

MOST_COMPARED = 1000
"""Configurations that the best is compared with; the correction is for all pairs in any case."""

NO_TEST = "none over several environments"


def configurations(ranking: Ranking) -> list[Row]:
    """Every configuration, the best first; those without any score come last, unranked.

    A configuration with fewer scores than others stands behind them: a few may be luck, or what is
    left of runs that failed.

    `seeds` counts the scores behind `iqm` (with fewer than four, the mean), its bootstrap interval
    `low` to `high`, `mean`, `min` and `max`. With one seed `low` and `high` are NaN.
    """
    unranked = np.setdiff1d(np.arange(len(ranking.values)), ranking.order)
    crossed = ranking.name == scores.ALL
    diverged = None if crossed else np.nansum(scores.flags(ranking, "diverged"), axis=1)
    missing = None if crossed else _without_score(ranking).sum(axis=1)
    rows = []
    for place, configuration in enumerate([*ranking.order, *unranked]):
        runs = np.concatenate(ranking.runs(configuration))
        centre, low, high = (float(x[configuration]) for x in ranking.summary)
        rows.append(
            {
                "env": ranking.name,
                "rank": place + 1 if len(runs) else "",
                "configuration": words.number(ranking, configuration),
                **_coordinates(ranking, configuration),
                "seeds": len(runs),
                "without_score": "" if missing is None else int(missing[configuration]),
                "diverged": "" if diverged is None else int(diverged[configuration]),
                "iqm": centre,
                "low": low,
                "high": high,
                "mean": runs.mean() if len(runs) else math.nan,
                "min": runs.min() if len(runs) else math.nan,
                "max": runs.max() if len(runs) else math.nan,
            }
        )
    return rows


def against_best(ranking: Ranking) -> list[Comparison]:
    """The best configuration against the others, in the order of their rank.

    The same runs decided which is best, so the correction is for the comparisons of all pairs.
    Over several environments there is a probability of improvement, and no test.
    """
    others = ranking.order[1 : MOST_COMPARED + 1]
    if ranking.values.shape[1] == 1:
        runs = {str(other): ranking.runs(other)[0] for other in others}
        pairs = math.comb(len(ranking.order), 2)
        return comparisons.compare(ranking.runs(ranking.best)[0], runs, num_comparisons=pairs)
    return [_improvement(ranking, int(other)) for other in others]


COMPARED = (
    "env",
    "best",
    "rank",
    "configuration",
    "other",
    "test",
    "runs_of_best",
    "runs_of_other",
    "statistic",
    "p_value",
    "corrected_p_value",
    "correction",
    "num_comparisons",
    "probability_of_improvement",
    "low",
    "high",
)
"""Columns of what was compared."""


def comparison_rows(ranking: Ranking, found: Sequence[Comparison]) -> list[Row]:
    """What was compared, how, and what came out."""
    best = words.named(ranking, ranking.best)
    return [
        dict(
            zip(
                COMPARED,
                (
                    ranking.name,
                    best,
                    place + 2,
                    words.number(ranking, int(one.other)),
                    words.named(ranking, int(one.other)),
                    one.test,
                    *one.num_runs,
                    one.statistic,
                    one.p_value,
                    one.corrected,
                    one.correction,
                    one.num_comparisons,
                    *map(float, one.improvement),
                ),
                strict=True,
            )
        )
        for place, one in enumerate(found)
    ]


def hyperparameter_levels(ranking: Ranking) -> list[Row]:
    """Every value of what was swept over few values: the best with it, and the average with it."""
    return [
        {
            "hyperparameter": name,
            "value": level.value,
            "configurations": len(level.members),
            "best of the others": words.in_words(ranking.summary, level.best),
            "average over the others": words.in_words(level.average),
        }
        for name in ranking.hyper
        if scores.has_levels(ranking, name)
        for level in scores.levels(ranking, name)
    ]


def hyperparameter_trends(ranking: Ranking) -> list[Row]:
    """What was drawn from a range: the range, the best value, and Spearman's rank correlation."""
    rows = []
    for name, column in ranking.hyper.items():
        if scores.has_levels(ranking, name):
            continue
        ranked, centres = column[ranking.order].astype(float), _centres(ranking)
        flat = np.ptp(ranked) == 0 or np.ptp(centres) == 0
        ranks = stats.rankdata([ranked, centres], axis=1)
        correlation = math.nan if flat else float(np.corrcoef(ranks)[0, 1])
        rows.append(
            {
                "hyperparameter": name,
                "lowest": ranked.min(),
                "highest": ranked.max(),
                "of the best": column[ranking.best],
                "rank correlation with the score": correlation,
            }
        )
    return rows


def metrics(ranking: Ranking, count: int) -> list[Row]:
    """The first configurations by every metric over environments, with intervals."""
    rows = []
    for configuration in ranking.order[:count]:
        runs = [task for task in ranking.runs(configuration) if len(task)]
        found = {name: statistics.aggregate(runs, m) for name, m in statistics.METRICS.items()}
        rows.append(
            {
                "configuration": words.named(ranking, configuration),
                **{name: words.in_words(summary) for name, summary in found.items()},
            }
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown."""
    cells = [[_escaped(x) for x in row.values()] for row in rows]
    lines = [list(map(_escaped, rows[0])), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_csv(rows: Sequence[Row], header: Sequence[str] = ()) -> str:
    """Rows as comma-separated values; numbers keep all their digits, NaN is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else header, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(x) for name, x in row.items()} for row in rows)
    return text.getvalue()


def _improvement(ranking: Ranking, other: int) -> Comparison:
    pairs = zip(ranking.runs(ranking.best), ranking.runs(other), strict=True)
    x, y = zip(*((x, y) for x, y in pairs if len(x) and len(y)), strict=True)
    return Comparison(
        other=str(other),
        test=NO_TEST,
        num_runs=(sum(map(len, x)), sum(map(len, y))),
        statistic=math.nan,
        p_value=math.nan,
        corrected=math.nan,
        correction="none",
        num_comparisons=0,
        improvement=comparisons.probability_of_improvement(x, y),
    )


def _without_score(ranking: Ranking) -> np.ndarray:
    return np.isnan(ranking.values[:, 0])


def _centres(ranking: Ranking) -> np.ndarray:
    return ranking.summary.centre[ranking.order]


def _coordinates(ranking: Ranking, configuration: int) -> Row:
    return {name: column[configuration] for name, column in ranking.hyper.items()}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return "" if isinstance(value, float) and math.isnan(value) else value


def _escaped(value: Any) -> str:
    return words.short(value).replace("|", "\\|")
