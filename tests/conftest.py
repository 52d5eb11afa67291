"""What every test runs under: no silent rank promotion, no windows, a fixed platform."""

import os
import tempfile

# Before anything imports JAX or matplotlib, in this process or in one that a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a test is compilation, which these flags make faster and the programs slower. What pgjax
# compiles itself (`lab`, audits) is optimised as users have it. Jobs of several processes and
# `python -m pgjax` as a program have their own flags.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Programs that took long to compile, here or in a process that a test started, are shared.
    # Where two processes must come to the same bits, one of them does without.
    CACHE = tempfile.TemporaryDirectory(prefix="pgjax-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

from pgjax import backends

# As programs that tests start have them: with others, what is computed here would differ in bits.
os.environ["XLA_FLAGS"] += " " + " ".join(backends.CPU_FLAGS)

# All of gymnax steps under "raise" but Swimmer-misc, whose own arithmetic promotes ranks; a test
# that steps it does so under `jax.numpy_rank_promotion("allow")`.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def laid_out(monkeypatch):
    """A function that makes programs be laid out otherwise from now on."""
    return lambda backend: monkeypatch.setattr(backends, "current", lambda: backend)
