"""A search that stops its worse trials early, and gives their places to new ones.

A program keeps its shape: its places hold a trial each, with all of its seeds, at whatever update
the trial has come to. Which trials are worse is for Optuna's pruner to say: asynchronous successive
halving, Li et al. 2020.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pgjax.lab import advance, experiment, machine, statistics
from pgjax.lab.advance import Progress
from pgjax.lab.config import Config
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import design, run, study
from pgjax.lab.sweep import program as programs
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.chunk import Result
from pgjax.lab.sweep.plan import Plan, Programs
from pgjax.lab.sweep.program import Program
from pgjax.lab.sweep.store import Kept, Store
from pgjax.lab.sweep.study import Trial


def check(plan: Plan) -> None:
    """Refuses a search that cannot be pruned.

    Raises:
      ValueError: not all seeds of a trial fit, or trials would end within a compiled call.
    """
    at_once = plan.sweep.base.updates_per_call
    for index, program in plan.programs.items():
        _check_width(program, plan.sweep.base.seeds)
        config = plan.groups[index].config
        num, size = config.num_updates, next(advance.sizes(config))
        if num % size or (at_once > 1 and isinstance(plan.sweep.axes.get("num_updates"), Range)):
            # Trials of one program are at different updates: no call can end early for one.
            raise ValueError(
                f"prune=True needs num_updates to be a multiple of updates_per_call, and "
                f"num_updates={num} is not one of updates_per_call={at_once}"
            )


class Place:
    """Where a trial is trained: some runs of a program, and what they gave so far."""

    def __init__(self) -> None:
        self.index: int | None = None  # of the configuration; None while it is free
        self.trial: Trial | None = None
        self.curves: list[dict[str, np.ndarray]] = []
        self.begun = 0.0

    @property
    def update(self) -> int:
        """Updates its trial has made."""
        return sum(found["env_steps"].shape[1] for found in self.curves)

    def take(self, index: int, trial: Trial) -> None:
        """Lets a trial begin here."""
        self.index, self.trial, self.curves = index, trial, []
        self.begun = time.perf_counter()

    def leave(self, final: dict[str, np.ndarray]) -> Result:
        """What the trial gave; the place is free again."""
        curves = {
            name: np.concatenate([found[name] for found in self.curves], axis=1)
            for name in self.curves[0]
        }
        assert self.index is not None
        runs = [(self.index, seed) for seed in range(len(curves["env_steps"]))]
        self.index = self.trial = None
        return Result(runs, curves, final, time.perf_counter() - self.begun, machine.describe())


class Pool:
    """The places of one program."""

    def __init__(self, program: Program, plan: Plan, config: Config):
        self._program, self._config = program, config
        self._seeds = plan.sweep.base.seeds
        _check_width(program, self._seeds)
        self.places = [Place() for _ in range(program.width // self._seeds)]
        self._runs = [config] * program.width
        self._inputs: Any = None
        self._progress: Progress | None = None

    def admit(self, plan: Plan, newcomers: Sequence[tuple[int, Trial]]) -> None:
        """Lets trials begin at free places."""
        fresh = np.zeros(self._program.width, bool)
        free = (number for number, place in enumerate(self.places) if place.index is None)
        for (index, trial), number in zip(newcomers, free, strict=False):
            self.places[number].take(index, trial)
            own = slice(number * self._seeds, (number + 1) * self._seeds)
            self._runs[own] = design.runs_of(plan.sweep, plan.configurations[index])
            fresh[own] = True
        sharding = self._program.placed.sharding
        self._inputs = jax.device_put(experiment.inputs(self._runs), sharding)
        begun = advance.begin(self._program.placed.experiment, self._inputs)
        if self._progress is not None:
            begun = _chosen(fresh, begun, self._progress)
        self._progress = begun._replace(state=jax.device_put(begun.state, sharding))

    def step(self) -> list[tuple[Place, dict[str, np.ndarray]]]:
        """Makes one compiled call for all places; returns what the taken ones gave."""
        assert self._progress is not None
        size = next(advance.sizes(self._config))
        self._progress, found = advance.call(
            self._program.placed.experiment, self._inputs, self._progress, size
        )
        taken = []
        for number, place in enumerate(self.places):
            if place.index is not None:
                own = slice(number * self._seeds, (number + 1) * self._seeds)
                place.curves.append({name: x[own] for name, x in found.items()})
                taken.append((place, place.curves[-1]))
        return taken

    def finals(self) -> list[dict[str, np.ndarray]]:
        """The policies of all places as they are now, evaluated."""
        assert self._progress is not None
        final = chunks.final(self._program, self._inputs, self._progress, self._config)
        return [
            {name: x[start : start + self._seeds] for name, x in final.items()}
            for start in range(0, len(self.places) * self._seeds, self._seeds)
        ]


def carry_out(
    opened: Any, store: Store, kept: Kept, compiled: Programs, signals: Sequence[int]
) -> bool:
    """Asks for trials as places become free, and prunes; returns whether it came to the end."""
    sweep = kept.plan.sweep
    most = max(group.config.num_updates for group in kept.plan.groups)
    total = sweep.trials * sweep.base.seeds * most
    with run.progress_bar(total) as bar, run.logging_to(store, kept.plan) as log:

        def observe(place: Place, found: dict[str, np.ndarray]) -> None:
            run.show(bar, sweep.batch * sweep.base.seeds, found)
            if sweep.base.loggers and place.index is not None:
                runs = [(place.index, seed) for seed in range(sweep.base.seeds)]
                before = place.update - found["env_steps"].shape[1]
                log(run.rows(kept.plan, runs, before, found))

        return _follow(opened, store, kept, compiled, signals, observe)


def _follow(
    opened: Any,
    store: Store,
    kept: Kept,
    compiled: Programs,
    signals: Sequence[int],
    observe: Callable[[Place, dict[str, np.ndarray]], None],
) -> bool:
    sweep = kept.plan.sweep
    pools: dict[object, Pool] = {}
    while not signals:
        running = sum(trial.is_running for trial in study.own(opened, sweep, store.path))
        study.ask(opened, sweep, store.path, sweep.batch - running)
        trials = study.own(opened, sweep, store.path)
        kept.follow_on(kept.plan._replace(configurations=[trial.values for trial in trials]))
        _admit(pools, compiled, kept.plan, trials)
        busy = [pool for pool in pools.values() if any(x.index is not None for x in pool.places)]
        if not busy:
            return True
        for pool in busy:
            for place, found in pool.step():
                observe(place, found)
            _judge(opened, store, kept, pool)
    return False


def _admit(
    pools: dict[object, Pool], compiled: Programs, plan: Plan, trials: Sequence[Trial]
) -> None:
    """Shares waiting trials out over the pools of their programs."""
    placed = {place.index for pool in pools.values() for place in pool.places}
    waiting: dict[object, list[tuple[int, Trial]]] = {}
    for index, trial in enumerate(trials):
        if trial.is_running and index not in placed:
            config = design.runs_of(plan.sweep, trial.values)[0]
            key = programs.key(config)
            waiting.setdefault(key, []).append((index, trial))
            if key not in pools:
                pools[key] = Pool(compiled.of(config), plan, config)
    for key, newcomers in waiting.items():
        if any(place.index is None for place in pools[key].places):
            pools[key].admit(plan, newcomers)


def _check_width(program: Program, num_seeds: int) -> None:
    if program.width < num_seeds:
        raise ValueError(
            f"prune=True holds all seeds of a trial at once: {num_seeds} do not fit, only "
            f"{program.width}"
        )


def _judge(opened: Any, store: Store, kept: Kept, pool: Pool) -> None:
    """Ends the trials that are done, and those that the pruner gives up."""
    done = [place for place in pool.places if place.index is not None and _is_done(kept, place)]
    finals = dict(zip(pool.places, pool.finals(), strict=True)) if done else {}
    for place in [place for place in pool.places if place.index is not None]:
        trial = place.trial
        assert trial is not None
        if place in done:
            final = finals[place]
            score = float(statistics.iqm(final["evaluation_return"]))
            _keep(store, kept, place.leave(final | {"pruned": np.zeros(len(final["diverged"]))}))
            study.tell(opened, trial.number, score)
            continue
        last = place.curves[-1]["return"][:, -1]
        if study.is_bad(opened, trial.number, float(statistics.iqm(last)), place.update):
            skipped = place.curves[-1]["skipped"][:, -1] > 0
            nothing = np.full(len(skipped), np.nan)
            _keep(
                store,
                kept,
                place.leave(
                    {
                        "evaluation_return": nothing,
                        "evaluation_episode_length": nothing,
                        "diverged": skipped.astype(float),
                        "pruned": np.ones(len(skipped)),
                    }
                ),
            )
            study.stop(opened, trial.number)


def _is_done(kept: Kept, place: Place) -> bool:
    assert place.trial is not None
    config = design.runs_of(kept.plan.sweep, place.trial.values)[0]
    return place.update >= config.num_updates


def _keep(store: Store, kept: Kept, result: Result) -> None:
    chunks.write(store.chunk(kept.plan.name(result.runs)), result)
    kept.enter(result)


def _chosen(fresh: np.ndarray, begun: Progress, before: Progress) -> Progress:
    """New runs where they are fresh, old ones elsewhere."""

    def choose(new: Any, old: Any) -> np.ndarray:
        new, old = np.asarray(new), np.asarray(old)
        return np.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    # Runs are at updates of their own, which their states count.
    return Progress(0, *jax.tree.map(choose, tuple(begun[1:]), tuple(before[1:])))
