"""Optuna's side of a search: its study, what it asks for and what it is told."""

import logging
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgjax.lab.sweep import axes, design
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.design import Values
from pgjax.lab.sweep.settings import Sweep

WORKER = "worker"
"""Attribute of a trial that names the directory it is carried out in; the last to be set."""


class Trial(NamedTuple):
    """A trial of this sweep's own, and how it stands."""

    number: int  # of the study, which other workers may share
    values: Values
    is_running: bool


def check(sweep: Sweep) -> None:
    """Refuses a search whose packages are missing or whose storage cannot be reached.

    Raises:
      ValueError: says which.
    """
    _optuna(sweep)
    if sweep.storage is not None:
        opened(sweep, Path())


def opened(sweep: Sweep, default: Path) -> Any:
    """The study of a sweep; sweeps of the same settings share it where they share the storage.

    Args:
      sweep: what is searched.
      default: file of the SQLite database, where the sweep names no storage.

    Raises:
      ValueError: the storage cannot be reached.
    """
    optuna = _optuna(sweep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                storage=_storage(optuna, sweep, default),
                study_name=design.digest(sweep),
                direction="maximize",
                pruner=optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3),
                load_if_exists=True,
            )
    except Exception as error:  # what a database cannot do has many names
        reason = str(error).partition("\n")[0]
        raise ValueError(f"storage={sweep.storage!r} cannot be used: {reason}") from error


def ask(study: Any, sweep: Sweep, where: Path, num: int) -> None:
    """Asks for up to `num` more trials, as long as the study has not had all of them.

    Every trial is drawn with a seed of its own, from the search's and its place, so that a search
    that was killed draws what it would have drawn.
    """
    optuna, asked = _optuna(sweep), 0
    distributions = {
        axes.name_of(name): _distribution(optuna, name, axis) for name, axis in sweep.axes.items()
    }
    while asked < num and (place := _num_had(study)) < sweep.trials:
        sequence = np.random.SeedSequence((sweep.design_seed, place))
        study.sampler = _sampler(optuna, sweep, int(sequence.generate_state(1)[0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask(distributions)
        if _num_had(study, before=trial.number) == place:
            trial.set_user_attr(WORKER, _worker(where))
            asked += 1
        else:  # another worker asked meanwhile, and drew the same
            study.tell(trial.number, state=_states().FAIL)


def _num_had(study: Any, before: int | None = None) -> int:
    """Trials so far, or before a number, without those given up while they were asked for."""
    failed = _states().FAIL
    found = study.get_trials(deepcopy=False)[:before]
    return sum(trial.state != failed or WORKER in trial.user_attrs for trial in found)


def own(study: Any, sweep: Sweep, where: Path) -> list[Trial]:
    """The trials of this sweep's own, in order; those torn by a kill are given up."""
    optuna = _optuna(sweep)
    running = optuna.trial.TrialState.RUNNING
    trials = []
    for found in study.get_trials(deepcopy=False):
        worker = found.user_attrs.get(WORKER)
        if worker is not None and (sweep.storage is None or worker == _worker(where)):
            trials.append(Trial(found.number, _values(sweep, found.params), found.state == running))
        elif sweep.storage is None and found.state == running:
            study.tell(found.number, state=optuna.trial.TrialState.FAIL)
    return trials


def tell(study: Any, number: int, score: float) -> None:
    """Tells the score of a trial; one that is not finite is a failure."""
    state = None if np.isfinite(score) else _states().FAIL
    study.tell(number, score if state is None else None, state=state, skip_if_finished=True)


def is_bad(study: Any, number: int, score: float, update: int) -> bool:
    """Reports an intermediate score; returns whether the trial is to be stopped for it."""
    from optuna.trial import Trial as Open

    trial = Open(study, study.get_trials(deepcopy=False)[number]._trial_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trial that is run again reports again
        trial.report(score, step=update)
    return trial.should_prune()


def stop(study: Any, number: int) -> None:
    """Tells that a trial was stopped early."""
    study.tell(number, state=_states().PRUNED, skip_if_finished=True)


def _values(sweep: Sweep, params: dict[str, Any]) -> Values:
    return {
        name: _value(name, axis, params[axes.name_of(name)]) for name, axis in sweep.axes.items()
    }


def _value(name: str, axis: Range | Sequence[Any], given: Any) -> Any:
    if isinstance(axis, Range):
        return int(given) if axes.is_whole(name) else float(given)
    return {axes.label(level): level for level in axis}[given]


def _distribution(optuna: Any, name: str, axis: Range | Sequence[Any]) -> Any:
    if not isinstance(axis, Range):
        return optuna.distributions.CategoricalDistribution([axes.label(x) for x in axis])
    is_log = axis.scale == "log"
    if axes.is_whole(name):
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=is_log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=is_log)


def _sampler(optuna: Any, sweep: Sweep, seed: int) -> Any:
    if sweep.search == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if sweep.search == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # A trial under way counts as a bad one, so that a batch does not try one place over and over.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _storage(optuna: Any, sweep: Sweep, default: Path) -> Any:
    if sweep.storage is None:
        return f"sqlite:///{default.absolute()}"
    if "://" in sweep.storage:
        return sweep.storage
    backend = optuna.storages.journal.JournalFileBackend(sweep.storage)
    return optuna.storages.JournalStorage(backend)


def _worker(where: Path) -> str:
    return f"{socket.gethostname()}:{where.absolute()}"


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _optuna(sweep: Sweep) -> Any:
    try:
        import optuna

        if sweep.search == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"search={sweep.search!r} needs {error.name}: pip install 'pgjax[search]'"
        ) from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna
