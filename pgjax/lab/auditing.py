"""Audits of estimators along a training run: bias, variance and cost at its checkpoints."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.sharding import Mesh
from tqdm import tqdm

import pgjax
from pgjax import (
    audit,
    backends,
    checks,
    environments,
    estimators,
    exact,
    gradients,
    sharding,
    train,
)
from pgjax.audit import Audit
from pgjax.estimators import Estimator
from pgjax.lab import (
    audit_data,
    audit_plots,
    checkpoints,
    directory,
    experiment,
    machine,
    parallel,
    records,
)
from pgjax.lab import config as configs
from pgjax.lab import run as runs
from pgjax.lab.config import Config
from pgjax.lab.experiment import Setting

DATA, FIGURE = "audit.nc", "audit.png"

FIT_EPISODES = 64
"""Episodes of an update that fits values, unless the run has fewer."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """What defines an audit along a run, besides the run itself."""

    estimators: tuple[str, ...]
    num_episodes: int = 32
    num_replicates: int = 256
    reference_replicates: int | None = None
    chunk_size: int = 16
    value_updates: int = 200
    seed: int = 0


class Point(NamedTuple):
    """Where in training an audit is made."""

    update: int
    env_steps: int
    params: Any  # {"policy": ..., "value": ...}; no value where none is needed


class Plan(NamedTuple):
    """Audits that are ready to go: all checked, nothing measured, nothing written."""

    config: Config
    choices: Choices
    setting: Setting
    estimators: dict[str, Estimator]
    gradient_fns: dict[str, Callable[..., Any]]
    points: list[Point]
    fits_values: bool
    output: Path


def plan(config: Config, run: Path | None, choices: Choices, output: Path) -> Plan:
    """Checks everything that can be checked before the first sample.

    Args:
      config: what is audited; that of the run where there is one.
      run: directory of a run whose checkpoints are audited, of its first seed; None audits the
        initial params.
      choices: what is measured.
      output: directory for the results.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    experiment.import_modules(config)
    found = {name: parse(name) for name in choices.estimators}
    _check(choices, output)
    if run is not None:
        config = experiment.as_possible(config)
    setting = experiment.setting(config)
    # The return is audited: a bonus that training ascended is no part of it.
    setting = setting._replace(hyper=setting.hyper._replace(entropy_cost=0.0))
    makers = {name: _gradient_fn(setting, config, choices, x) for name, x in found.items()}
    points = [_start(setting, config)] if run is None else _points(config, run)
    needs = any(map(estimators.needs_value, found.values()))
    fits = needs and points[0].params.get("value") is None
    ready = Plan(config, choices, setting, found, makers, points, fits, output)
    params = jax.eval_shape(_fit(ready), jax.random.key(0), points[0].params)
    for gradient_fn in makers.values():
        jax.eval_shape(gradient_fn, jax.random.key(0), params)
    return ready


def parse(name: str) -> Estimator:
    """An estimator by its name, form+baseline or form+baseline+state_weighting.

    Raises:
      ValueError: a name of another shape, or a part that is unknown.
    """
    parts = name.split("+")
    if len(parts) not in (2, 3):
        raise ValueError(
            f"estimators={name!r} must be form+baseline or form+baseline+state_weighting, as in "
            "reward_to_go+leave_one_out"
        )
    return estimators.estimator(*parts)


def carry_out(ready: Plan) -> xr.Dataset:
    """Measures, and writes the data and the figure, whole or not at all.

    Screen: a progress bar, a table, and where things are.
    """
    name, reference = _reference(ready)
    data = _dataset(ready, _measure(ready, reference), name)
    print(audit_data.table(data), flush=True)
    seed, seeds = ready.config.seed, ready.config.seeds
    if seeds > 1:
        print(f"seed: {seed}, the first of {seeds}; the others are not audited")
    ready.output.mkdir(parents=True, exist_ok=True)
    with directory.whole(ready.output / DATA) as part:
        data.to_netcdf(part, engine="h5netcdf")
        audit_plots.along_training(data, ready.output / FIGURE)
    print(f"{ready.output}: {DATA}, {FIGURE}")
    return data


