"""What a sweep will run: configurations, groups that share a program, chunks that fit memory."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tqdm import tqdm

from pgjax.lab import config as configs
from pgjax.lab import experiment, machine, parallel
from pgjax.lab.config import Config
from pgjax.lab.sweep import axes, chunk, design, words
from pgjax.lab.sweep import program as programs
from pgjax.lab.sweep.axes import Range
from pgjax.lab.sweep.chunk import Index
from pgjax.lab.sweep.design import Values
from pgjax.lab.sweep.program import Program
from pgjax.lab.sweep.settings import Sweep

NUM_CURVES = 12
"""About how many numbers an update of a run leaves."""


class Group(NamedTuple):
    """Runs that share a program."""

    config: Config  # of its first run
    runs: list[Index]


class Chunk(NamedTuple):
    """Runs of one group that are carried out side by side."""

    group: int
    runs: list[Index]


class Plan(NamedTuple):
    """A sweep, laid out."""

    sweep: Sweep
    configurations: list[Values]
    groups: list[Group]
    programs: dict[int, Program]  # by group, of those that are not finished
    memory_limit: int
    finished: frozenset[Index] = frozenset()  # runs that had results when it was made

    def configs(self, runs: Sequence[Index]) -> list[Config]:
        """The configs of runs."""
        of = {index: design.runs_of(self.sweep, self.configurations[index]) for index, _ in runs}
        return [of[index][seed] for index, seed in runs]

    def name(self, runs: Sequence[Index]) -> str:
        """The name of the directory of a chunk of these runs."""
        return chunk.name(self.configs(runs), runs)

    def chunks(self, finished: Collection[Index] | None = None) -> list[Chunk]:
        """The runs that are not finished, as many at once as their programs are wide.

        Args:
          finished: None takes those that were when the plan was made; others may have joined them.
        """
        finished, chunks = self.finished if finished is None else finished, []
        for index, program in self.programs.items():
            group = self.groups[index]
            runs = [run for run in group.runs if run not in finished]
            for start in range(0, len(runs), program.width):
                part = runs[start : start + program.width]
                block = parallel.block(group.config) or 1
                chunks.append(Chunk(index, dealt(part, block, len(program.placed.devices))))
        return chunks


def make(
    sweep: Sweep,
    *,
    devices: Sequence[Any],
    memory_limit: int | None = None,
    at_once: int | Sequence[int] | None = None,
) -> Plan:
    """Lays a sweep out, and compiles the program of each group.

    Args:
      sweep: what to run.
      devices: what runs are shared out over.
      memory_limit: bytes that programs may take; None goes by what is free.
      at_once: runs side by side at most, of all groups or of each; None leaves it to memory.

    Raises:
      ValueError: an impossible configuration, with what is wrong, or too little memory.
    """
    return compiled(outline(sweep, memory_limit=memory_limit), devices=devices, at_once=at_once)


def outline(
    sweep: Sweep,
    configurations: list[Values] | None = None,
    *,
    memory_limit: int | None = None,
) -> Plan:
    """A plan without its programs, of given configurations or of those of a design.

    Raises:
      ValueError: an impossible configuration, with what is wrong.
    """
    limit = machine.memory() if memory_limit is None else memory_limit
    if configurations is None:
        design.validate(sweep)
        _check_results(sweep, design.num_configurations(sweep), limit)
        configurations = design.lay_out(sweep)
    groups = group(sweep, configurations)
    for found in groups:
        experiment.build(found.config)  # which refuses, long before all of them are compiled
    return Plan(sweep, configurations, groups, {}, limit)


def compiled(
    outlined: Plan,
    *,
    devices: Sequence[Any],
    at_once: int | Sequence[int] | None = None,
    num_runs: int | None = None,
    finished: Collection[Index] = (),
) -> Plan:
    """A plan with the programs of all groups that are not finished.

    Args:
      outlined: a plan without programs.
      devices: as in `make`.
      at_once: likewise.
      num_runs: what each program is for; None takes the runs of its group.
      finished: runs that have results.

    Raises:
      ValueError: too little memory.
    """
    groups = outlined.groups
    if isinstance(at_once, int):
        configs.count("at_once", at_once)
    widths: Sequence[int | None] = [at_once if isinstance(at_once, int) else None] * len(groups)
    # An edited sweep has other groups than those whose widths were kept.
    if isinstance(at_once, Sequence) and len(at_once) == len(groups):
        widths = at_once

    def fitted(index: int) -> Program:
        return programs.fit(
            groups[index].config,
            num_runs=num_runs or len(groups[index].runs),
            devices=devices,
            memory_limit=outlined.memory_limit,
            at_once=widths[index],
        )

    done = frozenset(finished)
    left = [index for index, found in enumerate(groups) if not done.issuperset(found.runs)]
    # XLA compiles without holding Python up.
    with ThreadPoolExecutor(machine.cores()) as pool:
        made = pool.map(fitted, left)
        # On a terminal alone: for those who read what is printed, the plan is enough.
        shown = tqdm(made, "planning", len(left), unit="group", leave=False, disable=None)
        by_group = dict(zip(left, shown, strict=True))
    return outlined._replace(programs=by_group, finished=done)


def dealt(runs: list[Any], block: int, num_devices: int) -> list[Any]:
    """Runs in an order that deals the devices a block each in turn, to and fro.

    A device takes one stretch of the runs. Neighbours learn alike, and a chunk is done when its
    last device is; dealt out, every device has some runs of short episodes and some of long ones.
    To and fro, because episodes may grow longer along a grid: the device that always came last
    would have more to do.
    """
    if len(runs) % num_devices:
        return runs
    blocks = [runs[start : start + block] for start in range(0, len(runs), block)]
    hands: list[list[list[Any]]] = [[] for _ in range(num_devices)]
    for index, given in enumerate(blocks):
        number, seat = divmod(index, num_devices)
        hands[seat if number % 2 == 0 else -1 - seat].append(given)
    # Hands may differ by a block; what is too much for one stretch goes on to the next.
    return [run for hand in hands for block in hand for run in block]


class Programs:
    """The programs of a plan, and those of configs that come up later."""

    def __init__(self, plan: Plan, *, num_runs: int):
        self.memory_limit = plan.memory_limit
        self._num_runs = num_runs
        self._at_once = max(program.width for program in plan.programs.values())
        self._devices = machine.devices()
        key = lambda index: programs.key(plan.groups[index].config)
        self._known = {key(index): program for index, program in plan.programs.items()}

    def of(self, config: Config) -> Program:
        """The program of a config, compiled if it is the first of its kind.

        Raises:
          ValueError: it does not fit memory.
        """
        key = programs.key(config)
        if key not in self._known:
            self._known[key] = programs.fit(
                config,
                num_runs=self._num_runs,
                devices=self._devices,
                memory_limit=self.memory_limit,
                at_once=self._at_once,
            )
        return self._known[key]


def group(
    sweep: Sweep, configurations: Sequence[Values], indices: Sequence[int] | None = None
) -> list[Group]:
    """Configurations whose runs share a program, in the order they first come up.

    Args:
      sweep: what they belong to.
      configurations: all of them.
      indices: which ones; None takes all.

    Raises:
      ValueError: a configuration with impossible numbers.
    """
    groups: dict[object, Group] = {}
    for index in range(len(configurations)) if indices is None else indices:
        values = configurations[index]
        try:
            first, *_ = seeds = design.runs_of(sweep, values)
            experiment.check_numbers(first)
        except ValueError as error:
            # With a single axis, the message itself says what is wrong.
            several = len(values) > 1
            raise ValueError(f"{design.describe(values)}: {error}" if several else error) from error
        found = groups.setdefault(programs.key(first), Group(first, []))
        found.runs.extend((index, seed) for seed in range(len(seeds)))
    return list(groups.values())


def describe(plan: Plan) -> str:
    """The plan in words: what is swept, then one line per group that is not finished."""
    sweep, chunks = plan.sweep, plan.chunks()
    num, seeds = design.num_configurations(sweep), sweep.base.seeds
    lines = [
        f"{words.counted(num, 'configuration')} ({_swept(sweep)}) x "
        f"{words.counted(seeds, 'seed')} = {words.counted(num * seeds, 'run')}, in "
        f"{words.counted(len(plan.groups), 'group')} of one program each",
    ]
    if plan.finished:
        lines.append(f"{len(plan.finished):,} of {num * seeds:,} runs are finished already")
    if not plan.programs:
        return "\n".join(lines)
    rows = [("group", "what it has of its own", "runs", "at once", "chunks", "memory")]
    for index, program in plan.programs.items():
        found = plan.groups[index]
        rows.append(
            (
                str(index + 1),
                _own(plan, found),
                "as asked" if sweep.search else str(len(set(found.runs) - plan.finished)),
                str(program.width),
                "as asked" if sweep.search else str(sum(x.group == index for x in chunks)),
                machine.format_bytes(program.memory),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    allowed = machine.format_bytes(plan.memory_limit)
    lines.append(
        f"memory is XLA's analysis of the compiled programs; {allowed} are allowed, on "
        f"{machine.describe()}"
    )
    return "\n".join(lines)


def _own(plan: Plan, found: Group) -> str:
    """What the configurations of a group share, and those of other groups may not."""
    members = [plan.configurations[index] for index in dict(found.runs)]
    shared = {
        name: value
        for name, value in members[0].items()
        if not (plan.sweep.search and isinstance(plan.sweep.axes[name], Range))
        and len(plan.groups) > 1
        and all(member[name] == value for member in members)
    }
    return design.describe(shared) or "-"


def _swept(sweep: Sweep) -> str:
    if not sweep.axes:
        return "nothing is swept"
    if sweep.search is not None:
        pruned = ", pruned" if sweep.prune else ""
        names = ", ".join(map(axes.name_of, sweep.axes))
        return f"searched by {sweep.search} {sweep.batch} at a time{pruned}, {names}"
    if sweep.design != "grid":
        return f"{sweep.design}, {', '.join(map(axes.name_of, sweep.axes))}"
    pairs = zip(sweep.axes, design.shape(sweep), strict=True)
    return "grid, " + " x ".join(f"{num} {axes.name_of(name)}" for name, num in pairs)


def _check_results(sweep: Sweep, num: int, limit: int) -> None:
    """Refuses a design whose results alone would not fit, before it is laid out."""
    axis = sweep.axes.get("num_updates", (sweep.base.num_updates,))
    longest = int(axis.high) if isinstance(axis, Range) else max(axis)
    size = 4 * NUM_CURVES * num * sweep.base.seeds * longest
    if size > limit:
        raise ValueError(
            f"the design is too large: the results of {num:,} configurations x "
            f"{sweep.base.seeds:,} seeds x {longest:,} updates take "
            f"{machine.format_bytes(size)}, of {machine.format_bytes(limit)} allowed"
        )
