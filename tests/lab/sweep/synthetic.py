"""Sweeps that nobody ran, with a known best configuration."""

import json

import numpy as np
import xarray as xr

UPDATES = 12
GRID = {
    "learning_rate": [0.001, 0.003, 0.01, 0.03],
    "discount": [0.9, 0.99],
    "form": ["reward_to_go", "gae"],
}
SCALES = {"learning_rate": "log", "discount": "linear", "form": "choice", "env": "choice"}
BEST = {"learning_rate": 0.01, "discount": 0.99, "form": "gae"}


def truth(learning_rate=0.01, discount=0.99, form="gae", env="CartPole-v1"):
    """The expected return of a configuration; highest at `BEST`."""
    away = np.abs(np.log10(np.asarray(learning_rate, float)) + 2)
    score = 400 - 180 * away + 600 * (np.asarray(discount, float) - 0.99)
    score = score + np.where(np.asarray(form) == "gae", 40, 0)
    return np.where(np.asarray(env) == "CartPole-v1", score, score / 1000 - 1)


def grid(seeds=8, noise=20.0, axes=GRID, key=0):
    """A grid, in which one run diverged and one was not finished where there is room for it."""
    mesh = dict(zip(axes, np.meshgrid(*axes.values(), indexing="ij"), strict=True))
    data = _dataset(tuple(axes), truth(**mesh), dict(axes), seeds, noise, key)
    data.attrs |= {"design": "grid", **_described(axes)}
    if axes is GRID and seeds > 2:
        where = {"learning_rate": 3, "discount": 0, "form": 0}
        data["diverged"][{**where, "seed": 1}] = 1
        for name in ("evaluation_return", "evaluation_episode_length", "diverged", "seconds"):
            data[name][{**where, "seed": 2}] = np.nan
        data["finished"][{**where, "seed": 2}] = False
        data["return"][{**where, "seed": 2, "update": slice(5, None)}] = np.nan
        data["env_steps"][{**where, "seed": 2, "update": slice(5, None)}] = np.nan
    return data


def random(configurations=30, seeds=5, noise=20.0, key=0, envs=()):
    """A random design."""
    rng = np.random.default_rng(100 + key)
    columns = {
        "learning_rate": 10 ** rng.uniform(-3, -1, configurations),
        "discount": rng.uniform(0.9, 0.999, configurations),
        "form": rng.choice(["reward_to_go", "gae"], configurations),
    }
    if envs:
        columns["env"] = np.resize(envs, configurations)
    coords = {name: ("configuration", column) for name, column in columns.items()}
    coords |= {"configuration": np.arange(configurations)}
    data = _dataset(("configuration",), truth(**columns), coords, seeds, noise, key)
    data.attrs |= {"design": "random", **_described(columns)}
    return data


def alone(seeds=8, key=0):
    """A sweep of seeds only."""
    data = _dataset((), truth(), {}, seeds, 20.0, key)
    data.attrs |= {"design": "grid", **_described({})}
    return data


def _described(names):
    scales = {name: SCALES.get(name, "linear") for name in names}
    return {"swept": json.dumps(list(names)), "scales": json.dumps(scales)}


def _dataset(dims, expected, coords, seeds, noise, key):
    rng = np.random.default_rng(key)
    shape = (*np.shape(expected), seeds)
    scale = noise * np.where(np.asarray(expected) < 0, 1e-3, 1.0)
    final = np.asarray(expected)[..., None] + scale[..., None] * rng.normal(size=shape)
    lengths = rng.uniform(400, 600, size=(*shape, UPDATES))
    progress = 1 - np.exp(-4 * np.arange(1, UPDATES + 1) / UPDATES)
    runs, curves = (*dims, "seed"), (*dims, "seed", "update")
    variables = {
        "evaluation_return": (
            runs,
            final,
            "mean return of fresh episodes of the final policy",
            "reward",
        ),
        "evaluation_episode_length": (
            runs,
            final.copy(),
            "mean length of fresh episodes",
            "environment steps",
        ),
        "diverged": (runs, np.zeros(shape), "diverged", "1"),
        "seconds": (runs, np.ones(shape), "time of the run", "s"),
        "finished": (runs, np.ones(shape, bool), "finished", "1"),
        "return": (
            curves,
            final[..., None] * progress,
            "mean return of the update's episodes",
            "reward",
        ),
        "env_steps": (
            curves,
            lengths.cumsum(-1),
            "environment steps since the start",
            "environment steps",
        ),
    }
    return xr.Dataset(
        {
            name: (over, values, {"long_name": long_name, "units": units})
            for name, (over, values, long_name, units) in variables.items()
        },
        coords={**coords, "seed": np.arange(seeds), "update": np.arange(1, UPDATES + 1)},
        attrs={
            "config": "horizon: 200\nnum_updates: 12\n",
            "created": "2025-01-01T00:00:00+00:00",
            "git_commit": "0123abc",
            "device": "cpu",
            "versions": json.dumps({"jax": "0.10.2", "numpy": "2.4.6"}),
        },
    )
