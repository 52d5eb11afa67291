"""Where the variance of a policy gradient comes from, measured in any environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pgjax import checks, estimators, restarts
from pgjax.audit import intervals
from pgjax.audit.intervals import Estimate
from pgjax.audit.replicates import BLOCKS
from pgjax.estimators import Hyper
from pgjax.policies import Params, Policy, check_memoryless


class Decomposition(NamedTuple):
    """Parts of the variance of one step's term of the gradient; they add up to it."""

    trajectory: Estimate  # of the return, given state and action
    action: Estimate  # of the action, given the state
    state: Estimate  # of the state


class Sums(NamedTuple):
    """Sums over episodes, each weighted by W, the summed weights of its steps."""

    weight: Any
    square: Any  # of W^2
    trajectory: Any  # of Var(G | s, a) |u|^2, u the score
    second: Any  # of E[(Q - b)^2 |u|^2 | s]
    centre: Any  # of |E[(Q - b) u | s]|^2
    mean: Any  # [D] of v, one estimate of E[(Q - b) u | s] an episode
    own: Any  # of W |v|^2


def variance_decomposition(
    key: jax.Array,
    params: Params,
    env: Any,
    env_params: Any,
    policy: Policy,
    hyper: Hyper,
    *,
    num_episodes: int,
    horizon: int,
    baseline: Callable[[jax.Array], jax.Array] | None = None,
    state_weighting: str = "discounted",
    num_actions: int = 2,
    num_rollouts: int = 2,
    chunk_size: int = 256,
    level: float = 0.95,
) -> Decomposition:
    """The law of total variance for one step's term of the policy gradient, by nested sampling.

        g = (G_t - b(s)) u,   u = grad log pi(a | s)
        trajectory = E[Var(G_t | s, a) |u|^2]
        action     = E[tr Var_a((Q_t(s, a) - b(s)) u | s)]
        state      = tr Var(E_a[Q_t(s, a) u | s])

    The step is drawn from the visits of an episode, as in `exact.variance_decomposition`. From its
    state the episode is restarted with several actions, several times each, and every part is
    estimated by products of independent samples, unbiased up to the division by the sampled number
    of visits. The variance of returns is taken over rollouts from the same state and action: this
    has the mean of (G^2 - Q^2) |u|^2, but not its noise. A baseline close to the values also lowers
    the noise of the state's part; one far from them, as a value that ignores the time may be, adds
    to it.

    Args:
      key: typed PRNG key.
      params: the policy's parameters.
      env: a gymnax environment, whose states can be restarted.
      env_params: its parameters.
      policy: a policy without memory.
      hyper: only the discount matters.
      num_episodes: episodes, each of which gives one state.
      horizon: maximum number of steps of an episode, T.
      baseline: b, `obs -> []`; none by default.
      state_weighting: `discounted` or `uniform`.
      num_actions: actions per state, at least two.
      num_rollouts: rollouts per action, at least two.
      chunk_size: most episodes run side by side; fewer where the blocks are smaller.
      level: confidence level of the intervals.

    Returns:
      The traces of the three covariances. The estimates of `action` and `state` may be negative
      where the truth is near zero.

    Raises:
      ValueError: counts that are too small, a policy with memory, a discount outside [0, 1], or a
        level outside (0, 1).

    Source: Tucker et al. 2018, "The Mirage of Action-Dependent Baselines", eq. 4.
    """
    checks.at_least("num_episodes", num_episodes, 4)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("num_actions", num_actions, 2, "a variance over actions")
    checks.at_least("num_rollouts", num_rollouts, 2, "a variance over rollouts")
    checks.at_least("chunk_size", chunk_size, 1)
    intervals.check_level(level)
    checks.choice("state_weighting", state_weighting, estimators.STATE_WEIGHTINGS)
    estimators.check_hyper(hyper)
    check_memoryless(policy, "restarts")
    weights = estimators.time_weights(state_weighting, hyper, horizon)
    size = min(chunk_size, -(-num_episodes // BLOCKS))
    subtracted = (lambda obs: jnp.zeros(())) if baseline is None else baseline

    def sample(key, params, start):
        """Sums over one chunk of episodes, without those beyond the last."""
        visit_key, action_key, rollout_key = jax.random.split(key, 3)
        visits = restarts.visit(
            visit_key, env, env_params, policy, params, weights, num_episodes=size
        )
        inside = start + jnp.arange(size) < num_episodes
        weight = jnp.where(inside, visits.weight, 0)
        draw = lambda key, obs: policy.step(params, (), obs)[1].sample(key)
        draw_all = lambda keys: jax.vmap(draw)(keys, visits.obs)
        actions = jax.vmap(draw_all)(jax.random.split(action_key, (num_actions, size)))

        def follow(key, action):
            return restarts.continuations(
                key,
                env,
                env_params,
                policy,
                params,
                visits,
                action,
                discount=hyper.discount,
                horizon=horizon,
            )

        keys = jax.random.split(rollout_key, (num_actions, num_rollouts))
        returns = jax.vmap(jax.vmap(follow, (0, None)))(keys, actions)  # [M, R, N]
        returns -= jax.vmap(subtracted)(visits.obs)[None, None]
        score = jax.vmap(jax.vmap(_score(policy, params)), (None, 0))(visits.obs, actions)
        return _sums(weight, returns, score)

    program = jax.jit(sample)
    starts = range(0, num_episodes, size)
    blocks: dict[int, Sums] = {}
    for index, start in enumerate(starts):
        chunk = program(jax.random.fold_in(key, index), params, start)
        chunk = Sums(*(np.asarray(x, np.float64) for x in chunk))
        block = index * BLOCKS // len(starts)
        blocks[block] = jax.tree.map(np.add, blocks[block], chunk) if block in blocks else chunk
    return _decomposition(jax.tree.map(lambda *x: np.stack(x), *blocks.values()), level)


def _score(policy, params):
    """grad log pi(a | s), flattened."""

    def of(obs, action):
        log_prob = lambda params: policy.step(params, (), obs)[1].log_prob(action)
        return ravel_pytree(jax.grad(log_prob)(params))[0]

    return of


def _sums(weight, returns, score) -> Sums:
    """Sums of unbiased estimates, from returns `[M, R, N]` and scores `[M, N, D]`."""
    num_actions, num_rollouts, _ = returns.shape
    norm = jnp.sum(score**2, axis=-1)
    mean = jnp.mean(returns, axis=1)
    variance = jnp.var(returns, axis=1, ddof=1)
    terms = mean[..., None] * score
    of_state = jnp.mean(terms, axis=0)
    # Only products of different actions: the square of the sum, minus the squares.
    squares = jnp.sum(terms**2, axis=(0, 2))
    between = num_actions**2 * jnp.sum(of_state**2, axis=-1) - squares
    between /= num_actions * (num_actions - 1)
    return Sums(
        weight=jnp.sum(weight),
        square=jnp.sum(weight**2),
        trajectory=jnp.sum(weight * jnp.mean(variance * norm, axis=0)),
        second=jnp.sum(weight * jnp.mean((mean**2 - variance / num_rollouts) * norm, axis=0)),
        centre=jnp.sum(weight * between),
        mean=weight @ of_state,
        own=jnp.sum(weight**2 * jnp.sum(of_state**2, axis=-1)),
    )


def _decomposition(blocks: Sums, level: float) -> Decomposition:
    total = Sums(*(x.sum(0) for x in blocks))
    left_out = Sums(*(x.sum(0) - x for x in blocks))
    values, influences = _parts(total), intervals.influence(np.stack(_parts(left_out), axis=-1))
    half = intervals.quantile(level, len(influences) - 1) * np.sqrt(np.sum(influences**2, axis=0))
    return Decomposition(
        *(Estimate(float(x), float(x - h), float(x + h)) for x, h in zip(values, half, strict=True))
    )


def _parts(sums: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three traces; only pairs of different episodes enter the squared mean over states."""
    overall = np.sum(sums.mean**2, axis=-1) - sums.own
    overall = overall / (sums.weight**2 - sums.square)
    second, centre = sums.second / sums.weight, sums.centre / sums.weight
    return sums.trajectory / sums.weight, second - centre, centre - overall
