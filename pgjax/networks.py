"""Multilayer perceptrons, with products whose gradients are fast on a CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pgjax import backends, checks

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu}

OUTPUT_SCALE = 0.01
"""Of the last layer of a network: at first, all actions are about as likely."""


class Network(nn.Module):
    """Multilayer perceptron of the last axis; without hidden layers, a linear map.

    Hidden weights are scaled normals, never orthogonal: their QR factorisation, vmapped over
    seeds, can deadlock jaxlib's CPU thread pool.
    """

    hidden: Sequence[int]
    num_outputs: int
    num_free: int = 0
    free_value: float = 0.0
    activation: Callable[[jax.Array], jax.Array] = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)
        for width in self.hidden:
            kernel = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
            x = self.activation(self._dense(width, kernel)(x))
        kernel = nn.initializers.variance_scaling(OUTPUT_SCALE**2, "fan_in", "normal")
        x = self._dense(self.num_outputs, kernel)(x)
        if not self.num_free:
            return x
        start = nn.initializers.constant(self.free_value)
        free = self.param("free", start, (self.num_free,), dtype)
        return jnp.concatenate([x, jnp.broadcast_to(free, (*x.shape[:-1], self.num_free))], axis=-1)

    def _dense(self, width, kernel):
        dtype = jnp.result_type(float)
        return nn.Dense(width, kernel_init=kernel, param_dtype=dtype, dot_general=_dot_general)


def _dot_general(x, kernel, dimension_numbers, **options):
    """The product in a dense layer: `[F]` or `[B, F]` times `[F, H]`."""
    return matmul(x, kernel)


@jax.custom_jvp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, whose gradients are fast on a CPU.

    With respect to the kernel that is `x.T @ y`, where y is the gradient of the output. Left to
    itself, XLA folds the transpose into a product over leading axes, for which its CPU backend has
    slow code, slowest where there are few columns. A copy of the transpose costs less, and least
    for the narrower factor: for the last layer that is y, and the gradient is `(y.T @ x).T`.

    With respect to x it is `y @ kernel.T`: over few columns a sum, which XLA fuses into what comes
    next, where a product would write and read an array as large as x.

    Args:
      x: `[F]` or `[B, F]`.
      kernel: `[F, H]`.

    Returns:
      `[H]` or `[B, H]`.
    """
    return x @ kernel


@matmul.defjvp
def _(primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    backend = backends.current()
    copy = jax.lax.optimization_barrier if backend.copy_transposes else lambda x: x
    if kernel.shape[1] < kernel.shape[0]:
        rows = (((1,), (x.ndim - 1,)), ((), ()))
        of_kernel = jnp.moveaxis(copy(jax.lax.dot_general(copy(kernel_dot.T), x, rows)), 0, -1)
    else:
        first = copy(jnp.moveaxis(x, -1, 0))
        of_kernel = jax.lax.dot_general(first, kernel_dot, (((0,), (0,)), ((), ())))
    if kernel.shape[1] > backend.summed_columns:
        of_x = x_dot @ kernel
    else:
        columns = (jnp.broadcast_to(column, x.shape) for column in kernel.T)
        of_x = jnp.stack([jnp.sum(x_dot * column, axis=-1) for column in columns], axis=-1)
    return matmul(x, kernel), of_x + of_kernel


def mlp(
    hidden: Sequence[int],
    activation: str,
    num_outputs: int,
    num_free: int = 0,
    free_value: float = 0.0,
) -> Any:
    """A `Network` with an activation by its name.

    Raises:
      ValueError: an unknown activation or a width below one.
    """
    checks.choice("activation", activation, ACTIVATIONS)
    for width in hidden:
        checks.at_least("hidden", width, 1)
    return Network(tuple(hidden), num_outputs, num_free, free_value, ACTIVATIONS[activation])
