"""Makes rliable.json: what rliable says about fixed scores, for test_statistics.py to compare with.

Run by hand, in an environment of its own, since rliable holds other packages back:

    python -m venv rl && rl/bin/pip install rliable==1.2.0 "pandas<3"
    rl/bin/python tests/lab/make_rliable.py
"""

import json
from pathlib import Path

import numpy as np
from rliable import library, metrics

OUTPUT = Path(__file__).with_name("rliable.json")
RESAMPLES = 20_000
METRICS = {
    "IQM": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "optimality gap": metrics.aggregate_optimality_gap,
}


def plain(estimates):
    """Point and interval of the only method that rliable was asked about."""
    points, intervals = (np.asarray(x["x"]) for x in estimates)
    return {"centre": points.tolist(), "interval": intervals.tolist()}


def main():
    rng = np.random.default_rng(0)
    # rliable draws from numpy's global generator.
    np.random.seed(0)  # noqa: NPY002
    centres = np.array([0.2, 0.5, 0.9, 1.1])
    x = np.round(centres + rng.gamma(2.0, 0.15, size=(9, 4)), 2)
    y = np.round(centres + rng.gamma(2.0, 0.12, size=(6, 4)), 2)
    curve = np.round(np.cumsum(rng.normal(size=(9, 4, 5)), axis=-1), 3)
    thresholds = np.linspace(0.1, 1.9, 10)

    def estimate(scores, func):
        return plain(library.get_interval_estimates({"x": scores}, func, reps=RESAMPLES))

    found = {
        "x": x.tolist(),
        "y": y.tolist(),
        "curve": curve.tolist(),
        "thresholds": thresholds.tolist(),
        "metrics": {
            name: estimate(x, lambda scores, metric=metric: np.array([metric(scores)]))
            for name, metric in METRICS.items()
        },
        "profile": plain(library.create_performance_profile({"x": x}, thresholds, reps=RESAMPLES)),
        "improvement": estimate(
            [x, y], lambda a, b: np.array([metrics.probability_of_improvement(a, b)])
        ),
        "sample efficiency": estimate(
            curve,
            lambda scores: np.array(
                [metrics.aggregate_iqm(scores[..., point]) for point in range(scores.shape[-1])]
            ),
        ),
    }
    OUTPUT.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
