"""The command line of `pgjax sweep`; JAX waits until the command runs."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.lab.refusals import refusing, without_collection
from pgjax.lab.sweep.settings import OPTIONS, Sweep


def _flags() -> Any:
    """A record with a field of text for everything that can be chosen, None where nothing is."""
    said = configs.documentation(Config) | configs.documentation(Sweep)
    fields: list[Any] = []
    for field in dataclasses.fields(Config):
        kind: Any = dict[str, str] if field.name == "env_params" else str | None
        default = dataclasses.field(default_factory=dict) if kind == dict[str, str] else None
        name = "lambda" if field.name == "lambda_" else None
        says = f"(default: {field.default})" if default is None else ""
        hint = Annotated[
            kind,
            tyro.conf.arg(
                name=name, metavar="VALUES", help=said[field.name], help_behavior_hint=says
            ),
        ]
        fields.append((field.name, hint, default))
    for field in dataclasses.fields(Sweep):
        if field.name in OPTIONS:
            kind = bool if field.type is bool else field.type | None  # type: ignore[operator]
            hint = Annotated[kind, tyro.conf.arg(help=said[field.name])]
            fields.append((field.name, hint, False if kind is bool else None))
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


Flags = _flags()


def command(
    config: Path | None = None,
    resume: Path | None = None,
    dry_run: bool = False,
    memory_limit: str | None = None,
    at_once: int | None = None,
    save_every: float = 60.0,
    launcher: Literal["here", "ray"] = "here",
    ray_address: str | None = None,
    ray_cpus: int | None = None,
    ray_gpus: int | None = None,
    settings: tyro.conf.OmitArgPrefixes[Flags] = Flags(),  # type: ignore # noqa: B008
) -> int:
    """Train seeds times hyperparameters, many runs in one program.

    VALUES are one value, a list a,b,c, or a range: 1e-4..1e-1:log:16 are sixteen levels, evenly
    spaced in the logarithm; without a number of levels, designs and searches that draw their
    points take any number between. What is a floating-point number is vmapped, anything else
    makes groups, compiled once each.

    Args:
      config: YAML file with the same names, whose values the flags below override.
      resume: Directory of a sweep to continue; what is finished is not run again.
      dry_run: Print the plan and stop.
      memory_limit: Memory that programs may take, as in 8G; None goes by what is free.
      at_once: Runs side by side at most; None leaves it to memory.
      save_every: Seconds between checkpoints of the runs under way; a search that prunes, and Ray,
        start them anew.
      launcher: Where the runs are carried out: here, or as tasks on a Ray cluster.
      ray_address: Address of the cluster, as in auto or host:6379; None starts a local one.
      ray_cpus: CPUs of a task; None takes 1 beside GPUs, else all that the smallest node has.
      ray_gpus: GPUs of a task; None takes 1 where the cluster has GPUs.
      settings: What the sweep is. Names are those of a YAML file, with dashes.
    """
    ray = {"address": ray_address, "cpus": ray_cpus, "gpus": ray_gpus}
    with contextlib.ExitStack() as stack:
        with refusing():
            given = _given(settings)
            if resume is not None and (config is not None or given):
                raise ValueError("--resume goes by the sweep's own settings; drop the other flags")
            if not 0 <= save_every < float("inf"):
                raise ValueError(f"save_every={save_every!r} must be a number of seconds >= 0")
            cluster = _cluster(stack, launcher, ray)
            with without_collection():
                from pgjax.lab import machine

                machine.devices()  # before anything uses JAX
                from pgjax.lab.sweep import plan

                sweep = _sweep(config, resume, given)
                limits = _limits(sweep, memory_limit, at_once, cluster)
                ready, start, follow = _way(sweep, resume, limits, cluster, save_every)
            print(plan.describe(ready), flush=True)
            if dry_run:
                return 0
            started = start()
        stopped = follow(started)
    return 0 if stopped is None else 128 + stopped


def _cluster(stack: contextlib.ExitStack, launcher: str, ray: dict[str, Any]) -> Any:
    """The Ray cluster that is asked for, joined until the stack is left; None for none."""
    if launcher == "ray":
        from pgjax.lab.sweep import ray_cluster

        # Before this process uses JAX, which then leaves GPUs to the workers.
        return stack.enter_context(ray_cluster.opened(**ray))
    for name, value in ray.items():
        if value is not None:
            raise ValueError(f"ray_{name}={value!r} goes with --launcher ray")
    return None


def _sweep(config: Path | None, resume: Path | None, given: dict[str, Any]) -> Sweep:
    """What is to be run, checked as far as nothing has to be compiled for it."""
    from pgjax.lab.sweep import design, run

    if resume is not None:
        return run.find(resume)[1]
    sweep = design.parse(({} if config is None else configs.read(config)) | given)
    design.validate(sweep)
    return sweep


def _limits(
    sweep: Sweep, memory_limit: str | None, at_once: int | None, cluster: Any
) -> dict[str, Any]:
    """The limits that plans are made within."""
    from pgjax.lab import machine
    from pgjax.lab.sweep import design

    limit = None if memory_limit is None else machine.parse_bytes(memory_limit)
    limits = {"memory_limit": limit, "at_once": at_once}
    if cluster is None:
        return limits
    if sweep.search is not None:
        raise ValueError(
            "launcher='ray' goes with designs; searches run here, and several can share a --storage"
        )
    from pgjax.lab.sweep import ray_cluster

    num_runs = design.num_configurations(sweep) * sweep.base.seeds
    return ray_cluster.limits(cluster, num_runs, **limits)


def _way(
    sweep: Sweep, resume: Path | None, limits: dict[str, Any], cluster: Any, save_every: float
) -> tuple[Any, Callable[[], Any], Callable[[Any], int | None]]:
    """The plan, and functions that make a directory for it and carry it out."""
    from pgjax.lab.sweep import run, search

    way = run if sweep.search is None else search
    if resume is None:
        ready = way.prepare(sweep, **limits)
        start = lambda: run.start(ready)
    else:
        resumed = way.resume(resume, **limits)
        ready, start = resumed.plan, lambda: resumed
    if cluster is None:
        return ready, start, partial(way.follow, save_every=save_every)
    from pgjax.lab.sweep import ray_launcher

    return ready, start, partial(run.follow, launcher=ray_launcher.launcher(cluster))


def _given(settings: Any) -> dict[str, Any]:
    """The flags that were given, by the names of a YAML file."""
    fields = ((x.name, getattr(settings, x.name)) for x in dataclasses.fields(settings))
    # False is a flag that was not given; zero, which equals it, is a choice.
    absent = lambda value: value is None or value is False or value == {}
    given = {name: value for name, value in fields if not absent(value)}
    theirs = given.pop("env_params", {})
    return given | {f"env_params.{name}": value for name, value in theirs.items()}
