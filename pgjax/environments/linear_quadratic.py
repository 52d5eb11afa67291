"""Linear-quadratic-Gaussian systems as gymnax environments."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from pgjax import checks
from pgjax.environments.tabular import UNLIMITED


class LQG(NamedTuple):
    """A linear system with Gaussian noise and quadratic costs; its episodes have no natural end.

    s_0 ~ N(m, P),   s' = A s + B a + w,   w ~ N(0, W),   r = -(s^T Q s + a^T R a)

    The reward is that of the state and the action before the move. S and A are dimensions.
    """

    dynamics: chex.Array  # [S, S] A
    control: chex.Array  # [S, A] B
    noise: chex.Array  # [S, S] W, covariance
    state_cost: chex.Array  # [S, S] Q
    action_cost: chex.Array  # [A, A] R
    initial_mean: chex.Array  # [S] m
    initial_covariance: chex.Array  # [S, S] P


@struct.dataclass
class LinearQuadraticState(environment.EnvState):
    """The state vector, and the steps taken."""

    vector: jax.Array


@struct.dataclass
class LinearQuadraticParams(environment.EnvParams):
    """The arrays of an `LQG`; covariances as square roots, which each step needs."""

    dynamics: jax.Array = struct.field(kw_only=True)
    control: jax.Array = struct.field(kw_only=True)
    noise_root: jax.Array = struct.field(kw_only=True)
    state_cost: jax.Array = struct.field(kw_only=True)
    action_cost: jax.Array = struct.field(kw_only=True)
    initial_mean: jax.Array = struct.field(kw_only=True)
    initial_root: jax.Array = struct.field(kw_only=True)


class LinearQuadratic(environment.Environment[LinearQuadraticState, LinearQuadraticParams]):
    """gymnax environment of a linear-quadratic-Gaussian system, observed whole."""

    _supports_transition_gradients = True

    def __init__(self, system: LQG, name: str = "LinearQuadratic", max_steps: int | None = None):
        super().__init__()
        self.system = system
        self._name = name
        self._max_steps = UNLIMITED if max_steps is None else max_steps
        self._state_size, self._action_size = np.shape(system.control)

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_actions(self) -> int:
        return self._action_size

    @property
    def default_params(self) -> LinearQuadraticParams:
        return LinearQuadraticParams(
            max_steps_in_episode=self._max_steps,
            dynamics=jnp.asarray(self.system.dynamics, float),
            control=jnp.asarray(self.system.control, float),
            noise_root=jnp.asarray(_root(self.system.noise), float),
            state_cost=jnp.asarray(self.system.state_cost, float),
            action_cost=jnp.asarray(self.system.action_cost, float),
            initial_mean=jnp.asarray(self.system.initial_mean, float),
            initial_root=jnp.asarray(_root(self.system.initial_covariance), float),
        )

    def reset_env(self, key, params):
        vector = params.initial_mean + _draw(key, params.initial_root)
        return vector, LinearQuadraticState(time=jnp.int32(0), vector=vector)

    def step_env(self, key, state, action, params):
        before = state.vector
        cost = before @ params.state_cost @ before + action @ params.action_cost @ action
        vector = params.dynamics @ before + params.control @ action + _draw(key, params.noise_root)
        state = LinearQuadraticState(time=state.time + 1, vector=vector)
        obs, state = self._apply_transition_gradient_policy(vector, state)
        terminated = self.is_terminated(state, params)
        return obs, state, -cost, terminated, {"discount": self.discount(state, params)}

    def is_terminated(self, state, params):
        return jnp.bool_(False)

    def action_space(self, params=None):
        return spaces.Box(-jnp.inf, jnp.inf, (self._action_size,))

    def observation_space(self, params=None):
        return spaces.Box(-jnp.inf, jnp.inf, (self._state_size,))


def linear_quadratic(
    system: LQG, *, name: str = "LinearQuadratic", max_steps: int | None = None
) -> LinearQuadratic:
    """The gymnax environment of a linear-quadratic-Gaussian system.

    It observes the state, takes any action and never terminates. Its `default_params` hold the
    system's arrays, its `system` the system itself.

    Args:
      system: matrices and covariances; see `LQG`.
      name: shown in messages.
      max_steps: time limit, after which an episode is truncated; none by default.

    Raises:
      ValueError: shapes that do not fit, numbers that are not finite, costs that are not
        symmetric, covariances that are not positive semi-definite, or `max_steps` below one.
    """
    check_lqg(system)
    if max_steps is not None:
        checks.at_least("max_steps", max_steps, 1)
    return LinearQuadratic(system, name, max_steps)


def point_mass(*, time_step: float = 0.05, max_steps: int = 100) -> LinearQuadratic:
    """A unit mass in the plane, pushed to the origin by a force in a random wind.

    The state is position and velocity, `[4]`. The force, and the wind, of unit variance in each
    component, are constant during a step. The costs are
    |position|^2 + 0.1 |velocity|^2 + 0.1 |force|^2 per unit of time.

    Args:
      time_step: duration of a step.
      max_steps: time limit.

    Raises:
      ValueError: `time_step` below zero, or `max_steps` below one.
    """
    checks.within("time_step", time_step, 0, float("inf"))
    identity, zero = np.eye(2), np.zeros((2, 2))
    control = np.concatenate([time_step**2 / 2 * identity, time_step * identity])
    system = LQG(
        dynamics=np.block([[identity, time_step * identity], [zero, identity]]),
        control=control,
        noise=control @ control.T,
        state_cost=time_step * np.diag([1.0, 1.0, 0.1, 0.1]),
        action_cost=time_step * 0.1 * identity,
        initial_mean=np.array([1.0, -1.0, 0.0, 0.0]),
        initial_covariance=0.01 * np.eye(4),
    )
    return linear_quadratic(system, max_steps=max_steps)


def check_lqg(system: LQG) -> None:
    """Refuses what is not a linear-quadratic-Gaussian system, as `linear_quadratic` says."""
    shape = np.shape(system.control)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"control has shape {shape}; expected [S, A]")
    state, action = shape
    square = (state, state)
    wanted = dict.fromkeys(LQG._fields, square)
    wanted |= {"control": shape, "action_cost": (action, action), "initial_mean": (state,)}
    for field, expected in wanted.items():
        found = np.shape(getattr(system, field))
        if found != expected:
            raise ValueError(f"{field} has shape {found}; control {shape} asks for {expected}")
        if not np.all(np.isfinite(getattr(system, field))):
            raise ValueError(f"{field} must be finite")
    matrices = {field: np.asarray(x, np.float64) for field, x in system._asdict().items()}
    for field in ("noise", "initial_covariance", "state_cost", "action_cost"):
        _check_symmetric(field, matrices[field])
    for field in ("noise", "initial_covariance"):
        _check_covariance(field, matrices[field])


def _check_symmetric(field: str, matrix: np.ndarray) -> None:
    worst = np.max(np.abs(matrix - matrix.T))
    if worst > 1e-6 * np.max(np.abs(matrix)):
        raise ValueError(f"{field} must be symmetric; it is off by {worst:.3g}")


def _check_covariance(field: str, matrix: np.ndarray) -> None:
    least = np.min(np.linalg.eigvalsh(matrix))
    if least < -1e-6 * np.max(np.abs(matrix)):
        raise ValueError(f"{field} must be positive semi-definite; an eigenvalue is {least:.3g}")


def _root(covariance: chex.Array) -> np.ndarray:
    """The symmetric square root; a Cholesky factor would need full rank."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _draw(key: jax.Array, root: jax.Array) -> jax.Array:
    return root @ jax.random.normal(key, root.shape[:1], root.dtype)
