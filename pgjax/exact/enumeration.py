"""Moments by listing every outcome, for estimators that no recursion reaches; tiny MDPs only."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax import checks, estimators
from pgjax.environments import MDP
from pgjax.estimators import Estimator, Hyper, Steps
from pgjax.exact import model
from pgjax.policies import Params, Policy

LARGEST = 1_000_000
"""Largest number of batches that are enumerated."""

CHUNK = 256
"""Number of batches whose gradients are held at a time."""


class Paths(NamedTuple):
    """All M trajectories of an MDP, one per row; steps after the end are zero."""

    state: np.ndarray  # [M, T]
    action: np.ndarray  # [M, T]
    next_state: np.ndarray  # [M, T]
    mask: np.ndarray  # [M, T]


def moments(
    mdp: MDP,
    policy: Policy,
    params: Params,
    estimator: Estimator,
    hyper: Hyper,
    horizon: int,
    num_episodes: int,
    value: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mean `[D]` and trace of an estimator's gradient, over all batches of episodes.

    Batches that differ only in the order of their episodes are counted once.

    Raises:
      ValueError: more than `LARGEST` batches, or an MDP that is traced.
    """
    what = f"baseline {estimator.baseline!r} is a ratio over the batch, not a polynomial of returns"
    if checks.is_traced(mdp):
        raise ValueError(f"mdp is traced, and {what}: it must be known to be enumerated")
    paths = list_paths(mdp, horizon, lambda num: _refuse_many(num, num_episodes, what))
    rows = range(len(paths.mask))
    batches = np.array(list(itertools.combinations_with_replacement(rows, num_episodes)))
    tables = model.build(mdp, policy, params)
    score = model.scores(mdp, policy, params)[paths.state, paths.action]
    score *= paths.mask[..., None]
    steps = _steps(tables, paths, value)
    chance = jnp.prod(_probabilities(tables, paths)[batches], axis=1) * _orders(batches)

    def gradient(rows):
        weight = estimators.psi(estimator, jax.tree.map(lambda x: x[rows], steps), hyper)
        return jnp.einsum("kt,ktd->d", weight, score[rows]) / num_episodes

    def add(total, some):
        batches, chance = some
        gradients = jax.vmap(gradient)(batches)
        mean, square = total
        return (mean + chance @ gradients, square + chance @ jnp.sum(gradients**2, axis=1)), None

    # Some at a time, so that memory does not grow with the number of batches.
    short = -len(batches) % CHUNK
    batches = np.pad(batches, ((0, short), (0, 0))).reshape(-1, CHUNK, num_episodes)
    chance = jnp.pad(chance, (0, short)).reshape(-1, CHUNK)
    blank = (jnp.zeros_like(score[0, 0]), jnp.zeros_like(chance[0, 0]))
    (mean, square), _ = jax.lax.scan(add, blank, (jnp.asarray(batches), chance))
    return mean, square - jnp.sum(mean**2)


def list_paths(mdp: MDP, horizon: int, check: Callable[[int], None] = lambda num: None) -> Paths:
    """All trajectories possible under some policy; `check` is told their number as it grows."""
    terminal = np.asarray(mdp.terminal, bool)
    moves = np.argwhere((np.asarray(mdp.transition) > 0) & ~terminal[:, None, None])
    num_moves = np.bincount(moves[:, 0], minlength=len(terminal))
    first_move = np.cumsum(num_moves) - num_moves
    state = np.flatnonzero(np.asarray(mdp.initial))
    walks = np.full((len(state), 0), -1)  # moves taken, by number; -1 after the end
    for _ in range(horizon):
        # A row whose state is terminal stays as it is; others split into one for each move.
        copies = np.where(terminal[state], 1, num_moves[state])
        check(int(copies.sum()))
        rank = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        state = np.repeat(state, copies)
        move = np.where(terminal[state], -1, first_move[state] + rank)
        walks = np.concatenate([np.repeat(walks, copies, axis=0), move[:, None]], axis=1)
        state = np.where(move < 0, state, moves[move, 2])
    before, action, after = np.moveaxis(np.where(walks[..., None] < 0, 0, moves[walks]), -1, 0)
    return Paths(before, action, after, (walks >= 0).astype(float))


def _refuse_many(num_paths: int, num_episodes: int, what: str) -> None:
    num_batches = math.comb(num_paths + num_episodes - 1, num_episodes)
    if num_batches > LARGEST:
        raise ValueError(
            f"{what}: its moments need every batch, and {num_episodes} episodes of {num_paths} or "
            f"more outcomes make {num_batches:.3g} of them, above {LARGEST:.0e}; choose a smaller "
            f"MDP, horizon or num_episodes"
        )


def _orders(batches: np.ndarray) -> np.ndarray:
    """Number of orders of the rows of each batch, `[B]`: K! over the orders of equal rows."""
    num_episodes = batches.shape[1]
    run = np.ones(len(batches))
    equal = np.ones(len(batches))
    for index in range(1, num_episodes):
        run = np.where(batches[:, index] == batches[:, index - 1], run + 1, 1)
        equal *= run
    return math.factorial(num_episodes) / equal


def _probabilities(tables, paths):
    """The probability of each path, `[M]`."""
    states = (paths.state, paths.action)
    step = tables.probs[states] * tables.transition[*states, paths.next_state]
    return tables.initial[paths.state[:, 0]] * jnp.prod(jnp.where(paths.mask > 0, step, 1), axis=1)


def _steps(tables, paths, value):
    time = np.arange(paths.mask.shape[1])[None]
    reward = tables.reward[paths.state, paths.action, paths.next_state]
    terminated = (tables.live[paths.next_state] == 0) & (paths.mask > 0)
    return Steps(
        reward=reward * paths.mask,
        value=value[time, paths.state],
        next_value=value[time + 1, paths.next_state],
        terminated=terminated,
        boundary=terminated,
        mask=jnp.asarray(paths.mask, reward.dtype),
    )
