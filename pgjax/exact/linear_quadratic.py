"""Values, gradients and the variance of estimators, exactly, on linear-quadratic-Gaussian systems.

For policies whose action is normal, with a mean affine in the state and a scale that does not see
it. What is affine in s is then linear in x = [s, 1], and what is quadratic is a form in it: values
and variances are matrices F, standing for x' F x, and every step of a recursion is one of two maps,
the mean and the variance of a form in a normal vector.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import block_diag

from pgjax import checks
from pgjax.distributions import Independent, Normal
from pgjax.environments import LQG, check_lqg
from pgjax.estimators import Hyper
from pgjax.exact import model
from pgjax.policies import Params, Policy
from pgjax.score import GradientFn

BASELINES = ("none", "value")
"""Baselines `variance_decomposition` knows: nothing, and V_t(s)."""

STATE_NODES, ACTION_NODES = 4, 5
MAX_NODES = 2**20


class Quadratic(NamedTuple):
    """The function -(x' P x + p' x + c) of a vector; call it, or vmap it over leading axes."""

    quadratic: jax.Array  # [..., D, D] P
    linear: jax.Array  # [..., D] p
    constant: jax.Array  # [...] c

    def __call__(self, x: jax.Array) -> jax.Array:
        return -(x @ self.quadratic @ x + self.linear @ x + self.constant)


class Values(NamedTuple):
    """V and Q as functions of s and of [s, a]; without the time axis for an infinite horizon."""

    state: Quadratic  # [T + 1] V_t(s), the last zero
    action: Quadratic  # [T] Q_t([s, a])


class Decomposition(NamedTuple):
    """Where the variance of the score-function estimate of each step comes from."""

    trajectory: jax.Array  # [T] what follows the action
    action: jax.Array  # [T] the action, given the state
    state: jax.Array  # [T] the state


class _Loop(NamedTuple):
    """A system and a policy, in terms of x = [s, 1] and z = [s, a, 1]."""

    policy: jax.Array  # [S+A+1, S+1] mean of z given x
    action_noise: jax.Array  # [S+A+1, S+A+1] its covariance
    dynamics: jax.Array  # [S+1, S+A+1] mean of the next x given z
    state_noise: jax.Array  # [S+1, S+1] its covariance
    cost: jax.Array  # [S+A+1, S+A+1] minus the reward, a form in z
    initial_mean: jax.Array  # [S+1]
    initial_covariance: jax.Array  # [S+1, S+1]

    @property
    def closed(self) -> jax.Array:
        """Mean of the next x given x, `[S+1, S+1]`."""
        return self.dynamics @ self.policy

    @property
    def noise(self) -> jax.Array:
        """Covariance of the next x given x, `[S+1, S+1]`."""
        return self.dynamics @ self.action_noise @ self.dynamics.T + self.state_noise


def expected_return(
    system: LQG, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> jax.Array:
    """The objective: J_gamma = E[sum_{t<T} gamma^t r_t] = E[V_0(s_0)].

    Differentiable in `params`, `hyper.discount` and `system`, any number of times.

    Args:
      system: dynamics, noise, costs and the law of the first state.
      policy: a policy without memory, normal, with a mean affine in the state and a scale that
        does not see it.
      params: its parameters.
      hyper: only the discount matters.
      horizon: steps T of an episode; None for no limit.

    Returns:
      A scalar. For an infinite horizon on which values diverge it is NaN where that is only known
      inside compiled code.

    Raises:
      ValueError: arrays that make no system, another kind of policy, a discount outside [0, 1], a
        horizon below one, or an infinite horizon on which values diverge: undiscounted, or with a
        spectral radius of sqrt(gamma) (A + B K), K the gain of the policy, of one or more.
    """
    _check(system, policy, hyper, horizon)
    _check_params(system, policy, params, hyper.discount if horizon is None else None)
    return _expected_return(_loop(system, policy, params), hyper.discount, horizon)


def values(
    system: LQG, policy: Policy, params: Params, hyper: Hyper, *, horizon: int | None
) -> Values:
    """V and Q of a policy, as quadratic functions.

        Q_t(s, a) = r(s, a) + gamma E[V_{t+1}(s') | s, a],   V_t(s) = E_{a ~ pi}[Q_t(s, a)]

    With V_T = 0, or the fixed point of both for an infinite horizon. Arguments and errors as in
    `expected_return`.
    """
    _check(system, policy, hyper, horizon)
    _check_params(system, policy, params, hyper.discount if horizon is None else None)
    state, action = _value_forms(_loop(system, policy, params), hyper.discount, horizon)
    return Values(_quadratic(state), _quadratic(action))


def average_reward(system: LQG, policy: Policy, params: Params) -> jax.Array:
    """Reward of a step in the long run: eta = E[r], s of the stationary law, a ~ pi(. | s).

    Differentiable in `params` and `system`. NaN where the loop is unstable and that is only known
    inside compiled code.

    Raises:
      ValueError: arrays that make no system, another kind of policy than `expected_return` takes,
        or a spectral radius of A + B K, K the gain of the policy, of one or more.
    """
    _check(system, policy)
    _check_params(system, policy, params, rate=1.0)
    return _average_reward(_loop(system, policy, params))


def exact_gradient(system: LQG, policy: Policy, hyper: Hyper, *, horizon: int | None) -> GradientFn:
    """grad J_gamma, by differentiating the value recursion; arguments as in `expected_return`.

    Returns:
      A `GradientFn` that ignores its key; metrics: `expected_return`, the objective.

    Raises:
      ValueError: as `expected_return`; for what depends on the parameters, when it is called.
    """
    _check(system, policy, hyper, horizon)
    rate = hyper.discount if horizon is None else None
    objective = lambda loop: _expected_return(loop, hyper.discount, horizon)
    return _ascend(system, policy, objective, "expected_return", rate)


def average_reward_gradient(system: LQG, policy: Policy) -> GradientFn:
    """grad eta, the gradient of the average reward; metrics: `average_reward`, and its errors."""
    _check(system, policy)
    return _ascend(system, policy, _average_reward, "average_reward", rate=1.0)


def variance_decomposition(
    system: LQG,
    policy: Policy,
    params: Params,
    hyper: Hyper,
    *,
    horizon: int,
    baseline: str = "none",
    chunk_size: int = 16384,
) -> Decomposition:
    """The variance of each step's estimate, by the law of total variance.

        g_t          = (G_t - b_t(s_t)) grad log pi(a_t | s_t),   G_t = sum_{k>=t} gamma^(k-t) r_k
        trajectory_t = E[Var(G_t | s_t, a_t) |grad log pi|^2]
        action_t     = E_{s_t} tr Var_{a_t}((Q_t(s_t, a_t) - b_t(s_t)) grad log pi)
        state_t      = tr Var_{s_t}(E_{a_t}[Q_t(s_t, a_t) grad log pi])

    The three sum to tr Var(g_t). The state weighting is left to the caller: with g_t weighted by
    w_t, each counts w_t^2 times. The variance of sum_t w_t g_t has the covariances between steps
    besides. The gradient is that in all of the policy's parameters.

    The law of s_t, Q_t and Var(G_t | s, a) have closed forms; the means over s_t and a_t are taken
    by Gauss-Hermite quadrature with 4 nodes a state and 5 an action dimension, exact to degrees 7
    and 9. That is exact: the score has degree 1 in the state and 2 in the noise of the action, Q_t
    and the variance degree 2 in both, so no mean is of more than degree 6 in s_t or 8 in a_t.

    Args:
      system: as in `expected_return`.
      policy: as in `expected_return`.
      params: its parameters.
      hyper: only the discount matters.
      horizon: steps T of an episode.
      baseline: `none` or `value`, which is the exact V_t(s).
      chunk_size: nodes whose scores are held at a time.

    Returns:
      Three arrays `[T]`.

    Raises:
      ValueError: as `expected_return`, an unknown baseline, or a system of so many dimensions
        that quadrature would take more than 2^20 nodes a step.

    Source: Tucker et al. 2018, "The Mirage of Action-Dependent Baselines".
    """
    checks.choice("baseline", baseline, BASELINES)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("chunk_size", chunk_size, 1)
    _check(system, policy, hyper, horizon)
    _check_params(system, policy, params)
    _check_dimensions(system)
    loop = _loop(system, policy, params)
    state_forms, action_forms = _value_forms(loop, hyper.discount, horizon)
    variances = _return_variances(loop, hyper.discount, state_forms, action_forms)
    mean, covariance = _state_laws(loop, horizon)
    at_step = _step_decomposition(loop, policy, params, baseline, chunk_size)
    steps = (mean, _root(covariance), state_forms[:-1], action_forms, variances)
    return jax.lax.map(lambda step: at_step(*step), steps)


def _normal(policy: Policy, params: Params, obs: jax.Array, size: int) -> Normal:
    """The normal law of the `size` action components at an observation.

    Raises:
      ValueError: the law is another.
    """
    _, distribution = policy.step(params, policy.initial_state(), obs)
    normal = distribution
    while isinstance(normal, Independent):
        normal = normal.distribution
    if not isinstance(normal, Normal):
        raise ValueError(
            f"policy gives {type(normal).__name__}; a linear-quadratic system has exact values "
            f"under Normal actions only"
        )
    if distribution.batch_shape != () or normal.loc.shape != (size,):
        raise ValueError(
            f"policy gives actions of shape {normal.loc.shape} and log-probabilities of shape "
            f"{distribution.batch_shape}; the system takes ({size},) and ()"
        )
    return normal


def _loop(system: LQG, policy: Policy, params: Params) -> _Loop:
    system = jax.tree.map(lambda x: jnp.asarray(x, float), system)
    state, action = np.shape(system.control)
    origin = jnp.zeros(state)
    mean = lambda obs: _normal(policy, params, obs, action).loc
    law = _normal(policy, params, origin, action)
    gain = jax.jacfwd(mean)(origin)
    one, to_one = jnp.ones((1, 1)), jnp.zeros((1, state))
    return _Loop(
        policy=jnp.block(
            [[jnp.eye(state), to_one.T], [gain, law.loc[:, None]], [to_one, one]],
        ),
        action_noise=block_diag(jnp.zeros((state, state)), jnp.diag(law.scale**2), 0 * one),
        dynamics=block_diag(jnp.concatenate([system.dynamics, system.control], axis=1), one),
        state_noise=block_diag(system.noise, 0 * one),
        cost=block_diag(system.state_cost, system.action_cost, 0 * one),
        initial_mean=jnp.append(system.initial_mean, 1.0),
        initial_covariance=block_diag(system.initial_covariance, 0 * one),
    )


def _mean_form(form: jax.Array, linear: jax.Array, noise: jax.Array) -> jax.Array:
    """E[y' F y] as a form in x, where y ~ N(L x, noise)."""
    return _add_constant(linear.T @ form @ linear, jnp.trace(form @ noise))


def _variance_form(form: jax.Array, linear: jax.Array, noise: jax.Array) -> jax.Array:
    """Var(y' F y) = 4 x' L' F N F L x + 2 tr(F N F N) as a form in x, where y ~ N(L x, N)."""
    spread = form @ noise @ form
    return _add_constant(4 * linear.T @ spread @ linear, 2 * jnp.trace(spread @ noise))


def _add_constant(form: jax.Array, constant: jax.Array) -> jax.Array:
    return form.at[-1, -1].add(constant)


def _quadratic(form: jax.Array) -> Quadratic:
    return Quadratic(form[..., :-1, :-1], 2 * form[..., :-1, -1], form[..., -1, -1])


def _value_forms(loop: _Loop, discount: Any, horizon: int | None) -> tuple[jax.Array, jax.Array]:
    """Minus V and Q as forms in x and z: `[T + 1, S+1, S+1]` and `[T, S+A+1, S+A+1]`."""
    if horizon is None:
        state = _fixed_point(loop, discount)
        return state, _action_form(loop, discount, state)

    def back(state, _):
        action = _action_form(loop, discount, state)
        state = _state_form(loop, action)
        return state, (state, action)

    end = jnp.zeros_like(loop.closed)
    _, (state, action) = jax.lax.scan(back, end, length=horizon)
    return jnp.concatenate([state[::-1], end[None]]), action[::-1]


def _action_form(loop: _Loop, discount: Any, state: jax.Array) -> jax.Array:
    return loop.cost + discount * _mean_form(state, loop.dynamics, loop.state_noise)


def _state_form(loop: _Loop, action: jax.Array) -> jax.Array:
    return _mean_form(action, loop.policy, loop.action_noise)


def _fixed_point(loop: _Loop, discount: Any) -> jax.Array:
    """Minus V of the infinite horizon: a Lyapunov equation, then what the noise adds for ever."""
    cost = loop.policy.T @ loop.cost @ loop.policy
    form = _lyapunov(loop.closed.T, cost, discount)
    noise = _state_form(loop, _action_form(loop, discount, form))[-1, -1] - form[-1, -1]
    stable = _is_stable(loop.closed[:-1, :-1], discount)
    return _nan_unless(stable, _add_constant(form, noise / (1 - discount)))


def _expected_return(loop: _Loop, discount: Any, horizon: int | None) -> jax.Array:
    state, _ = _value_forms(loop, discount, horizon)
    first = state if horizon is None else state[0]
    return -_expectation(first, loop.initial_mean, loop.initial_covariance)


def _average_reward(loop: _Loop) -> jax.Array:
    matrix, offset = loop.closed[:-1, :-1], loop.closed[:-1, -1]
    mean = jnp.linalg.solve(jnp.eye(len(offset), dtype=offset.dtype) - matrix, offset)
    covariance = block_diag(_lyapunov(matrix, loop.noise[:-1, :-1]), jnp.zeros((1, 1)))
    cost = _expectation(_state_form(loop, loop.cost), jnp.append(mean, 1.0), covariance)
    return _nan_unless(_is_stable(matrix), -cost)


def _expectation(form: jax.Array, mean: jax.Array, covariance: jax.Array) -> jax.Array:
    return mean @ form @ mean + jnp.trace(form @ covariance)


def _lyapunov(matrix: jax.Array, forcing: jax.Array, rate: Any = 1.0) -> jax.Array:
    """The solution of X = rate M X M' + C, by one linear system of D^2 unknowns."""
    system = jnp.eye(matrix.size, dtype=matrix.dtype) - rate * jnp.kron(matrix, matrix)
    return jnp.linalg.solve(system, forcing.ravel()).reshape(forcing.shape)


def _is_stable(matrix: jax.Array, rate: Any = 1.0) -> jax.Array:
    """Whether rate^(1/2) M has a spectral radius below one, `[]`.

    By Lyapunov's theorem that is when X = rate M X M' + I has a positive definite solution, whose
    eigenvalues, those of a symmetric matrix, JAX finds on every backend.
    """
    matrix, rate = jax.lax.stop_gradient((matrix, rate))
    solution = _lyapunov(matrix, jnp.eye(len(matrix), dtype=matrix.dtype), rate)
    return jnp.all(jnp.linalg.eigvalsh(solution) > 0)


def _nan_unless(condition: jax.Array, x: jax.Array) -> jax.Array:
    # By a factor: `where` would give the derivatives zeros.
    return x * jnp.where(condition, 1.0, jnp.nan)


def _ascend(system: LQG, policy: Policy, objective: Any, name: str, rate: Any) -> GradientFn:
    def gradient_fn(key, params):
        _check_params(system, policy, params, rate)
        value, gradient = jax.value_and_grad(
            lambda params: objective(_loop(system, policy, params))
        )(params)
        return gradient, {name: value}

    return gradient_fn


def _return_variances(
    loop: _Loop, discount: Any, state_forms: jax.Array, action_forms: jax.Array
) -> jax.Array:
    """Var(G_t | s, a) as forms in z, `[T, S+A+1, S+A+1]`.

    Var(G_t | s, a) = gamma^2 (E[Var(G_{t+1} | s')] + Var(V_{t+1}(s')))
    Var(G_t | s)    = E[Var(G_t | s, a)] + Var(Q_t(s, a))
    """

    def back(later, forms):  # later: Var(G_{t+1} | s), a form in x
        next_state, action = forms
        mean = _mean_form(later, loop.dynamics, loop.state_noise)
        spread = _variance_form(next_state, loop.dynamics, loop.state_noise)
        variance = discount**2 * (mean + spread)
        now = _state_form(loop, variance)
        now = now + _variance_form(action, loop.policy, loop.action_noise)
        return now, variance

    end, forms = jnp.zeros_like(loop.closed), (state_forms[1:], action_forms)
    return jax.lax.scan(back, end, forms, reverse=True)[1]


def _state_laws(loop: _Loop, horizon: int) -> tuple[jax.Array, jax.Array]:
    """Means `[T, S+1]` and covariances `[T, S+1, S+1]` of x_t."""

    def forward(law, _):
        mean, covariance = law
        closed = loop.closed
        return (closed @ mean, closed @ covariance @ closed.T + loop.noise), law

    first = (loop.initial_mean, loop.initial_covariance)
    return jax.lax.scan(forward, first, length=horizon)[1]


def _step_decomposition(loop, policy, params, baseline, chunk_size):
    """`(mean, root, state_form, action_form, variance_form) -> Decomposition` of one step."""
    size = len(loop.closed) - 1
    num_actions = len(loop.cost) - size - 1
    flat, unravel = ravel_pytree(params)
    root = jnp.sqrt(loop.action_noise)  # diagonal
    action_nodes, action_weights = _gauss_hermite(ACTION_NODES, num_actions)
    action_nodes = jnp.pad(action_nodes, ((0, 0), (size, 1)))
    state_nodes, state_weights = _gauss_hermite(STATE_NODES, size)
    state_nodes = jnp.pad(state_nodes, ((0, 0), (0, 1)))

    def score(z):
        obs, action = z[:size], z[size:-1]
        step = lambda flat: policy.step(unravel(flat), policy.initial_state(), obs)
        return jax.grad(lambda flat: step(flat)[1].log_prob(action))(flat)

    def at_step(mean, state_root, state_form, action_form, variance_form):
        def at_state(node):
            x = mean + state_root @ node
            z = (loop.policy @ x)[None] + action_nodes @ root
            scores = jax.vmap(score)(z)
            value = -(x @ state_form @ x)
            advantage = -_at(action_form, z) - value
            credit = advantage + value if baseline == "none" else advantage
            # A baseline leaves the mean over actions as it is; the advantage cancels least.
            drift = (action_weights * advantage) @ scores
            spread = jnp.sum((credit[:, None] * scores - drift[None]) ** 2, axis=1)
            noise = _at(variance_form, z) * jnp.sum(scores**2, axis=1)
            return action_weights @ noise, action_weights @ spread, drift

        batch = max(1, chunk_size // len(action_nodes))
        trajectory, action, drift = jax.lax.map(at_state, state_nodes, batch_size=batch)
        centred = drift - (state_weights @ drift)[None]
        state = state_weights @ jnp.sum(centred**2, axis=1)
        return Decomposition(state_weights @ trajectory, state_weights @ action, state)

    return at_step


def _at(form: jax.Array, points: jax.Array) -> jax.Array:
    """The value of a form at each of `[M, D]` points."""
    return jnp.sum((points @ form) * points, axis=1)


def _gauss_hermite(num: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Nodes `[num^size, size]` and weights of a tensor rule for a standard normal vector."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    points = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), axis=-1).reshape(-1, size)
    products = np.stack(np.meshgrid(*[weights] * size, indexing="ij"), axis=-1).prod(-1).ravel()
    return jnp.asarray(points, float), jnp.asarray(products / products.sum(), float)


def _root(covariance: jax.Array) -> jax.Array:
    """Symmetric square roots of `[..., D, D]` covariances, which may be singular."""
    variances, vectors = jnp.linalg.eigh(covariance)
    scaled = vectors * jnp.sqrt(jnp.maximum(variances, 0))[..., None, :]
    return scaled @ jnp.swapaxes(vectors, -1, -2)


def _check(
    system: LQG, policy: Policy, hyper: Hyper | None = None, horizon: int | None = None
) -> None:
    """Refuses what can be refused before parameters are known; without `hyper`, no horizon."""
    if not checks.is_traced(system):
        check_lqg(system)
    if jax.tree.leaves(policy.initial_state()):
        raise ValueError("policy has a memory: exact values are for policies without one")
    if hyper is None:
        return
    model.check_discount(hyper)
    model.check_horizon(horizon)
    if horizon is None and not model.is_discounted(hyper):
        raise ValueError(
            "horizon=None with discount=1: J diverges, because no episode ends; give a horizon or "
            "a discount below 1, or use average_reward"
        )


def _check_params(system: LQG, policy: Policy, params: Params, rate: Any = None) -> None:
    """Refuses a policy that is not linear-Gaussian and, given a rate, an unstable loop.

    What only compiled code will know passes, and so does what is not finite.
    """
    flat, unravel = ravel_pytree(params)
    # The mean may happen to be affine at these parameters; gradients ask for it nearby too.
    nearby = unravel(flat + np.random.default_rng(0).normal(size=flat.shape).astype(flat.dtype))
    for near in (params, nearby):
        if not _is_linear_gaussian(system, policy, near):
            raise ValueError(
                "policy is not linear-Gaussian: its mean must be affine in the observation and "
                "its scale must not see it"
            )
    if rate is None:
        return
    matrix = _loop(system, policy, params).closed[:-1, :-1]
    if checks.is_traced((matrix, rate)) or not np.all(np.isfinite(matrix)):
        return
    radius = np.max(np.abs(np.linalg.eigvals(np.asarray(matrix)))) * np.sqrt(np.max(rate))
    if radius >= 1:
        raise ValueError(
            f"the loop is unstable: sqrt(discount) (A + B K) has a spectral radius of "
            f"{radius:.4g}, and without a horizon it must be below 1"
        )


def _is_linear_gaussian(system: LQG, policy: Policy, params: Params) -> bool:
    """Whether the policy is, as far as a few points tell; true where nothing is known."""
    state, action = np.shape(system.control)
    points = 10 * np.random.default_rng(0).normal(size=(4, state))
    points = jnp.asarray(np.concatenate([np.zeros((1, state)), np.eye(state), points]), float)
    loc, scale = jax.vmap(lambda obs: tuple(_normal(policy, params, obs, action)))(points)
    if checks.is_traced((loc, scale)):
        return True
    loc, scale, points = np.asarray(loc), np.asarray(scale), np.asarray(points)
    affine = loc[0] + points @ (loc[1 : state + 1] - loc[0])
    tolerance = np.sqrt(np.finfo(loc.dtype).eps)
    bent = np.max(np.abs(affine - loc)) > tolerance * np.max(np.abs(loc))
    uneven = np.max(np.abs(scale - scale[0])) > tolerance * np.max(np.abs(scale))
    return not (bent or uneven)


def _check_dimensions(system: LQG) -> None:
    state, action = np.shape(system.control)
    num_nodes = STATE_NODES**state * ACTION_NODES**action
    if num_nodes > MAX_NODES:
        raise ValueError(
            f"a system of {state} state and {action} action dimensions takes {num_nodes} nodes; "
            f"variance_decomposition allows {MAX_NODES}"
        )
