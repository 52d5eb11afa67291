"""Finite Markov decision processes as gymnax environments."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from pgjax import checks

UNLIMITED = int(np.iinfo(np.int32).max)


class MDP(NamedTuple):
    """A finite Markov decision process; an episode ends on entering a terminal state."""

    transition: chex.Array  # [S, A, S] P(s' | s, a)
    reward: chex.Array  # [S, A, S] r(s, a, s')
    initial: chex.Array  # [S] rho(s_0)
    terminal: chex.Array  # [S] bool
    observation: chex.Array | None = None  # [S, *O] what is seen of each state; None: its index


@struct.dataclass
class TabularState(environment.EnvState):
    """The state index, and the steps taken."""

    index: jax.Array


@struct.dataclass
class TabularParams(environment.EnvParams):
    """The arrays of an `MDP`, so that sampler and oracle read the same numbers."""

    transition: jax.Array = struct.field(kw_only=True)
    reward: jax.Array = struct.field(kw_only=True)
    initial: jax.Array = struct.field(kw_only=True)
    terminal: jax.Array = struct.field(kw_only=True)
    observation: jax.Array = struct.field(kw_only=True)


class TabularMDP(environment.Environment[TabularState, TabularParams]):
    """gymnax environment of a finite MDP, `mdp`; its parameters are the arrays of that."""

    def __init__(self, mdp: MDP, name: str = "TabularMDP", max_steps: int | None = None):
        super().__init__()
        self.mdp = mdp
        self._name = name
        self._max_steps = UNLIMITED if max_steps is None else max_steps
        self._seen = _seen(mdp)
        self._num_actions = np.shape(mdp.transition)[1]

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_actions(self) -> int:
        return self._num_actions

    @property
    def default_params(self) -> TabularParams:
        return TabularParams(
            max_steps_in_episode=self._max_steps,
            transition=jnp.asarray(self.mdp.transition, float),
            reward=jnp.asarray(self.mdp.reward, float),
            initial=jnp.asarray(self.mdp.initial, float),
            terminal=jnp.asarray(self.mdp.terminal, bool),
            observation=observations(self.mdp),
        )

    def reset_env(self, key, params):
        index = _draw(key, params.initial)
        state = TabularState(time=jnp.int32(0), index=index)
        return params.observation[index], state

    def step_env(self, key, state, action, params):
        index = _draw(key, params.transition[state.index, action])
        reward = params.reward[state.index, action, index]
        state = TabularState(time=state.time + 1, index=index)
        terminated = self.is_terminated(state, params)
        info = {"discount": self.discount(state, params)}
        return params.observation[index], state, reward, terminated, info

    def is_terminated(self, state, params):
        return params.terminal[state.index]

    def action_space(self, params=None):
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params=None):
        if np.issubdtype(self._seen.dtype, np.integer):
            return spaces.Discrete(int(self._seen.max()) + 1)
        return spaces.Box(-jnp.inf, jnp.inf, self._seen.shape[1:])


def tabular_mdp(mdp: MDP, *, name: str = "TabularMDP", max_steps: int | None = None) -> TabularMDP:
    """The gymnax environment of a finite MDP.

    It observes the int32 state index, or `mdp.observation[state]`: another index where states
    are aliased, or an array of features. It never starts in a terminal state. Its
    `default_params` hold the MDP's arrays.

    Args:
      mdp: transition `[S, A, S]`, reward `[S, A, S]`, initial `[S]`, terminal `[S]`.
      name: shown in messages.
      max_steps: time limit, after which an episode is truncated; none by default.

    Raises:
      ValueError: shapes that do not fit, probabilities that are negative or do not sum to one, an
        episode that could start in a terminal state, or `max_steps` below one.
    """
    check_mdp(mdp)
    if max_steps is not None:
        checks.at_least("max_steps", max_steps, 1)
    return TabularMDP(mdp, name, max_steps)


def _draw(key: jax.Array, probs: jax.Array) -> jax.Array:
    return jax.random.categorical(key, jnp.log(probs)).astype(jnp.int32)


def observations(mdp: MDP) -> jax.Array:
    """What is observed in every state, `[S, *O]`: int32 indices, or features as floats."""
    if mdp.observation is None:
        return jnp.arange(jnp.shape(mdp.terminal)[0], dtype=jnp.int32)
    seen = jnp.asarray(mdp.observation)
    index = seen.ndim == 1 and jnp.issubdtype(seen.dtype, jnp.integer)
    return seen.astype(jnp.int32 if index else float)


def _seen(mdp: MDP) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(observations(mdp))


def check_mdp(mdp: MDP) -> None:
    """Raises `ValueError` for arrays that make no MDP; see `tabular_mdp`."""
    shape = np.shape(mdp.transition)
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"transition has shape {shape}; expected [S, A, S]")
    num_states = shape[0]
    expected = {"reward": shape, "initial": (num_states,), "terminal": (num_states,)}
    for field, wanted in expected.items():
        if np.shape(getattr(mdp, field)) != wanted:
            found = np.shape(getattr(mdp, field))
            raise ValueError(f"{field} has shape {found}; transition {shape} asks for {wanted}")
    seen = _seen(mdp)
    if seen.shape[:1] != (num_states,):
        raise ValueError(
            f"observation has shape {seen.shape}; expected one for each of {num_states} states"
        )
    if np.issubdtype(seen.dtype, np.integer) and np.any(seen < 0):
        raise ValueError("observation has negative indices")
    terminal = np.asarray(mdp.terminal, bool)
    _check_probabilities("initial", np.asarray(mdp.initial))
    _check_probabilities("transition", np.asarray(mdp.transition)[~terminal])
    if not np.all(np.isfinite(np.asarray(mdp.reward)[~terminal])):
        raise ValueError("reward must be finite")
    if np.any(np.asarray(mdp.initial)[terminal] > 0):
        raise ValueError("initial gives probability to a terminal state: no step could be taken")


def _check_probabilities(field: str, probs: np.ndarray) -> None:
    if not np.all(probs >= 0):
        raise ValueError(f"{field} has negative or undefined probabilities")
    worst = np.max(np.abs(probs.sum(-1) - 1), initial=0)
    if worst > 1e-5:
        raise ValueError(f"{field} must sum to one over its last axis; it is off by {worst:.3g}")
