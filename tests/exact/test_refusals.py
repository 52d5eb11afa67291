"""What the oracle refuses, each with one line that says what is wrong and what is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import exact, policies
from pgjax.estimators import Hyper, estimator

from ..enumeration import random_problem
from .cases import ALIASES, tabular

POLICY = policies.tabular(4, 2)
PARAMS = jnp.zeros((4, 2))
MDP = tabular(random_problem(0)).mdp
ENDLESS = tabular(random_problem(5, ends=False)).mdp
HYPER = Hyper(0.9)


def scaled(field, factor):
    return MDP._replace(**{field: factor * np.asarray(getattr(MDP, field))})


def negative():
    transition = MDP.transition.copy()
    transition[0, 0, :2] = -0.5, transition[0, 0, :2].sum() + 0.5
    return MDP._replace(transition=transition)


def reducible():
    transition = ENDLESS.transition.copy()
    transition[2] = np.eye(4)[2]
    return ENDLESS._replace(transition=transition)


def with_memory():
    return POLICY._replace(initial_state=lambda: jnp.zeros(()))


def moments(names=("reward_to_go", "none"), hyper=HYPER, **options):
    arguments = (MDP, POLICY, PARAMS, estimator(*names), hyper)
    return lambda: exact.exact_moments(*arguments, **{"horizon": 3} | options)


def optimal(depends_on, form="reward_to_go", **options):
    arguments = (MDP, POLICY, PARAMS, estimator(form, "none"), HYPER)
    return lambda: exact.optimal_baseline(*arguments, horizon=3, depends_on=depends_on, **options)


def of(function, mdp=MDP, policy=POLICY, hyper=HYPER, horizon: int | None = 3):
    return lambda: function(mdp, policy, PARAMS, hyper, horizon=horizon)


def made(constructor, mdp=MDP, policy=POLICY, hyper=HYPER, horizon: int | None = 3, **options):
    """A gradient function, refused when it is made and not only when it is called."""
    return lambda: constructor(mdp, policy, hyper, horizon=horizon, **options)


REFUSED = {
    # what is no MDP, or has no exact values
    "rows": (of(exact.values, scaled("transition", 0.9)), "transition must sum to one"),
    "initial": (of(exact.visits, scaled("initial", 2)), "initial must sum to one"),
    "negative": (of(exact.expected_return, negative()), "transition has negative"),
    "reward": (of(exact.values, scaled("reward", np.nan)), "reward must be finite"),
    "shape": (
        of(exact.values, MDP._replace(reward=np.zeros((4, 2)))),
        "reward has shape (4, 2); transition (4, 2, 4) asks for (4, 2, 4)",
    ),
    "starts at the end": (
        of(exact.values, MDP._replace(initial=np.eye(4)[3])),
        "initial gives probability to a terminal state",
    ),
    "memory": (of(exact.values, policy=with_memory()), "policy has a memory"),
    "memory, made": (made(exact.exact_gradient, policy=with_memory()), "policy has a memory"),
    # objectives that do not exist
    "horizon": (of(exact.values, horizon=0), "horizon=0 must be a whole number >= 1"),
    "horizon, made": (made(exact.exact_gradient, horizon=0), "horizon=0"),
    "discount": (
        of(exact.expected_return, hyper=Hyper(1.5)),
        "discount=1.5 must be a number from 0 to 1",
    ),
    "discount, made": (made(exact.exact_gradient, hyper=Hyper(1.5)), "discount=1.5"),
    "damping": (made(exact.natural_gradient, damping=-1.0), "damping=-1.0"),
    "diverges": (
        of(exact.expected_return, ENDLESS, hyper=Hyper(1.0), horizon=None),
        "horizon=None with discount=1: J diverges, because state 0 is visited",
    ),
    "reducible": (
        lambda: exact.average_reward(reducible(), POLICY, PARAMS),
        "the chain is reducible: state 1 and state 0 do not lead to each other",
    ),
    "continuing": (
        lambda: exact.differential_values(MDP, POLICY, PARAMS),
        "average reward is for continuing tasks, and state 3 is terminal",
    ),
    # estimators
    "value shape": (
        moments(("gae", "none"), value=np.zeros(3)),
        "value has shape (3,); expected [S], [T, S] or [T + 1, S] with S=4, T=3",
    ),
    "no value": (moments(("gae", "none")), "gae+none needs value"),
    "no value for the baseline": (
        moments(("reward_to_go", "value")),
        "reward_to_go+value needs value",
    ),
    "one episode": (
        moments(("reward_to_go", "leave_one_out")),
        "num_episodes=1 must be a whole number >= 2 (baseline 'leave_one_out'",
    ),
    "no episode": (moments(num_episodes=0), "num_episodes=0"),
    "no step": (moments(horizon=0), "horizon=0"),
    "entropy": (
        moments(hyper=Hyper(0.9, entropy_cost=0.1)),
        "0: exact moments are those",
    ),
    "lambda": (moments(hyper=Hyper(0.9, lambda_=2.0)), "lambda=2.0"),
    "moments' discount": (moments(hyper=Hyper(1.5)), "discount=1.5"),
    "many batches": (
        moments(("reward_to_go", "standardise"), horizon=6, num_episodes=4),
        "choose a smaller MDP, horizon or num_episodes",
    ),
    "many trajectories": (
        moments(("reward_to_go", "time_mean"), horizon=500, num_episodes=2),
        "baseline 'time_mean' is a ratio over the batch",
    ),
    "traced n": (
        lambda: jax.jit(lambda n: moments(("n_step", "none"), Hyper(n=n), value=np.zeros(4))())(2),
        "n must be known",
    ),
    "traced batches": (
        lambda: jax.jit(
            lambda mdp: exact.exact_moments(
                mdp,
                POLICY,
                PARAMS,
                estimator("reward_to_go", "time_mean"),
                HYPER,
                horizon=3,
                num_episodes=2,
            )
        )(MDP),
        "mdp is traced, and baseline 'time_mean' is a ratio over the batch",
    ),
    "action value": (
        lambda: exact.all_action_moments(
            MDP, POLICY, PARAMS, HYPER, horizon=3, action_value=np.zeros((2, 4))
        ),
        "action_value has shape (2, 4); expected (4, 2) or (3, 4, 2)",
    ),
    "state weighting": (
        lambda: exact.all_action_moments(
            MDP, POLICY, PARAMS, HYPER, horizon=3, state_weighting="uniforn"
        ),
        "state_weighting='uniforn' is unknown (did you mean 'uniform'?)",
    ),
    "depends on": (optimal("state_and_tim"), "did you mean 'state_and_time'?"),
    "total return": (
        optimal("state", "total_return"),
        "depends_on='state' does not go with form='total_return'",
    ),
    "optimal, no value": (optimal("time", "td_residual"), "td_residual+none needs value"),
    "decomposition": (
        lambda: exact.variance_decomposition(
            MDP, POLICY, PARAMS, HYPER, horizon=3, value=np.zeros((2, 4))
        ),
        "value has shape (2, 4)",
    ),
    "aliased": (
        lambda: exact.action_values(
            MDP._replace(observation=ALIASES.astype(np.int32)), POLICY, HYPER, horizon=3
        ),
        "mdp.observation hides the state",
    ),
    "looked up in no time": (
        lambda: exact.action_values(MDP, POLICY, HYPER, horizon=0),
        "horizon=0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_all_of_them_are_refused_for_a_reason():
    """What is refused works once it is put right."""
    assert np.isfinite(moments(num_episodes=2)().trace)
    assert np.isfinite(of(exact.expected_return, ENDLESS, horizon=None)())
    assert np.isfinite(exact.average_reward(ENDLESS, POLICY, PARAMS))
