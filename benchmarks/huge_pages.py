"""Training with memory in ordinary pages beside training with huge ones.

The system clears the memory of a program's arrays page by page when they are first touched: on
every update, if the C library has given it back in between, as it must with more than 64 MB on a
thread. The trajectories of wide observations are that large, and mostly zeros where episodes are
short. glibc (2.35 and later) asks Linux for huge pages if an environment variable says so before
the process starts. Measured are live steps per second of either process; updates are timed in turn.

    python -m benchmarks.huge_pages             # keeps the result
    python -m benchmarks.huge_pages --smoke     # tiny, to see that it runs; writes nothing
"""

import sys

from benchmarks import devices, kept, rounds
from benchmarks.rounds import Command
from benchmarks.training import Setting

PAGES = {"ordinary": {}, "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
BREAKOUT = Setting(env="Breakout-MinAtar", endless=False)
CRITIC = {"learner": "actor-critic", "rows": "segments"}
SETTINGS = [
    Setting(),
    Setting(num_rows=65536),
    Setting(num_rows=65536, endless=False),
    BREAKOUT,
    BREAKOUT._replace(num_rows=4096),
    BREAKOUT._replace(num_rows=4096, **CRITIC),
]
ROUNDS = 9


def measure(smoke: bool) -> list[kept.Row]:
    """Both processes at every setting."""
    settings, num_rounds = ([Setting(num_rows=2, horizon=4)], 1) if smoke else (SETTINGS, ROUNDS)
    return [beside(setting, num_rounds) for setting in settings]


def beside(setting: Setting, num_rounds: int) -> kept.Row:
    """One setting, with each kind of pages."""
    print(setting, flush=True)
    told = {"setting": list(setting), "num_devices": len(devices.DEVICES)}
    module = "benchmarks.huge_pages_process"
    commands = {
        pages: Command(sys.executable, module, told, environment)
        for pages, environment in PAGES.items()
    }
    steps = {
        one.side: [one.evaluation["env_steps"] / x for x in one.seconds]
        for one in rounds.compare(commands, num_rounds)
    }
    pairs = zip(steps["huge"], steps["ordinary"], strict=True)
    measured = {f"{pages}_steps_per_second": found for pages, found in steps.items()}
    return kept.row(setting._asdict(), measured | {"gain": [huge / other for huge, other in pairs]})


if __name__ == "__main__":
    kept.run("huge_pages", measure, sys.argv[1:], settings={"rounds": ROUNDS})
