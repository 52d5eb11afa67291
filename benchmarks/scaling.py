"""How training scales over devices of one process, and over processes of one device each.

An update has 128 steps of CartPole whose episodes do not end, so that every step is live. Strong
scaling shares out 4096 rows over all devices, however many; weak scaling gives 2048 rows to each.
Processes are joined as by `pgjax train --distributed`, on this machine: eight at most, each with
one device. Efficiency is steps per second per device, over those of one device in the same round.

    python -m benchmarks.scaling             # all of it
    python -m benchmarks.scaling --smoke     # tiny, to see that it runs; writes nothing
"""

import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks import kept, processes, rounds
from benchmarks.rounds import Command, Side

SETTINGS = {"strong_rows": 4096, "weak_rows": 2048, "horizon": 128}
MOST_PROCESSES = 8
ROUNDS = 7


class Shape(NamedTuple):
    """What a job runs on."""

    processes: int
    devices: int  # of each process

    @property
    def size(self) -> int:
        """All its devices."""
        return self.processes * self.devices


def shapes(most: int) -> list[Shape]:
    """Powers of two up to `most`, as devices of one process and as processes of one device."""
    counts = [2**power for power in range(most.bit_length())]
    several = [Shape(count, 1) for count in counts if 1 < count <= MOST_PROCESSES]
    return [*(Shape(1, count) for count in counts), *several]


def num_devices() -> int:
    """The devices of this machine."""
    from pgjax.lab import machine

    return len(machine.devices())


def start(shape: Shape, num_rows: dict[str, int], horizon: int) -> list[Side]:
    """The processes of a job, once all of them have compiled."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    alone = shape.processes == 1

    def command(index: int) -> Command:
        settings = {
            "num_devices": shape.devices,
            "num_rows": num_rows,
            "horizon": horizon,
            "job": None if alone else [address, shape.processes, index],
        }
        own = {} if alone else {"JAX_LOCAL_DEVICE_IDS": str(index)}  # each its own GPU
        return Command(sys.executable, "benchmarks.scaling_process", settings, own)

    return at_once(rounds.start, [command(index) for index in range(shape.processes)])


def at_once(function: Callable[[Any], Any], of: Sequence[Any]) -> list[Any]:
    """`function` of each, all at the same time: processes of a job wait for each other."""
    with ThreadPoolExecutor(len(of)) as pool:
        return list(pool.map(function, of))


def measure(smoke: bool) -> list[kept.Row]:
    """Steps per second of every shape, taken in turn."""
    strong, weak, horizon = (4, None, 4) if smoke else SETTINGS.values()
    num_rounds = 1 if smoke else ROUNDS
    # Asked in another process: this one must leave accelerators to those it starts.
    found = shapes(2 if smoke else processes.call(num_devices))
    rows = {
        shape: {"strong": strong} | ({"weak": weak * shape.size} if weak else {}) for shape in found
    }
    seconds: dict[tuple[Shape, str], list[float]] = {
        (shape, kind): [] for shape in found for kind in rows[shape]
    }
    jobs: dict[Shape, list[Side]] = {}
    try:
        for shape in found:
            jobs[shape] = start(shape, rows[shape], horizon)
        for _ in range(2 + num_rounds):  # first calls are slower
            for shape, kind in seconds:
                answers = at_once(lambda side, kind=kind: rounds.ask(side, kind), jobs[shape])
                seconds[shape, kind].append(max(answer["seconds"] for answer in answers))
    finally:
        for sides in jobs.values():
            at_once(rounds.stop, sides)
    rates = {
        (shape, kind): [rows[shape][kind] * horizon / each for each in timed[2:]]
        for (shape, kind), timed in seconds.items()
    }
    return [
        kept.row(
            {"scaling": kind} | shape._asdict(),
            {"steps_per_second": own, "efficiency": efficiency(own, rates[found[0], kind], shape)},
        )
        for (shape, kind), own in rates.items()
    ]


def efficiency(own: list[float], of_one: list[float], shape: Shape) -> list[float]:
    """The rate of each device of a shape, over that of one device alone, by round."""
    return [rate / (shape.size * one) for rate, one in zip(own, of_one, strict=True)]


if __name__ == "__main__":
    kept.run("scaling", measure, sys.argv[1:], settings=SETTINGS)
