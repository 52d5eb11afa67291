"""Kernels, timed one by one: `pytest benchmarks --benchmark-only -n 0`.

To compare two states of the code, run one with `--benchmark-save=before` and the other with
`--benchmark-compare`. `python -m benchmarks.kernels` keeps what they take on this kind of machine.
"""

from collections.abc import Mapping

import pytest

from benchmarks.kernels import SETTING, TOY, Kernel, is_finite, kernels
from benchmarks.training import Setting


@pytest.fixture(scope="module")
def compiled():
    """A function of a kernel's name and a setting that gives the compiled call."""
    made: dict[Setting, Mapping[str, Kernel]] = {}

    def get(name, setting):
        if setting not in made:
            made[setting] = kernels(setting)
        return made[setting][name].compile()

    return get


NAMES = (
    "discounted_sum",
    "gae",
    "psi",
    "fold",
    "rollout_step",
    "trajectory_gradient",
    "values",
)


@pytest.mark.parametrize("name", NAMES)
def test_kernel(name, compiled, benchmark):
    call = compiled(name, SETTING if benchmark.enabled else TOY)
    assert is_finite(benchmark(call))