def _check(choices: Choices, output: Path) -> None:
    reason = "an audit needs at least two replicates: variance is their spread"
    replicates = {
        "replicates": choices.num_replicates,
        "reference_replicates": choices.reference_replicates,
    }
    for argument, number in replicates.items():
        if number is not None:
            checks.at_least(argument, number, 2, reason)
            configs.count(argument, number)
    for argument in ("num_episodes", "chunk_size", "value_updates"):
        configs.count(argument, getattr(choices, argument))
    configs.count("seed", choices.seed, least=0)
    if not choices.estimators:
        raise ValueError("estimators=() must name at least one, as in reward_to_go+none")
    if len(set(choices.estimators)) < len(choices.estimators):
        raise ValueError(f"estimators={','.join(choices.estimators)!r} names one twice")
    if (output / DATA).exists():
        raise ValueError(f"output={str(output)!r} holds an audit already; choose another --output")
    directory.writable("output", output)


def _gradient_fn(setting: Setting, config: Config, choices: Choices, estimator: Estimator):
    """The policy's part of an estimator's gradient, at params {"policy", "value"}."""
    needs_value = estimators.needs_value(estimator)
    inner = gradients.policy_gradient(
        setting.env,
        setting.env_params,
        setting.policy,
        estimator,
        setting.hyper,
        num_episodes=choices.num_episodes,
        horizon=setting.horizon,
        value_function=setting.value_function if needs_value else None,
        chunk_size=config.chunk_size,
        mesh=_mesh(choices.num_episodes),
    )

    def gradient_fn(key, params):
        if not needs_value:
            return inner(key, params["policy"])
        gradient, metrics = inner(key, params)
        return gradient["policy"], metrics

    return experiment.in_precision(config.precision, gradient_fn)


def _mesh(num_episodes: int) -> Mesh | None:
    """The devices that share out the episodes of a gradient; None for one."""
    devices = machine.take()
    size = parallel.even(num_episodes, devices)
    return sharding.mesh(devices[:size]) if size > 1 else None


def _start(setting: Setting, config: Config) -> Point:
    key = experiment.inputs([dataclasses.replace(config, seeds=1)]).init[0]
    obs = experiment.blank_observation(setting.env, setting.env_params)
    policy_key, _, _ = jax.random.split(key, 3)
    with backends.matmul_precision(config.precision):
        params = setting.policy.init(policy_key, obs)
    return Point(0, 0, {"policy": params, "value": None})


def _points(config: Config, run: Path) -> list[Point]:
    """The start of a run and its checkpoints, those of the first seed."""
    found, saved = directory.find(run)
    trainer = parallel.over_runs(experiment.build(config), parallel.block(config))
    inputs = experiment.inputs(experiment.each_seed(config))
    template = jax.eval_shape(trainer.init, inputs)
    states = dict(checkpoints.intact(found.checkpoints, template, runs.identity(saved)))
    if not states:
        raise ValueError(f"run {run} has no checkpoint that can be read")
    own = [row for row in records.read(found.metrics) if row.get("seed") == config.seed]
    steps = {row["update"]: int(row["env_steps"]) for row in own} | {0: 0}
    for update in sorted(set(states) - set(steps)):
        warnings.warn(f"passed over update {update}, which the records do not reach", stacklevel=2)
        del states[update]
    states[0] = trainer.init(inputs)
    form = estimators.estimator(config.form, config.baseline, config.state_weighting)
    points = []
    for update in sorted(states):
        params = jax.tree.map(lambda x: jnp.asarray(x[0]), states[update].params)
        if not estimators.needs_value(form):
            params = {"policy": params, "value": None}
        points.append(Point(update, steps[update], params))
    return points


def _fit(ready: Plan) -> Callable[..., Any]:
    """`(key, params) -> params` with values of the policy, fitted on its own episodes."""
    if not ready.fits_values:
        return lambda key, params: params
    setting, config = ready.setting, ready.config
    num_episodes = min(config.num_episodes, FIT_EPISODES)
    gradient_fn = gradients.policy_gradient(
        setting.env,
        setting.env_params,
        setting.policy,
        estimators.estimator("reward_to_go", "value"),
        setting.hyper,
        num_episodes=num_episodes,
        horizon=setting.horizon,
        value_function=setting.value_function,
        chunk_size=config.chunk_size,
        mesh=_mesh(num_episodes),
    )
    moves: dict[Hashable, optax.GradientTransformation] = {
        "policy": optax.set_to_zero(),
        "value": optax.adam(config.value_learning_rate),
    }
    optimizer = optax.partition(moves, {"policy": "policy", "value": "value"})
    obs = experiment.blank_observation(setting.env, setting.env_params)

    def fit(key, params):
        value_key, key = jax.random.split(key)
        params = params | {"value": setting.value_function.init(value_key, obs)}
        state = train.init(key, params, optimizer, gradient_fn)
        steps = ready.choices.value_updates
        return train.train(key, state, gradient_fn, optimizer, num_steps=steps)[0].params

    return experiment.in_precision(config.precision, fit)


def _reference(ready: Plan) -> tuple[str, Callable[..., Any]]:
    """What the truth is taken from, and `(key, params) -> truth`, in the form an audit takes."""
    setting, choices = ready.setting, ready.choices
    if isinstance(setting.env, environments.TabularMDP):
        limit = environments.time_limit(setting.env_params) or setting.horizon
        oracle = exact.exact_gradient(
            setting.env.mdp, setting.policy, setting.hyper, horizon=min(setting.horizon, limit)
        )

        def truth(key, params):
            with jax.enable_x64(True):
                precise = jax.tree.map(lambda x: jnp.asarray(x, float), params["policy"])
                return jax.tree.map(np.asarray, oracle(key, precise)[0])

        return "the exact gradient", truth
    baseline = "leave_one_out" if choices.num_episodes > 1 else "none"
    estimator = estimators.estimator("reward_to_go", baseline, "discounted")
    size = choices.reference_replicates or 4 * choices.num_replicates
    run = audit.auditor(
        _gradient_fn(setting, ready.config, choices, estimator),
        num_replicates=size,
        chunk_size=choices.chunk_size,
    )
    return f"{'+'.join(estimator)}, {size} independent replicates", run


def _measure(ready: Plan, reference: Any) -> list[dict[str, Audit]]:
    """The audits of each point, by estimator."""
    choices = ready.choices
    fit_key, reference_key, key = jax.random.split(jax.random.key(choices.seed), 3)
    fit = jax.jit(_fit(ready))
    auditors = {
        name: audit.auditor(
            gradient_fn, num_replicates=choices.num_replicates, chunk_size=choices.chunk_size
        )
        for name, gradient_fn in ready.gradient_fns.items()
    }
    measured = []
    total = len(ready.points) * (1 + len(auditors))
    with tqdm(total=total, unit="audit", file=sys.stderr) as bar:
        for point in ready.points:
            # On the host: gradients may be made on fewer devices than values were fitted on.
            params = jax.device_get(fit(jax.random.fold_in(fit_key, point.update), point.params))
            truth = reference(jax.random.fold_in(reference_key, point.update), params)
            bar.update()
            audits = {}
            for name, measure in auditors.items():
                bar.set_postfix_str(f"update {point.update}, {name}")
                audits[name] = measure(jax.random.fold_in(key, point.update), params, truth)
                bar.update()
            measured.append(audits)
    return measured


def _dataset(ready: Plan, measured: list[dict[str, Audit]], reference: str) -> xr.Dataset:
    choices = {
        name: value
        for name, value in dataclasses.asdict(ready.choices).items()
        if value is not None
    }
    about = choices | {
        "pgjax": pgjax.__version__,
        "command": " ".join(sys.argv),
        "env": ready.config.env,
        "config": configs.dump(ready.config),
        "reference": reference,
        "estimators": ",".join(ready.choices.estimators),
    }
    verdicts = {
        name: estimators.is_unbiased(estimator, ready.setting.hyper)
        for name, estimator in ready.estimators.items()
    }
    env_steps = {point.update: point.env_steps for point in ready.points}
    return audit_data.dataset(measured, env_steps, verdicts).assign_attrs(about)
