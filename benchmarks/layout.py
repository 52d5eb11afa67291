"""What training gains by the layout of `pgjax.backends` over ones that differ in one choice.

CartPole with 2 x 64 tanh, actor and critic (GAE, one update of each): windows, and whole episodes
at the start of training, when most of their steps are padding. `speed` is that of training with a
layout, as a multiple of that with pgjax's own in the same round: if it is above one, that layout
suits the machine better. Which choices are tried depends on the kind of device.

    python -m benchmarks.layout             # all of it
    python -m benchmarks.layout --smoke     # tiny, to see that it runs; writes nothing
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax

from benchmarks import devices, kept, timing, training
from benchmarks.training import Setting
from pgjax import backends
from pgjax.backends import Backend

OWN = "own"
NUM_ROWS = [4096, 65536] if devices.ACCELERATED else [1024]
TASKS = {
    "windows": Setting(rows="segments", learner="actor-critic"),
    "short episodes": Setting(learner="actor-critic", endless=False),
}
COMMAND_BUFFERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
"""Kinds of operations that XLA for GPUs puts into command buffers by default."""


def choices(own: Backend, kind: str) -> dict[str, dict[str, Any]]:
    """What to change in a layout, by name; the first precision is that of matrix products."""
    told = lambda **options: {"compiler_options": {**own.compiler_options, **options}}
    if kind == "cpu":
        return {
            **{f"windows, {n} rows at a time": {"rows": n} for n in (256, 1024)},
            "windows, all rows at a time": {"rows": None},
            **{f"episodes, {n} rows at a time": {"live_rows": n} for n in (128, 512)},
            "episodes, all rows at a time": {"live_rows": None},
            **{f"rows left over, {n} parts": {"live_parts": n} for n in (1, 4)},
            **{f"blocks of {n} steps": {"block": n} for n in (4, 32)},
            "unroll 2": {"unroll": 2},
            **{f"chunks of {n}": {"chunk_size": n} for n in (256, 1024, 4096)},
            "small loops of many programs": {"fused_loops": False, "lazy_calls": None},
            "resets chosen, not seldom made": {"lazy_calls": None},
            "transposes not copied": {"copy_transposes": False},
            "narrow products not summed": {"summed_columns": 0},
            "vectors of 256 bits": told(xla_cpu_prefer_vector_width=256),
            "optimization level 3": told(xla_backend_optimization_level=3),
        }
    return {
        **{f"blocks of {n} steps": {"block": n} for n in (8, 128)},
        **{f"unroll {n}": {"unroll": n} for n in (1, 2, 8, 16)},
        **{f"chunks of 2^{n}": {"chunk_size": 2**n} for n in (13, 15, 19, 21)},
        "resets seldom made": {"lazy_calls": 32},
        "transposes copied": {"copy_transposes": True},
        "narrow products summed": {"summed_columns": 4},
        **{
            f"products in {name}": {"precisions": (name, *own.precisions)}
            for name in own.precisions[1:]
        },
        **({} if kind == "tpu" else command_buffers(told)),
    }


def command_buffers(told: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Changes to what XLA for GPUs launches as one: nothing, or loops and branches too."""
    return {
        "no command buffers": told(xla_gpu_graph_min_graph_size=10**6),
        "loops as command buffers": told(
            xla_gpu_enable_command_buffer=f"{COMMAND_BUFFERS},CONDITIONAL,WHILE"
        ),
    }


def measure(smoke: bool) -> list[kept.Row]:
    """Steps per second with every layout, and as a multiple of those with pgjax's own."""
    kind, rows = jax.default_backend(), []
    for name in ["short episodes"] if smoke else TASKS:
        for num_rows in [2] if smoke else NUM_ROWS:
            setting = TASKS[name]._replace(num_rows=num_rows)
            rows += beside(name, setting._replace(horizon=4) if smoke else setting, kind, smoke)
    return rows


def beside(task: str, setting: Setting, kind: str, smoke: bool) -> list[kept.Row]:
    """All layouts at one setting."""
    own = backends.current()
    changes = {OWN: {}} | choices(own, kind)
    if smoke:
        changes = {name: changes[name] for name in (OWN, "unroll 2")}
    calls = {name: program(setting, own._replace(**change)) for name, change in changes.items()}
    live = int(calls[OWN]()[1]["env_steps"])
    seconds = timing.interleaved(calls, rounds=1 if smoke else 7, least=0 if smoke else 0.2)
    return [
        kept.row(
            {"task": task, "num_rows": setting.num_rows, "layout": name},
            {
                "steps_per_second": [live / each for each in seconds[name]],
                "speed": [x / y for x, y in zip(seconds[OWN], seconds[name], strict=True)],
            },
        )
        for name in changes
    ]


def program(setting: Setting, layout: Backend) -> training.Program:
    """An update with that layout."""
    with mock.patch.object(backends, "current", lambda: layout):
        return training.step(setting, training.mesh(setting.num_rows)).compile()


if __name__ == "__main__":
    kept.run("layout", measure, sys.argv[1:])
