"""The command line: train, sweep, evaluate, audit, plot, report and list.

Only what parsing needs is imported here; JAX and the environments wait until a command runs.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

import pgjax
from pgjax.lab import config as configs
from pgjax.lab.config import Config
from pgjax.lab.refusals import RefusalError, refusing, without_collection
from pgjax.lab.sweep.cli import command as sweep

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments after the program's name; None takes the process's own.

    Returns:
      The exit status: 0, 2 for a mistake of the user's, 128 and the signal's number when stopped.

    Raises:
      SystemExit: help was asked for and given.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"pgjax {pgjax.__version__}")
        return 0
    with _plain_warnings():
        try:
            with refusing():
                commands = _commands(_defaults(argv), _given(argv))
                if argv and not argv[0].startswith("-") and argv[0] not in commands:
                    from pgjax import checks

                    checks.choice("command", argv[0], commands)
            return _parse(commands, argv)()
        except RefusalError as refusal:
            print(f"pgjax: error: {refusal}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("pgjax: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def run() -> None:
    """The console script."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


DESCRIPTION = """Score-function (policy-gradient) estimators in JAX.

pgjax train, with no arguments, learns CartPole in seconds; pgjax --version prints the version."""


def _commands(defaults: Config, given: bool = False) -> dict[str, Callable[..., int]]:
    """The commands by name; `defaults` is what the flags of `train` override, if `given`."""

    def train(
        config: Path | None = None,
        resume: Path | None = None,
        devices: int | None = None,
        memory_limit: str | None = None,
        distributed: bool = False,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
        timeout: int = 60,
        settings: tyro.conf.OmitArgPrefixes[Config] = defaults,
    ) -> int:
        """Train a policy, or continue a run that was stopped or killed.

        Args:
          config: YAML file whose values the flags below override.
          resume: Directory of a run to continue. On as many CPU devices as before it comes to the
            same bits as if it had never stopped.
          devices: Devices for each process, which share out the seeds or the episodes of an update;
            None uses all, on a CPU one for each core.
          memory_limit: Most memory that the programs of a process may use, as in 8G; None sets no
            limit.
          distributed: Train with several processes, all started with this flag and the same others.
            A Slurm, Open MPI, Kubernetes or Cloud TPU job is recognised; elsewhere the next three
            flags describe it.
          coordinator: Address of process 0, as in host:12345.
          num_processes: Number of processes.
          process_id: Number of this process, from 0.
          timeout: Seconds to wait for other processes to join, and for a sign of life from each.
          settings: What the run is. A YAML file has the same names, with underscores.
        """
        job = (coordinator, num_processes, process_id)
        with contextlib.ExitStack() as stack:
            with refusing():
                if resume is not None and (config is not None or given):
                    raise ValueError("--resume goes by the run's own config; drop the other flags")
                if not distributed and any(given is not None for given in job):
                    raise ValueError(
                        "coordinator, num_processes and process_id go with distributed"
                    )
                with without_collection():
                    _before_jax(stack, (*job, timeout) if distributed else None)
                    from pgjax.lab import machine, run

                    limit = None if memory_limit is None else machine.parse_bytes(memory_limit)
                    limits = {"devices": devices, "memory_limit": limit}
                    ready = (
                        run.start(settings, **limits)
                        if resume is None
                        else run.resume(resume, **limits)
                    )
            if run.is_finished(ready):
                path, num = ready.directory.path, ready.config.num_updates
                print(f"{path} is finished: {num} updates done")
                return 0
            stopped = run.follow(ready)
        return 0 if stopped is None else 128 + stopped

    return {
        "train": train,
        "sweep": sweep,
        "evaluate": _evaluate,
        "audit": _audit,
        "plot": _plot,
        "report": _report,
        "list": _list,
    }


def _before_jax(stack: contextlib.ExitStack, job: tuple[Any, ...] | None) -> None:
    """Makes devices, and joins the processes of a job until the stack is left."""
    from pgjax.lab import distributed, machine

    if job is None:
        machine.devices()
    else:
        stack.enter_context(distributed.joined(distributed.Job(*job)))
        stack.enter_context(distributed.quiet_unless_leader())


def _parse(commands: dict[str, Callable[..., int]], argv: Sequence[str]) -> Callable[[], int]:
    """The command that is asked for, ready to be called; what tyro cannot read is refused."""

    def postponed(command: Callable[..., int]) -> Callable[..., Any]:
        return functools.wraps(command)(lambda *args, **kwargs: lambda: command(*args, **kwargs))

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: postponed(command) for name, command in commands.items()},
                prog="pgjax",
                description=DESCRIPTION,
                args=argv,
            )
    except SystemExit as exit:
        if exit.code == USER_ERROR:
            raise RefusalError(_unframed(said.getvalue())) from exit
        raise


def _unframed(box: str) -> str:
    """What tyro says in a box, as one line: its message, and its guess at what was meant."""
    _, *lines = (line.strip("│ ") for line in box.splitlines())
    is_rule = lambda line: not any(map(str.isalnum, line))
    # Without UTF-8 a rule follows the title; the message ends at the next one.
    body = itertools.dropwhile(is_rule, lines)
    message = " ".join(itertools.takewhile(lambda line: not is_rule(line), body))
    if (guess := "Perhaps you meant:") in lines:
        guessed = lines[lines.index(guess) + 1 :]
        flag = guessed[0].split()[0].rstrip(",")
        command = re.search(r"^in (pgjax \w+) --help$", "\n".join(guessed), re.MULTILINE)
        if command and flag in message.split():
            message += f" (it goes with {command[1]})"
        else:
            message += f" (did you mean {flag}?)"
    return message.replace("Failed to parse key-value pairs!", "not names and numbers in turn")


def _evaluate(
    run: tyro.conf.Positional[Path], /, episodes: int = 100, seed: int = 0, greedy: bool = False
) -> int:
    """Evaluate the newest checkpoint of a run on fresh episodes.

    Args:
      run: Directory of the run.
      episodes: Fresh episodes of each seed of the run.
      seed: Chooses the fresh episodes; 0 gives those of the run's own evaluation.
      greedy: Take the mode of the policy instead of a sample.
    """
    with refusing():
        from pgjax.lab import evaluation, machine

        machine.devices()  # before anything uses JAX
        from pgjax.lab import run as runs

        configs.count("episodes", episodes)
        configs.count("seed", seed, least=0)
        found, progress = runs.load(run)
    result = evaluation.evaluate(
        found.experiment,
        found.inputs,
        progress.state.params,
        num_episodes=episodes,
        draw=seed,
        greedy=greedy,
    )
    print(f"{run}, update {progress.update}: {evaluation.describe(result)}")
    return 0


def _audit(
    env: str | None = None,
    estimators: str = "reward_to_go+none,reward_to_go+leave_one_out",
    checkpoint: Path | None = None,
    config: Path | None = None,
    num_episodes: int = 32,
    replicates: int = 256,
    reference_replicates: int | None = None,
    chunk_size: int = 16,
    value_updates: int = 200,
    seed: int = 0,
    output: Path | None = None,
) -> int:
    """Measure bias, variance and cost of estimators, along a training run or at its start.

    Args:
      env: Environment, without a run.
      estimators: Names separated by commas: form+baseline or form+baseline+state_weighting. Ratios
        are relative to the first.
      checkpoint: Directory of a run, audited at its start and at every checkpoint it kept; of
        several seeds only the first is audited.
      config: YAML file with all other choices, without a run.
      num_episodes: Episodes of one gradient.
      replicates: Gradients of each estimator at each checkpoint.
      reference_replicates: Gradients of the unbiased reference where there is no exact one; None
        takes four times the replicates.
      chunk_size: Gradients computed side by side.
      value_updates: Updates that fit values, if an estimator needs them and the run has none.
      seed: Seed of the random numbers, which all estimators share.
      output: Directory for audit.nc and audit.png; by default `audit` in the directory of the run,
        or, without a run, in the current one.
    """
    with refusing():
        if checkpoint is not None and config is not None:
            raise ValueError("--checkpoint goes by the run's own config; drop --config")
        with without_collection():
            from pgjax.lab import machine

            machine.devices()  # before anything uses JAX
            from pgjax.lab import auditing, directory

            settings = Config() if config is None else configs.load(config)
            if checkpoint is not None:
                _, settings = directory.find(checkpoint)
            if env is not None and checkpoint is not None and env != settings.env:
                raise ValueError(f"env={env!r} is not that of the run, {settings.env!r}; drop it")
            settings = dataclasses.replace(settings, env=env or settings.env)
            default = (checkpoint or Path()) / "audit"
            choices = auditing.Choices(
                estimators=tuple(name.strip() for name in estimators.split(",")),
                num_episodes=num_episodes,
                num_replicates=replicates,
                reference_replicates=reference_replicates,
                chunk_size=chunk_size,
                value_updates=value_updates,
                seed=seed,
            )
            plan = auditing.plan(settings, checkpoint, choices, output or default)
    auditing.carry_out(plan)
    return 0


