"""A finite MDP under a policy, as the tables every exact computation starts from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse import csgraph, csr_array

from pgjax import checks
from pgjax.environments.tabular import MDP, check_mdp, observations
from pgjax.estimators import Hyper
from pgjax.policies import Params, Policy, check_memoryless


class Model(NamedTuple):
    """What a policy makes of an MDP; rows of terminal states are zero everywhere."""

    probs: jax.Array  # [S, A] pi(a | s)
    transition: jax.Array  # [S, A, S] P(s' | s, a)
    reward: jax.Array  # [S, A, S] r(s, a, s'), entering a terminal state included
    initial: jax.Array  # [S]
    live: jax.Array  # [S] one where the episode goes on, zero in terminal states

    @property
    def move(self) -> jax.Array:
        """Probability of moving to each live state, `[S, S]`; rows lack that of ending."""
        return jnp.einsum("sa,sak->sk", self.probs, self.transition) * self.live[None]

    @property
    def mean_reward(self) -> jax.Array:
        """Expected reward of each action, `[S, A]`."""
        return jnp.sum(self.transition * self.reward, axis=-1)

    @property
    def policy_reward(self) -> jax.Array:
        """Expected reward of a step, `[S]`."""
        return jnp.sum(self.probs * self.mean_reward, axis=-1)

    def expect_next(self, x: jax.Array) -> jax.Array:
        """E[x(s') | s, a] over the live next states: `[S, ...]` -> `[S, A, ...]`."""
        return jnp.tensordot(self.transition * self.live[None, None], x, axes=1)


def build(mdp: MDP, policy: Policy, params: Params) -> Model:
    """The tables of a policy in an MDP, differentiable in the policy's parameters.

    Raises:
      ValueError: an invalid MDP, a policy with memory, or one that does not fit the MDP.
    """
    check(mdp, policy)
    check_fit(mdp, policy, params)
    live = ~jnp.asarray(mdp.terminal, bool)
    dtype = jnp.result_type(float)
    blank = lambda x: jnp.where(live[:, None, None], jnp.asarray(x, dtype), 0)
    return Model(
        probs=action_probs(mdp, policy, params).astype(dtype),
        transition=blank(mdp.transition),
        reward=blank(mdp.reward),
        initial=jnp.asarray(mdp.initial, dtype),
        live=live.astype(dtype),
    )


def check(mdp: MDP, policy: Policy) -> None:
    """Refuses what can be refused before the parameters are known."""
    if not checks.is_traced(mdp):
        check_mdp(mdp)
    check_memoryless(policy, "exact values")


def check_fit(mdp: MDP, policy: Policy, params: Params) -> None:
    """Refuses a policy over other actions or observations, where its parameters are known."""
    probs = _known_probs(mdp, policy, params)
    if probs is None:
        return
    probs = probs[~np.asarray(mdp.terminal, bool)]
    total = probs.sum(-1)
    wrong = ~(np.abs(total - 1) <= 1e-4)
    if wrong.any():
        raise ValueError(
            f"policy does not fit the MDP: the probabilities of its {probs.shape[1]} actions sum "
            f"to {total[wrong][0]:.4g}"
        )


def check_objective(mdp: MDP, policy: Policy, hyper: Hyper, horizon: int | None) -> None:
    """Refuses what `check`, `check_discount` and `check_horizon` do."""
    check(mdp, policy)
    check_discount(hyper)
    check_horizon(horizon)


def action_probs(mdp: MDP, policy: Policy, params: Params) -> jax.Array:
    """pi(a | s), `[S, A]`; zero in terminal states."""
    probs = jnp.exp(log_probs(mdp, policy, params))
    return jnp.where(jnp.asarray(mdp.terminal, bool)[:, None], 0, probs)


def log_probs(mdp: MDP, policy: Policy, params: Params) -> jax.Array:
    """log pi(a | s) of every action in every state, `[S, A]`, terminal states included."""
    return _log_probs(policy, precise(params), observations(mdp), jnp.shape(mdp.transition)[1])


def precise(params: Params) -> Params:
    """Parameters in JAX's widest floats, whatever their own dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), params)


def scores(mdp: MDP, policy: Policy, params: Params) -> jax.Array:
    """grad log pi(a | s) in the flattened parameters, `[S, A, D]`; zero where pi(a | s) is.

    All S A D numbers are held in memory.
    """
    flat, unravel = ravel_pytree(precise(params))

    def of_state(obs):
        log_prob = lambda flat: _log_probs(policy, unravel(flat), obs[None], num_actions)[0]
        return log_prob(flat), jax.jacrev(log_prob)(flat)

    num_actions = jnp.shape(mdp.transition)[1]
    log_prob, score = jax.vmap(of_state)(observations(mdp))
    visited = (log_prob > -jnp.inf) & ~jnp.asarray(mdp.terminal, bool)[:, None]
    return jnp.where(visited[..., None], score, 0)


def check_discount(hyper: Hyper) -> None:
    """Refuses a discount outside [0, 1]."""
    checks.within("discount", hyper.discount, 0, 1)


def is_discounted(hyper: Hyper) -> bool:
    """Whether the discount is below one, or not known before the program runs."""
    return checks.is_traced(hyper.discount) or float(hyper.discount) < 1


def check_horizon(horizon: int | None) -> None:
    """Refuses a horizon that is neither None nor a whole number above zero."""
    if horizon is not None:
        checks.at_least("horizon", horizon, 1)


def moves(mdp: MDP, policy: Policy, params: Params) -> np.ndarray | None:
    """Whether the policy can move from each state to each other in one step, `[S, S]` bool.

    Every action counts as possible where its probability is not known; None where the MDP is not.
    """
    if checks.is_traced(mdp):
        return None
    possible = np.asarray(mdp.transition) > 0
    probs = _known_probs(mdp, policy, params)
    if probs is not None:
        possible &= (probs > 0)[..., None]
    return np.any(possible, axis=1) & ~np.asarray(mdp.terminal, bool)[:, None]


def visited(mdp: MDP) -> np.ndarray:
    """States that some policy can meet and act in, `[S]` bool."""
    terminal = np.asarray(mdp.terminal, bool)
    possible = np.any(np.asarray(mdp.transition) > 0, axis=1) & ~terminal[:, None]
    return leads_to(possible.T, np.asarray(mdp.initial) > 0) & ~terminal


def leads_to(possible: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """States from which some target can be reached, the targets themselves included, `[S]` bool."""
    num_states = len(targets)
    graph = np.zeros((num_states + 1, num_states + 1), bool)  # one more node, before all targets
    graph[:-1, :-1] = possible.T
    graph[-1, :-1] = targets
    found = csgraph.breadth_first_order(csr_array(graph), num_states, return_predecessors=False)
    return np.isin(np.arange(num_states), found)


def not_communicating(possible: np.ndarray) -> np.ndarray:
    """States that do not both lead to state 0 and come from it, `[S]` bool."""
    first = np.arange(len(possible)) == 0
    return ~(leads_to(possible, first) & leads_to(possible.T, first))


def _known_probs(mdp, policy, params) -> np.ndarray | None:
    """pi(a | s), `[S, A]`; None if JAX traces the MDP, the parameters or what the policy holds."""
    if checks.is_traced((mdp, params)):
        return None
    # Known arrays stay known even where the program around them is being traced.
    with jax.ensure_compile_time_eval():
        found = log_probs(mdp, policy, params)
    return None if checks.is_traced(found) else np.exp(found)


def _log_probs(policy, params, obs, num_actions):
    """log pi(a | o) of every action at each of B observations, `[B, A]`."""
    boundary = jnp.zeros(len(obs), bool)
    distribution = policy.unroll(params, policy.initial_state(), obs, boundary)
    if distribution.support is not None:
        raise ValueError(
            f"policy gives {type(distribution).__name__}; a finite MDP takes discrete actions"
        )
    return jax.vmap(distribution.log_prob, out_axes=-1)(jnp.arange(num_actions))
