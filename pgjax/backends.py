"""What suits each kind of device: the one place where pgjax asks what it runs on.

Those for CPUs were chosen by timing trainings on two cores, a device each. Those for GPUs and TPUs
are reasoned, and not measured: many small kernels cost more there than they compute, so that
nothing is cut up.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """How programs are laid out for a kind of device."""

    rows: int | None
    """Rows of a rollout stepped side by side; None for all of them."""
    live_rows: int | None
    """The same where rows end: fewer, so that those that have ended soon make room for others."""
    live_parts: int
    """Into how many parts those rows are cut where few are left to be stepped; one for none. Parts
    compile the step a second time."""
    chunk_size: int
    """Samples of a gradient whose activations are held at a time."""
    seldom: int | None
    """Calls of seldom needed work made at a time; None makes all of them and chooses."""
    in_turn: bool
    """Whether vmapped gradients are made one after the other."""
    copy_transposes: bool
    """Whether a transposed factor of a matrix product is copied first."""
    precisions: tuple[str, ...]
    """Precisions of matrix products to choose from, the first by default."""
    compiler_options: Mapping[str, int | bool | str]
    """What XLA is told where pgjax compiles."""
    seldom_run_options: Mapping[str, int | bool | str]
    """What it is told beside that for programs that cost more to compile than to run."""
    flags: tuple[str, ...]
    """What XLA takes only from the environment variable `XLA_FLAGS`, before JAX is first used."""


CPU = Backend(
    rows=512,  # activations stay in a core's own cache
    live_rows=256,
    live_parts=8,
    chunk_size=512,
    seldom=32,
    in_turn=True,
    copy_transposes=True,
    precisions=("float32",),
    # A level of one runs as fast as XLA's own three, and compiles a quarter faster.
    compiler_options={"xla_cpu_prefer_vector_width": 512, "xla_backend_optimization_level": 1},
    seldom_run_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
    # Loops that touch fewer bytes than this become one function each. Else every operation of a
    # loop, as in the hash of random keys, is cut into tasks for all cores, which are busy already.
    flags=("--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=4000000",),
)
ACCELERATOR = Backend(
    rows=None,
    live_rows=None,
    live_parts=1,
    chunk_size=2**17,
    seldom=None,
    in_turn=False,
    copy_transposes=False,
    precisions=("float32", "tensorfloat32", "bfloat16"),
    compiler_options={},
    seldom_run_options={},
    flags=(),
)


def current() -> Backend:
    """What suits the devices that programs run on by default."""
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR
