"""What suits each kind of device: the one place where pgjax asks what it runs on.

The choices for CPUs were made by timing training on two cores, one device each. Those for GPUs and
TPUs are reasoned and not measured: many small kernels cost more there than what they compute, so
that nothing is cut up.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Backend(NamedTuple):
    """How programs are laid out for a kind of device."""

    rows: int | None
    """Rows of a rollout stepped side by side; None for all of them."""
    live_rows: int | None
    """The same where rows end: fewer, so that ended ones soon make room for others."""
    live_parts: int
    """Number of parts that those rows are cut into once few are left to be stepped; one leaves them
    whole. Parts compile the step a second time."""
    block: int
    """Most steps of a rollout whose noise is made at once, and after which rows that have ended are
    no longer stepped."""
    unroll: int
    """Steps of a rollout in one turn of a loop. XLA for GPUs launches what a turn holds as one
    command buffer."""
    chunk_size: int
    """Samples of a gradient whose activations are held at a time."""
    fused_loops: bool
    """Whether a loop of small operations is one function, and costs no more than they do."""
    lazy_calls: int | None
    """Rarely needed calls that are made at a time, in such loops; None makes all and selects."""
    in_turn: bool
    """Whether vmapped gradients are made one after the other."""
    copy_transposes: bool
    """Whether a transposed factor of a matrix product is copied first."""
    summed_columns: int
    """Most columns of a factor for which a product with its transpose is made as a sum."""
    precisions: tuple[str, ...]
    """Precisions of matrix products to choose from, the first by default. JAX takes any name on
    any device, but its `bfloat16` is TensorFloat-32 on a GPU, and its `tensorfloat32` three passes
    of bfloat16 on a TPU. Its algorithm `BF16_BF16_F32` would round products of integers too."""
    compiler_options: Mapping[str, int | bool | str]
    """What XLA is told where pgjax compiles."""
    brief_options: Mapping[str, int | bool | str]
    """What it is told besides for programs that take longer to compile than to run."""


CPU = Backend(
    rows=512,  # activations stay in a core's own cache
    live_rows=256,
    live_parts=8,
    block=8,
    unroll=1,
    chunk_size=512,
    fused_loops=True,
    lazy_calls=32,
    in_turn=True,
    copy_transposes=True,
    summed_columns=4,
    precisions=("float32",),
    # A level of one runs as fast as XLA's own three, and compiles sooner.
    compiler_options={"xla_cpu_prefer_vector_width": 512, "xla_backend_optimization_level": 1},
    brief_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
)
GPU = Backend(
    rows=None,
    live_rows=None,
    live_parts=1,
    block=32,
    unroll=4,
    chunk_size=2**17,
    fused_loops=False,
    lazy_calls=None,
    in_turn=False,
    copy_transposes=False,
    summed_columns=0,
    precisions=("float32", "tensorfloat32"),
    compiler_options={},
    brief_options={},
)
TPU = GPU._replace(precisions=("float32", "bfloat16"))
KINDS = {"cpu": CPU, "gpu": GPU, "tpu": TPU}
"""By the name that JAX has for the kind of device."""

# Loops that touch fewer bytes than this become one function each. Else every operation of a loop,
# as in the hash of random keys, is cut into tasks for all cores, which are busy already.
CPU_FLAGS = ("--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=4000000",)
"""What XLA takes only from the environment variable `XLA_FLAGS`, before JAX is first used.

GPUs have none: they may add in another order every time, and so give other bits, unless the user
puts `--xla_gpu_deterministic_ops=true` there. What that costs was not measured.
"""


def current() -> Backend:
    """What suits the devices that programs run on by default."""
    kind = jax.default_backend()
    if kind == "cpu" and not _fuses_loops():
        return CPU._replace(fused_loops=False, lazy_calls=None)
    return KINDS.get(kind, GPU)


def kinds_with(precision: str) -> list[str]:
    """Kinds of devices whose matrix products can be of a precision."""
    return [kind for kind, backend in KINDS.items() if precision in backend.precisions]


def matmul_precision(precision: str) -> contextlib.AbstractContextManager[None]:
    """Traces matrix products with a given precision, where there is a choice.

    By default JAX lets GPUs and TPUs round the factors of float32 products.
    """
    if len(current().precisions) == 1:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


@functools.cache
def _fuses_loops() -> bool:
    """Whether XLA was given the flags of CPUs, which only a compiled program reveals."""
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda step, x: x * x + step, x))
    program = loop.lower(jax.ShapeDtypeStruct((4096,), jnp.float32)).compile()
    return "xla_cpu_small_call" in (program.as_text() or "")
