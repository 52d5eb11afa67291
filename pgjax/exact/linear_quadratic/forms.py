"""Quadratic forms of normal vectors, and the linear recursions that sum them up.

What is affine in s is linear in x = [s, 1], and what is quadratic is a form in it: values and
variances are matrices F, standing for x^T F x, and every step of a recursion is one of two maps:
the mean and the variance of a form in a normal vector.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Quadratic(NamedTuple):
    """The function -(x^T P x + p^T x + c) of a vector; call it, or vmap it over leading axes."""

    quadratic: jax.Array  # [..., D, D] P
    linear: jax.Array  # [..., D] p
    constant: jax.Array  # [...] c

    def __call__(self, x: jax.Array) -> jax.Array:
        return -(x @ self.quadratic @ x + self.linear @ x + self.constant)


def quadratic(form: jax.Array) -> Quadratic:
    """Minus a form in [v, 1], as a function of v."""
    return Quadratic(form[..., :-1, :-1], 2 * form[..., :-1, -1], form[..., -1, -1])


def mean_form(form: jax.Array, linear: jax.Array, noise: jax.Array) -> jax.Array:
    """E[y^T F y] as a form in x, where y ~ N(L x, noise)."""
    return add_constant(linear.T @ form @ linear, jnp.trace(form @ noise))


def variance_form(form: jax.Array, linear: jax.Array, noise: jax.Array) -> jax.Array:
    """Var(y^T F y) = 4 x^T L^T F N F L x + 2 tr(F N F N) as a form in x, where y ~ N(L x, N)."""
    spread = form @ noise @ form
    return add_constant(4 * linear.T @ spread @ linear, 2 * jnp.trace(spread @ noise))


def add_constant(form: jax.Array, constant: jax.Array) -> jax.Array:
    return form.at[-1, -1].add(constant)


def expectation(form: jax.Array, mean: jax.Array, covariance: jax.Array) -> jax.Array:
    """E[x^T F x] of a vector with this mean and covariance."""
    return mean @ form @ mean + jnp.trace(form @ covariance)


def at(form: jax.Array, points: jax.Array) -> jax.Array:
    """The value of a form at each of `[M, D]` points."""
    return jnp.sum((points @ form) * points, axis=1)


def lyapunov(matrix: jax.Array, forcing: jax.Array, rate: Any = 1.0) -> jax.Array:
    """The solution of X = rate M X M^T + C, by one linear system of D^2 unknowns."""
    system = jnp.eye(matrix.size, dtype=matrix.dtype) - rate * jnp.kron(matrix, matrix)
    return jnp.linalg.solve(system, forcing.ravel()).reshape(forcing.shape)


def is_stable(matrix: jax.Array, rate: Any = 1.0) -> jax.Array:
    """Whether rate^(1/2) M has a spectral radius below one, `[]`.

    By Lyapunov's theorem that is so if X = rate M X M^T + I has a positive definite solution, and
    only then. JAX finds the eigenvalues of a symmetric matrix on every backend.
    """
    matrix, rate = jax.lax.stop_gradient((matrix, rate))
    solution = lyapunov(matrix, jnp.eye(len(matrix), dtype=matrix.dtype), rate)
    return jnp.all(jnp.linalg.eigvalsh(solution) > 0)


def nan_unless(condition: jax.Array, x: jax.Array) -> jax.Array:
    # A product makes derivatives NaN too; `where` would make them zero.
    return x * jnp.where(condition, 1.0, jnp.nan)
