"""Gradients of the average reward, for tasks that go on: windows of persistent rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import checks, estimators, rollout
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.policy import batch_gradient, check_batch, policy_part
from pgjax.gradients.samples import GRADIENT_FIELDS
from pgjax.gradients.segments import episode_ends
from pgjax.policies import Policy, ValueFunction, has_memory
from pgjax.rollout import Rows, Trajectory
from pgjax.score import StatefulGradientFn


class WindowState(NamedTuple):
    """What is carried from window to window."""

    rows: Rows
    eta: jax.Array  # [] running average of the windows' mean reward


def average_reward_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    *,
    num_rows: int,
    horizon: int,
    value_function: ValueFunction | None = None,
    eta_step_size: float = 0.1,
    renewal: bool = False,
    chunk_size: int | None = None,
) -> StatefulGradientFn:
    """Gradient of the average reward eta, from windows of persistent rows.

        grad eta = E_mu[ u (r - eta + h(s') - h(s)) ],   u = grad log pi(a | s)
        g        = 1/(N T) sum_i sum_t ( u_it Psi_it + c grad H(pi(. | s_it)) )

    Psi is computed with r - eta for the reward and with discount 1; c is `hyper.entropy_cost`.
    A mean over steps as well as rows, because the objective is a reward per step. The td residual
    and GAE are differential ones here, and the value function is the differential value h, without
    a reference state: only its differences count. Params and gradient are
    `{"policy": ..., "value": ...}`; the value's part descends 1/2 (h(s_t) - target_t)^2 averaged
    over steps, as in `policy_gradient`.

    Unbiased, at any lambda, if h is exact, the rows are in the stationary distribution mu and c is
    zero; otherwise biased. Which eta is subtracted then does not matter to the policy's part, as
    long as it is not that of the same window: eta is a running average of the mean rewards of
    *earlier* windows,

        eta <- eta + eta_step_size (mean reward of the window - eta)

    starting from a first window that `init` plays for this alone. Errors of eta shift the level of
    h, and cancel over time: by this rule they sum to (eta_last - eta_first) / eta_step_size.

    A continuing task has no ends; what happens at one is for the user to choose. With `renewal`, an
    end is a transition of the chain to the start of the next episode, whose value is bootstrapped:
    the average runs over all episodes in turn. Without it, an episode ends there: after
    `terminated` the differential value is zero, after `truncated` that of the true next
    observation, and the gradient is that of no average reward unless the metric `ends` stays zero.

    Args:
      env: a gymnax environment.
      env_params: its parameters.
      policy: the policy; through its memory, if any, backpropagation through time is truncated at
        the start of the window.
      estimator: a bootstrapping form, so that windows see beyond their end; any baseline.
      hyper: discount 1, lambda and the like.
      num_rows: N.
      horizon: steps per window, T.
      value_function: the differential value h.
      eta_step_size: step size of the running average.
      renewal: whether an end is a transition to the next start; for policies without memory.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.

    Returns:
      A `StatefulGradientFn`. Metrics, over the window: mean `reward`, the `eta` subtracted,
      `ends` (how many episodes ended), `env_steps`, `entropy` and `value_loss`.

    Raises:
      ValueError: counts below one, 2^31 steps or more, rates outside [0, 1], a discount other than
        one, a form that does not bootstrap, no value function, too few rows for the baseline, or
        renewal with memory.

    Source: Sutton et al. 2000; Sutton & Barto 2018, section 13.6.
    """
    estimators.check_bootstraps(estimator)
    if not checks.is_traced(hyper.discount) and float(hyper.discount) != 1:
        raise ValueError(f"discount={hyper.discount!r} must be 1: the average reward has none")
    return _window_gradient(
        env,
        env_params,
        policy,
        estimator,
        hyper,
        num_rows=num_rows,
        horizon=horizon,
        value_function=value_function,
        eta_step_size=eta_step_size,
        renewal=renewal,
        chunk_size=chunk_size,
    )


def gpomdp(
    env: Any,
    env_params: Any,
    policy: Policy,
    *,
    beta: float,
    num_rows: int,
    horizon: int,
    baseline: str = "none",
    entropy_cost: float = 0.0,
    eta_step_size: float = 0.1,
    renewal: bool = False,
    chunk_size: int | None = None,
) -> StatefulGradientFn:
    """GPOMDP(beta): the average reward's gradient by an eligibility trace, without any values.

        g = 1/(N T) sum_i sum_t ( z_it (r_it - eta) + c grad H(pi(. | s_it)) )
        z_it = beta z_{i,t-1} + u_it,   u_it = grad log pi(a_it | s_it)

    The trace starts at zero in every window. Summed in the other order it is the reward-to-go at
    rate beta, 1/(N T) sum_i sum_t u_it sum_{k>=t} beta^(k-t) (r_ik - eta), and this is what is
    computed. Biased: in the stationary distribution, and apart from the end of the window, its mean
    is E_mu[u Q_beta] with the values of discount beta, which tends to grad eta as beta -> 1 while
    the variance grows; the end of the window takes away a share of O(1 / ((1 - beta) T)). eta is as
    in `average_reward_gradient`: a constant that lowers the variance and leaves the mean unchanged.

    Args:
      env: a gymnax environment; states may be hidden.
      env_params: its parameters.
      policy: the policy; params and gradient are its own.
      beta: decay of the trace, in [0, 1).
      num_rows: N.
      horizon: steps per window, T; long compared with 1 / (1 - beta).
      baseline: any that needs neither a value nor a number.
      entropy_cost: c, the weight of the entropy bonus.
      eta_step_size: step size of the running average.
      renewal: whether the trace goes on where an episode ends; otherwise it is cut there.
      chunk_size: samples whose activations are held at a time; None takes what suits the device.

    Returns:
      A `StatefulGradientFn`, with the metrics of `average_reward_gradient`.

    Raises:
      ValueError: counts below one, 2^31 steps or more, beta outside [0, 1), an unknown baseline,
        `constant` or one that needs values, too few rows for it, or renewal with memory.

    Source: Baxter & Bartlett 2001, "Infinite-Horizon Policy-Gradient Estimation".
    """
    checks.within("beta", beta, 0, 1)
    if not checks.is_traced(beta) and float(beta) == 1:
        raise ValueError(f"beta={beta!r} must be below 1: the trace has to decay")
    if baseline == "constant":
        raise ValueError(
            "baseline='constant' has no number to subtract here: eta is already subtracted from "
            "every reward; choose 'none'"
        )
    estimator = estimators.estimator("reward_to_go", baseline, "uniform")
    hyper = Hyper(discount=beta, entropy_cost=entropy_cost)
    return _window_gradient(
        env,
        env_params,
        policy,
        estimator,
        hyper,
        num_rows=num_rows,
        horizon=horizon,
        value_function=None,
        eta_step_size=eta_step_size,
        renewal=renewal,
        chunk_size=chunk_size,
    )


def _window_gradient(
    env,
    env_params,
    policy,
    estimator,
    hyper,
    *,
    num_rows,
    horizon,
    value_function,
    eta_step_size,
    renewal,
    chunk_size,
) -> StatefulGradientFn:
    """Weights the scores of a window by Psi of the reward minus eta, as a mean over steps."""
    check_batch("num_rows", num_rows, horizon)
    learn = batch_gradient(policy, estimator, hyper, value_function, chunk_size)
    checks.within("eta_step_size", eta_step_size, 0, 1)
    estimators.check_rows(estimator, num_rows, "num_rows")
    if renewal and has_memory(policy):
        raise ValueError(f"renewal={renewal} does not go with a policy with memory")

    def play(key, params, rows):
        own = policy_part(params, value_function)
        fields = GRADIENT_FIELDS if value_function is None else (*GRADIENT_FIELDS, "final_obs")
        return rollout.segments(
            key, env, env_params, policy, own, rows, horizon=horizon, fields=fields
        )

    def init(key, params):
        start_key, window_key = jax.random.split(key)
        rows = rollout.start(start_key, env, env_params, policy, num_rows=num_rows)
        trajectory, rows = play(window_key, params, rows)
        return WindowState(rows, eta=jnp.mean(trajectory.reward))

    def step(key, params, state):
        trajectory, rows = play(key, params, state.rows)
        reward = jnp.mean(trajectory.reward)
        metrics = {
            "reward": reward,
            "eta": state.eta,
            "ends": jnp.sum(episode_ends(trajectory, rows), dtype=jnp.int32),
            "env_steps": jnp.int32(trajectory.mask.size),
        }
        if renewal:
            trajectory = _one_chain(trajectory, rows)
        trajectory = trajectory._replace(reward=trajectory.reward - state.eta)
        gradient, value_metrics = learn(params, trajectory, state.rows.policy_state)
        per_step = jax.tree.map(lambda x: x / horizon, policy_part(gradient, value_function))
        gradient = per_step if value_function is None else gradient | {"policy": per_step}
        eta = state.eta + eta_step_size * (reward - state.eta)
        return gradient, WindowState(rows, eta.astype(state.eta.dtype)), metrics | value_metrics

    return StatefulGradientFn(init, step)


def _one_chain(trajectory: Trajectory, rows: Rows) -> Trajectory:
    """The window as one stretch of a chain in which the next start follows an end."""
    nowhere = jnp.zeros_like(trajectory.terminated)
    return trajectory._replace(
        terminated=nowhere,
        truncated=nowhere.at[:, -1].set(True),
        final_obs=rows.obs,
    )
