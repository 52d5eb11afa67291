"""What is compared in the benchmark of audits is the same work."""

import jax
import numpy as np
import pytest

from benchmarks import audit_cost


def test_smoke(capsys):
    audit_cost.main(["--smoke"])
    printed = capsys.readouterr().out
    assert "audit_seconds" in printed
    assert "norms" in printed


@pytest.mark.parametrize("kind", audit_cost.KINDS)
def test_training_sees_the_trajectories_of_the_audit(kind):
    size, horizon = audit_cost.Size(num_episodes=2, num_replicates=5, chunk_size=2), 60
    given = audit_cost.problem(kind)
    found = audit_cost.audited(given, size, horizon)()
    state, metrics = audit_cost.trained(given, size, horizon)()
    steps = audit_cost.env_steps(metrics)
    assert found.env_steps is not None
    assert found.env_steps.value * 5 == pytest.approx(steps)
    assert (steps == 2 * 5 * horizon) == (kind == "full")
    for before, after in zip(*map(jax.tree.leaves, (given.params, state.params)), strict=True):
        np.testing.assert_array_equal(before, after)
