"""Sums and maps over the live samples of a batch, holding one chunk's activations at a time."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pgjax import backends, bits, chunks
from pgjax.batching import expand
from pgjax.distributions import Distribution
from pgjax.policies import Params, Policy
from pgjax.rollout import STEP_FIELDS, Trajectory

GRADIENT_FIELDS = tuple(name for name in STEP_FIELDS if name != "log_prob")
"""Fields of a step that a gradient reads; it computes log-probabilities itself."""
PLAIN_SUMS = 16
"""Chunks that are summed plainly between two compensated additions, which take time."""


class Selection(NamedTuple):
    """Which samples count, and how many of them are evaluated at a time."""

    mask: jax.Array  # bool [B] or [N, T], of samples as they lie flat
    size: int


class Samples(NamedTuple):
    """What a policy is evaluated on: B is N T steps, or N rows of T for policies with memory."""

    policy_state: Any  # [B, ...] carry before the first step
    obs: Any  # [B, *O] or [B, T, *O]
    boundary: jax.Array  # [B] or [B, T]
    action: jax.Array  # [B, ...] or [B, T, ...]
    extra: Any  # whatever else goes with each step
    live: jax.Array | None = None  # [B, T] mask of rows


class Term(NamedTuple):
    """A sum over the live samples, to be made by `accumulate`."""

    function: Callable[[Any, jax.Array], Params]  # (samples [B, ...], valid [B]) -> like
    samples: Any
    like: Params


def check_fields(trajectory: Trajectory, fields: Collection[str]) -> None:
    """Raises `ValueError` unless a trajectory holds these fields, of the mask's steps."""
    for field in fields:
        if getattr(trajectory, field) is None:
            raise ValueError(f"trajectory.{field} is missing: a rollout's `fields` must name it")
    steps = jnp.shape(trajectory.mask)
    if len(steps) != 2:
        raise ValueError(f"trajectory.mask has shape {steps}, not [N, T]")
    for field in set(fields) - {"final_obs"}:
        for shape in map(jnp.shape, jax.tree.leaves(getattr(trajectory, field))):
            if (shape[:2] if field in ("obs", "action") else shape) != steps:
                raise ValueError(f"trajectory.{field} has shape {shape}; the mask has {steps}")


def memories(policy: Policy, policy_state: Any, num_rows: int) -> Any:
    """Where a policy's memory starts in each row, `[N, ...]`; None is its initial state."""
    if policy_state is not None:
        return policy_state
    repeat = lambda x: jnp.broadcast_to(x, (num_rows, *jnp.shape(x)))
    return jax.tree.map(repeat, policy.initial_state())


def resolve(chunk_size: int | None) -> int:
    """Samples of a chunk; None takes what suits the device."""
    return backends.current().chunk_size if chunk_size is None else chunk_size


def accumulate(live: Selection, *terms: Term) -> list[Params]:
    """Sums of `function(samples [B, ...], valid [B])` over the live samples.

    The functions must themselves be sums over samples, to which invalid ones contribute nothing.
    What rounding takes from the total is given back every few chunks (Kahan 1965), so the error
    does not grow with the number of chunks. Each sum is one vector, so this takes few operations,
    whatever the network. Terms are summed one after the other, so only the activations of one are
    held at a time.
    """

    def adding(term):
        def add(index, valid, carry):
            number, part, total = carry
            valid = valid.astype(jnp.result_type(float))
            new, _ = ravel_pytree(term.function(chunks.take(term.samples, index), valid))
            part, number = part + new, number + 1
            times = jnp.int32(number % PLAIN_SUMS == 0)
            settled = jax.lax.fori_loop(0, times, lambda _, sums: _settle(*sums), (part, total))
            return number, *settled

        return add

    def start(flat):
        zeros = jnp.zeros_like(flat)
        return jnp.int32(0), zeros, (zeros, zeros)

    flat, restore = zip(*(ravel_pytree(term.like) for term in terms), strict=True)
    found = chunks.fold_each(
        list(map(adding, terms)), list(map(start, flat)), live.mask, [live.size]
    )
    sums = [_settle(part, total)[1][0] for _, part, total in found]
    return [whole(x) for whole, x in zip(restore, sums, strict=True)]


def _settle(
    part: jax.Array, total: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Moves a part to the total, which is a sum and its surplus from rounding."""
    old, surplus = total
    part = part - surplus
    new = old + part
    return jnp.zeros_like(part), (new, (new - old) - part)


def evaluate(function: Callable[[Any], jax.Array], samples: Any, live: Selection) -> jax.Array:
    """`function(samples [B, ...]) -> [B, ...]` of every live sample, zero at the others."""

    def store(index, valid, out):
        return out.at[index].set(function(chunks.take(samples, index)))

    like = jax.eval_shape(lambda samples: function(bits.unpack(samples)), samples)
    return chunks.fold(store, jnp.zeros(like.shape, like.dtype), live.mask, [live.size])


def policy_samples(
    policy: Policy,
    trajectory: Trajectory,
    extra: Any,
    chunk_size: int | None,
    policy_state: Any = None,
) -> tuple[Samples, Selection, Callable[[Params, Samples], Distribution]]:
    """Samples, which of them are live, and a function from params and samples to distributions.

    Policies without memory see single steps, the others whole rows, starting from `policy_state
    [N, ...]`, or from their initial state where that is None.
    """
    mask = trajectory.mask > 0
    samples = Samples(
        policy_state=memories(policy, policy_state, len(mask)),
        obs=trajectory.obs,
        boundary=trajectory.boundary,
        action=trajectory.action,
        extra=extra,
    )
    if jax.tree.leaves(samples.policy_state):
        fill = lambda tree: jax.tree.map(lambda x: repeat_first(x, mask), tree)
        samples = samples._replace(
            obs=fill(samples.obs), action=fill(samples.action), live=trajectory.mask
        )
        live = Selection(mask[:, 0], max(1, resolve(chunk_size) // mask.shape[1]))
        unroll = jax.vmap(policy.unroll, (None, 0, 0, 0))
    else:
        samples = jax.tree.map(flatten, samples)
        live = Selection(mask, resolve(chunk_size))
        unroll = policy.unroll
    return (
        samples,
        live,
        lambda params, chunk: unroll(params, chunk.policy_state, chunk.obs, chunk.boundary),
    )


def flatten(x: jax.Array) -> jax.Array:
    """`[N, T, ...]` as `[N T, ...]`."""
    return x.reshape(-1, *x.shape[2:])


def repeat_first(x, mask):
    """Fills dead steps with the row's first, so that their log-probabilities are finite."""
    return jnp.where(expand(mask, x), x, x[:, :1])
