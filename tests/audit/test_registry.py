"""Every estimator of the registries, audited against the exact gradient: labels tell the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import audit, environments, estimators, exact, gradients, policies
from pgjax.estimators import Hyper

from ..choices import ACCEPTED

HORIZON, NUM_EPISODES, NUM_REPLICATES = 3, 2, 80_000
HYPER = Hyper(discount=0.7, lambda_=0.6, n=2, constant=0.4)
FALSE_ALARM = 1e-5


def bandit_walk():
    """Two live states that look alike, three actions, and rewards that differ from step to step.

    Every label that says biased is wrong by much here: late rewards are large and negative, values
    are far off, and returns have little spread.
    """
    transition = np.zeros((3, 3, 3))
    transition[0] = [[0.0, 1.0, 0.0], [0.2, 0.8, 0.0], [0.0, 0.9, 0.1]]
    transition[1] = [[0.5, 0.5, 0.0], [0.0, 0.6, 0.4], [0.1, 0.9, 0.0]]
    transition[2, :, 2] = 1
    reward = np.zeros((3, 3, 3))
    reward[0] = np.array([1.0, 0.2, -0.5])[:, None]
    reward[1] = np.array([-2.0, 1.5, 0.5])[:, None]
    initial, terminal = np.array([1.0, 0.0, 0.0]), np.array([False, False, True])
    return exact.MDP(transition, reward, initial, terminal, np.zeros(3, np.int32))


MDP = bandit_walk()
PARAMS = np.array([[0.4, -0.3, 0.2]])
WRONG = np.array([0.8])


def p_value(choice):
    """Of no bias, for the policy's part of an estimator with a value function that is wrong."""
    env, policy = environments.tabular_mdp(MDP), policies.tabular(1, 3)
    needs = estimators.needs_value(choice)
    inner = gradients.policy_gradient(
        env,
        env.default_params,
        policy,
        choice,
        HYPER,
        num_episodes=NUM_EPISODES,
        horizon=HORIZON,
        value_function=policies.tabular_value(1) if needs else None,
    )

    def gradient_fn(key, params):
        if not needs:
            return inner(key, params)
        gradient, metrics = inner(key, {"policy": params, "value": jnp.asarray(WRONG)})
        return gradient["policy"], metrics

    params = jnp.asarray(PARAMS)
    truth, _ = exact.exact_gradient(MDP, policy, HYPER, horizon=HORIZON)(jax.random.key(0), params)
    found = audit.audit(
        jax.random.key(3),
        params,
        gradient_fn,
        reference=truth,
        num_replicates=NUM_REPLICATES,
        chunk_size=4000,
    )
    assert found.bias_test is not None
    return found.bias_test.p_value


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_unbiased_ones_pass_and_biased_ones_fail():
    with jax.enable_x64(True):
        found = {choice: p_value(choice) for choice in ACCEPTED}
    labels = {choice: estimators.is_unbiased(choice, HYPER)[0] for choice in ACCEPTED}
    assert {choice: p > FALSE_ALARM for choice, p in found.items()} == labels
    assert any(labels.values()) and not all(labels.values())