def _plot(runs: tyro.conf.Positional[tuple[Path, ...]], /, output: Path | None = None) -> int:
    """Draw the learning curves of runs into one figure, or the figures of a sweep.

    Args:
      runs: Directories of runs, or of one sweep.
      output: File of the figure, whose suffix chooses the format, by default learning_curves.png;
        for a sweep the directory of its figures, by default `figures` in its own.
    """
    with refusing():
        if not runs:
            raise ValueError("plot needs the directory of at least one run")
        runs = _drawable(runs)
        if _is_sweep(runs[0]):
            return _figures(runs, output)
        from pgjax.lab import directory, plots

        output = output or Path("learning_curves.png")
        found = [directory.find(path)[0] for path in runs]
        labels = _labels([run.path for run in found])
        plots.learning_curves(dict(zip(labels, (x.metrics for x in found), strict=True)), output)
    print(output)
    return 0


def _drawable(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Of paths such as `runs/*` gives, the runs, or else the sweeps; the others are passed over."""
    from pgjax.lab import directory

    is_run = lambda path: not path.exists() or directory.Directory(path).config.is_file()
    found = tuple(filter(is_run, paths)) or tuple(filter(_is_sweep, paths)) or paths
    for path in paths:
        if path not in found:
            warnings.warn(f"passed over {path}, which is no run", stacklevel=2)
    return found


def _figures(sweeps: Sequence[Path], output: Path | None) -> int:
    if len(sweeps) > 1:
        raise ValueError("plot draws the figures of one sweep at a time")
    if output is not None and output.suffix and not output.is_dir():
        raise ValueError(f"output={str(output)!r} must be a directory: a sweep has several figures")
    from pgjax.lab.sweep import dataset, figures

    for path in figures.draw(dataset.load(sweeps[0]), output or sweeps[0] / "figures"):
        print(path)
    return 0


def _report(sweep: tyro.conf.Positional[Path], /, output: Path | None = None) -> int:
    """Write the report of a sweep: text, tables and figures.

    Args:
      sweep: Directory of the sweep, finished or not.
      output: Directory of the report; by default `report` in the sweep's own.
    """
    with refusing():
        from pgjax.lab.sweep import dataset, report

        for path in report.write(dataset.load(sweep), output or sweep / "report"):
            print(path)
    return 0


def _is_sweep(path: Path) -> bool:
    from pgjax.lab import directory

    return (path / directory.SWEEP).is_file() or path.suffix == ".nc"


Registry = Literal["envs", "forms", "baselines", "policies", "distributions"]


def _list(what: tyro.conf.Positional[Registry], /) -> int:
    """List what can be chosen.

    Args:
      what: Which names to list.
    """
    for name, description in _registry(what).items():
        print(f"{name:<24}{description}".rstrip())
    return 0


def _registry(what: Registry) -> dict[str, str]:
    if what == "envs":
        from pgjax import environments

        return dict.fromkeys(environments.names(), "")
    if what in ("forms", "baselines"):
        from pgjax import estimators

        registry = estimators.FORMS if what == "forms" else estimators.BASELINES
        return {name: _first_line(choice) for name, choice in registry.items()}
    from pgjax import heads, policies

    return policies.POLICIES if what == "policies" else heads.DISTRIBUTIONS


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of directories; whole paths where names are shared."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _defaults(argv: Sequence[str]) -> Config:
    """What the flags of `train` override: the file given with --config, if any."""
    if argv[:1] != ["train"]:
        return Config()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        path = parser.parse_known_args(argv)[0].config
    except argparse.ArgumentError:
        path = None
    return Config() if path is None else configs.load(path)


def _given(argv: Sequence[str]) -> bool:
    """Whether any field of the config is among the flags, be it with its default value."""
    names = {field.name.strip("_").replace("_", "-") for field in dataclasses.fields(Config)}
    flags = {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    return not flags.isdisjoint(f"--{name}" for name in names)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows warnings as one line each, without the code that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"pgjax: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
