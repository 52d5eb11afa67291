"""The command line of `pgjax sweep`; JAX waits until the command runs."""

import dataclasses
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
      save_every: Seconds between checkpoints of the runs under way.
      launcher: Where the runs are carried out: here, or as tasks on a Ray cluster.
      ray_address: Address of the cluster, as in auto or host:6379; None starts a local one.
      settings: What the sweep is. Names are those of a YAML file, with dashes.
    """
    with refusing():
        given = _given(settings)
        if resume is not None and (config is not None or given):
            raise ValueError("--resume goes by the sweep's own settings; drop the other flags")
        if ray_address is not None and launcher != "ray":
            raise ValueError(f"ray_address={ray_address!r} goes with --launcher ray")
        with without_collection():
            from pgjax.lab import machine

            machine.devices()  # before anything uses JAX
            from pgjax.lab.sweep import design, plan, run, search

            limits = {
                "memory_limit": None if memory_limit is None else machine.bytes_of(memory_limit),
                "at_once": at_once,
            }
            if resume is None:
                content = ({} if config is None else design.load(config)) | given
                sweep = design.parse(content)
                way = run if sweep.search is None else search
                ready = way.prepare(sweep, **limits)
                start = lambda: run.start(ready)
            else:
                _, sweep = run.find(resume)
                way = run if sweep.search is None else search
                resumed = way.resume(resume, **limits)
                ready, start = resumed.plan, lambda: resumed
        print(plan.describe(ready), flush=True)
        if dry_run:
            return 0
        started = start()
    stopped = way.follow(started, save_every=save_every)
    return 0 if stopped is None else 128 + stopped


def _given(settings: Any) -> dict[str, Any]:
    """The flags that were given, by the names of a YAML file."""
    fields = ((x.name, getattr(settings, x.name)) for x in dataclasses.fields(settings))
    given = {name: value for name, value in fields if value not in (None, False, {})}
    theirs = given.pop("env_params", {})
    return given | {f"env_params.{name}": value for name, value in theirs.items()}
