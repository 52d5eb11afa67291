"""Loop bounds that stay the same for a whole vmapped batch.

A `while_loop` whose condition differs over a vmapped axis selects between old and new carry at
every iteration, which copies a trajectory again and again. These reductions reduce over the
vmapped axes too, so that the loop runs until all are done.
"""

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_of_all(x: jax.Array) -> jax.Array:
    """Whether anything is true, over all axes and all vmapped axes."""
    return jnp.any(x)


@any_of_all.def_vmap
def _(axis_size, in_batched, x):
    return any_of_all(x), False


@jax.custom_batching.custom_vmap
def max_of_all(x: jax.Array) -> jax.Array:
    """The largest entry, over all axes and all vmapped axes."""
    return jnp.max(x)


@max_of_all.def_vmap
def _(axis_size, in_batched, x):
    return max_of_all(x), False
