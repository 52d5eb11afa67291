"""Live environment steps per second of training, one axis varied at a time.

The base is 1024 rows of 128 steps with 2 x 64 tanh, on all devices. Rows are whole episodes, or
segments of rows that go on. The learner is an actor alone, or an actor and a critic (GAE, one
update of each); segments need a critic. CartPole is measured at the start of training, when
episodes last twenty steps, and with episodes that do not end; Pendulum never ends within 128 steps,
and Breakout ends early. Every call trains from the same initial state, so that the work stays the
same. Steps that only pad a batch are not counted.

    python -m benchmarks.throughput               # all of it
    python -m benchmarks.throughput --smoke       # tiny, to see that it runs; writes nothing
"""

import sys
from collections.abc import Iterator

from benchmarks import kept, timing, training
from benchmarks.devices import ACCELERATED
from benchmarks.training import Setting
from pgjax.lab import machine

LEARNERS = [("episodes", "actor"), ("episodes", "actor-critic"), ("segments", "actor-critic")]
TASKS = [
    ("CartPole-v1", True),
    ("CartPole-v1", False),
    ("Pendulum-v1", False),
    ("Breakout-MinAtar", False),
]
AXES = {
    "num_rows": [64, 256, 1024, 4096, 16384, 65536, *([2**18, 2**20] if ACCELERATED else [])],
    "horizon": [32, 128, 512, 2048],
    "width": [16, 64, 256],
    "depth": [1, 2, 4],
}
ROUNDS = 3
LEAST_SECONDS = 0.2
"""The least seconds of a round of one program, which are filled with several updates."""


def groups(smoke: bool) -> Iterator[tuple[str, list[Setting]]]:
    """The settings that are timed in turn, and the axis along which they differ."""
    base, axes, tasks = Setting(), AXES, TASKS
    if smoke:
        base, axes, tasks = Setting(num_rows=2, horizon=4), {"num_rows": [2]}, TASKS[-1:]
    for axis, points in axes.items():
        # Only the number of rows is varied for every task.
        for env, endless in tasks if axis == "num_rows" else tasks[:1]:
            task = base._replace(env=env, endless=endless)
            settings = [
                task._replace(rows=rows, learner=learner, **{axis: point})
                for rows, learner in LEARNERS
                for point in points
            ]
            yield axis, settings


def measure(smoke: bool) -> list[kept.Row]:
    """Throughput along every axis."""
    return [
        made
        for axis, settings in groups(smoke)
        for made in measure_group(axis, settings, rounds=1 if smoke else ROUNDS)
    ]


def measure_group(axis: str, settings: list[Setting], rounds: int) -> list[kept.Row]:
    """Throughput of some settings, timed in turn."""
    print(f"{settings[0].env} along {axis}", flush=True)
    fitting = [setting for setting in settings if fits(setting)]
    for setting in settings:
        if setting not in fitting:
            print(f"not measured, for want of memory: {setting}", flush=True)
    calls = {
        setting: training.step(setting, training.mesh(setting.num_rows)).compile()
        for setting in fitting
    }
    live = {setting: int(call()[1]["env_steps"]) for setting, call in calls.items()}
    seconds = timing.interleaved(calls, rounds=rounds, least=LEAST_SECONDS if rounds > 1 else 0)
    return [
        kept.row(
            {"axis": axis} | setting._asdict(),
            {"steps_per_second": [live[setting] / each for each in seconds[setting]]},
            {"live_fraction": live[setting] / (setting.num_rows * setting.horizon)},
        )
        for setting in fitting
    ]


def fits(setting: Setting) -> bool:
    """Whether a trajectory takes at most a third of the memory."""
    return training.trajectory_bytes(setting) <= machine.memory() / 3


if __name__ == "__main__":
    kept.run("throughput", measure, sys.argv[1:])
