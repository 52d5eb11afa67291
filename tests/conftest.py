"""What every test runs under: no silent rank promotion, no windows, a fixed platform."""

import os

# Before anything imports JAX or matplotlib, in this process or in one that a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

# All of gymnax steps under "raise" but Swimmer-misc, whose own arithmetic promotes ranks; a test
# that steps it does so under `jax.numpy_rank_promotion("allow")`.
jax.config.update("jax_numpy_rank_promotion", "raise")
