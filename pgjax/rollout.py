"""Many rows of a policy in an environment: whole episodes, or windows of rows that persist."""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pgjax import ahead, backends, batching, checks, chunks, sharding
from pgjax.batching import choose
from pgjax.environments import to_action
from pgjax.policies import Params, Policy

BLOCK = 32
"""Steps whose keys are made at once, and after which it is looked whether any row is live."""
SHORT_BLOCK = 8
"""The same where rows that have ended make room for others: until then they are stepped in vain."""
NARROW = 128
"""Bytes kept of a row's step up to which a block of steps is put together before it is stored, and
what follows an action made one function: wide observations are stored at once, as they are."""
LEAST_PART = 8
"""Rows below which fewer of them take as long to step."""


class Trajectory(NamedTuple):
    """What N rows of T steps gave."""

    obs: jax.Array  # [N, T, *O]
    action: jax.Array  # [N, T, ...] what the distribution sampled, before squashing or clipping
    log_prob: jax.Array  # [N, T] under the policy that acted
    reward: jax.Array  # [N, T] zero after the end
    terminated: jax.Array  # [N, T] bool, natural end: the future is worth zero
    truncated: jax.Array  # [N, T] bool, cut by a time limit or the window
    mask: jax.Array  # [N, T] one while the row is live
    final_obs: Any = None  # [N, *O] after the last live step; [N, T, *O] after each, in segments


STEP_FIELDS = tuple(name for name in Trajectory._fields if name != "final_obs")
"""What a trajectory holds of every step."""


class Step(NamedTuple):
    """A step of one row, in two: what a network computes, and the small operations that follow."""

    act: Callable[[Any], Any]  # row -> acted
    follow: Callable[[Any, Any, jax.Array, Any], Any]  # (row, acted, time, keys) -> (row, record)


class Rows(NamedTuple):
    """Where N persistent rows stand between two windows."""

    state: Any  # [N, ...] of the environment
    obs: jax.Array  # [N, *O]
    policy_state: Any  # [N, ...] the policy's carry
    elapsed: jax.Array  # [N] int32, steps since the episode began
    time: jax.Array  # [] int32, steps since `start`


def episodes(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    *,
    num_episodes: int,
    horizon: int,
    fields: Collection[str] = STEP_FIELDS,
    mesh: Mesh | None = None,
) -> Trajectory:
    """Independent episodes from the start, at most `horizon` steps each.

    An ended row keeps its last state and observation, and stepping stops once every row has ended.
    Where rows are stepped some at a time (`backends.Backend.live_rows`), ended ones make room for
    others, so that the cost follows the live steps; else it follows the longest episode. Each row
    has a key of its own, and is what it is whatever is beside it.

    Args:
      key: typed PRNG key.
      env: a gymnax environment; its `step_env` is called, so nothing is reset inside a row.
      env_params: its parameters.
      policy: acts.
      params: the policy's parameters.
      num_episodes: rows, N.
      horizon: steps a row, T; a row cut there is truncated.
      fields: what is kept of every step, for those who need little of it: the rest takes no memory.
      mesh: devices that the rows are shared out over (`sharding.mesh`); None for one.

    Returns:
      A `Trajectory` of `[N, T, ...]`, zero wherever `mask` is zero; None for fields not kept.

    Raises:
      ValueError: `num_episodes` or `horizon` below one, a field that there is not, or rows that do
        not fit the mesh.
    """
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("horizon", horizon, 1)
    for field in fields:
        checks.choice("fields", field, STEP_FIELDS)
    sharding.check("num_episodes", num_episodes, mesh)

    advance = advancing(env, env_params)
    inferred = {"mask", "terminated", "truncated"}  # from how long a row is and how it ended
    dropped = set(STEP_FIELDS) - set(fields) | inferred

    def begin(key):
        reset_key, *step_keys = jax.random.split(key, 3)
        obs, state = env.reset_env(reset_key, env_params)
        end = jnp.int32(0), jnp.bool_(False), jnp.bool_(False)
        return (state, obs, policy.initial_state(), end, jnp.bool_(True)), step_keys

    def act(params, row):
        _, obs, policy_state, *_ = row
        return policy.step(params, policy_state, obs)

    def follow(row, acted, time, keys):
        state, obs, _, end, live = row
        policy_state, distribution = acted
        next_state, next_obs, record = advance(distribution, keys, state, obs)
        window_ends = (time == horizon - 1) & ~record.terminated
        next_end = time + 1, record.terminated, record.truncated | window_ends
        record = record._replace(**dict.fromkeys(dropped))
        record = choose(live, record, jax.tree.map(jnp.zeros_like, record))
        state, obs, end = choose(live, (next_state, next_obs, next_end), (state, obs, end))
        return (state, obs, policy_state, end, live & ~(end[1] | end[2])), record

    def play(params, keys):
        rows = jax.vmap(begin)(keys)
        rows, records = _play_while_live(Step(partial(act, params), follow), *rows, horizon)
        _, final_obs, _, end, _ = rows
        length, terminated, truncated = (x[:, None] for x in end)
        time = jnp.arange(horizon)[None]
        whole = {
            "mask": (time < length).astype(jnp.result_type(float)),
            "terminated": terminated & (time == length - 1),
            "truncated": truncated & (time == length - 1),
        }
        wanted = {name: x for name, x in whole.items() if name in fields}
        return records._replace(final_obs=final_obs, **wanted)

    return sharding.over_rows(play, mesh)(params, jax.random.split(key, num_episodes))


def start(key: jax.Array, env: Any, env_params: Any, policy: Policy, *, num_rows: int) -> Rows:
    """Persistent rows at the start of their first episodes, for `segments`.

    Raises:
      ValueError: `num_rows` below one.
    """
    checks.at_least("num_rows", num_rows, 1)

    def begin(key):
        obs, state = env.reset_env(key, env_params)
        return state, obs, policy.initial_state(), jnp.int32(0)

    rows = Rows(*jax.vmap(begin)(jax.random.split(key, num_rows)), time=jnp.int32(0))
    # Weak types would turn strong in the first window, and the second compile anew.
    return jax.tree.map(lambda x: x.astype(x.dtype), rows)


def segments(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    params: Params,
    carry: Rows,
    *,
    horizon: int,
    fields: Collection[str] = Trajectory._fields,
    mesh: Mesh | None = None,
) -> tuple[Trajectory, Rows]:
    """The next window of rows that persist: where an episode ends, another begins.

    Ends inside a row are marked `terminated`, or `truncated` at the environment's own time limit,
    and the policy's memory starts afresh after them; the last step of the window is truncated
    unless terminated. What is drawn depends on the key and on `carry.time` only, so that two
    windows with one key are one window of twice the length. An episode that a window finds under
    way counts from the window's first step: gamma^t of the state weighting does too.

    Args:
      key: typed PRNG key; the same or another for each window.
      env: a gymnax environment.
      env_params: its parameters.
      policy: acts.
      params: the policy's parameters.
      carry: from `start`, or from the window before.
      horizon: steps a window, T.
      fields: what is kept of every step, `final_obs`, which values need, among it; the rest takes
        no memory.
      mesh: devices that the rows are shared out over (`sharding.mesh`); None for one.

    Returns:
      A `Trajectory` of `[N, T, ...]` that is live throughout, whose `final_obs [N, T, *O]` are the
      true next observations, before any reset; None for fields not kept; and the rows after it.

    Raises:
      ValueError: `horizon` below one, a field that there is not, or rows that do not fit the mesh.
    """
    checks.at_least("horizon", horizon, 1)
    for field in fields:
        checks.choice("fields", field, Trajectory._fields)
    sharding.check("num_rows", len(carry.elapsed), mesh)

    @batching.seldom
    def begin_if(key, env_params):
        obs, state = env.reset_env(key, env_params)
        return state, obs, policy.initial_state()

    advance = advancing(env, env_params)
    dropped = set(Trajectory._fields) - set(fields) | {"mask"}  # which is one everywhere

    def act(params, row):
        _, obs, policy_state, _ = row
        return policy.step(params, policy_state, obs)

    def follow(row, acted, time, keys):
        reset_key, *step_keys = keys
        state, obs, _, elapsed = row
        policy_state, distribution = acted
        next_state, next_obs, record = advance(distribution, step_keys, state, obs)
        record = record._replace(final_obs=next_obs.astype(obs.dtype))
        ends = record.terminated | record.truncated
        window_ends = (time == horizon - 1) & ~record.terminated
        record = record._replace(truncated=record.truncated | window_ends)
        record = record._replace(**dict.fromkeys(dropped))
        following = next_state, next_obs, policy_state
        state, obs, policy_state = begin_if(ends, following, reset_key, env_params)
        return (state, obs, policy_state, jnp.where(ends, 0, elapsed + 1)), record

    def play(whole, keys, *rows):
        params, time = whole
        step_keys = list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0))
        step = Step(partial(act, params), follow)
        rows, records = _play_window(step, rows, step_keys, time, horizon)
        if "mask" in fields:
            mask = jnp.ones((len(keys), horizon), jnp.result_type(float))
            records = records._replace(mask=mask)
        return rows, records

    keys, (*rows, time) = jax.random.split(key, len(carry.elapsed)), carry
    rows, trajectory = sharding.over_rows(play, mesh)((params, time), keys, *rows)
    return trajectory, Rows(*rows, time=time + horizon)


def advancing(env, env_params):
    """What an action drawn does in one row, without a reset.

    Returns:
      `(distribution, keys, state, obs, instead=None) -> (state, obs, record)` with one key for the
      action and one for the environment; `instead`, if given, makes of the action sampled the one
      that is taken.
    """
    space = env.action_space(env_params)

    def advance(distribution, keys, state, obs, instead=None):
        action_key, env_key = keys
        action = distribution.sample(action_key)
        if instead is not None:
            action = instead(action)
        taken = to_action(space, distribution, action)
        next_obs, next_state, reward, terminated, _ = env.step_env(
            env_key, state, taken, env_params
        )
        record = Trajectory(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action),
            reward=jnp.asarray(reward, jnp.result_type(float)),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(env.is_truncated(next_state, env_params), bool),
            mask=jnp.ones((), jnp.result_type(float)),
        )
        return next_state, next_obs, record

    return advance


def widths(num_rows: int) -> tuple[int, ...]:
    """How many of so many rows that may end are stepped side by side, and of those left over."""
    layout = backends.current()
    width = min(num_rows, layout.live_rows or num_rows)
    part = width // layout.live_parts
    # Just as many, as in the default run on two devices, would compile for half a second longer and
    # solve their task no sooner.
    fits = num_rows == layout.live_rows
    return (width, part) if LEAST_PART <= part < width and not fits else (width,)


def _play_while_live(step, rows, keys, horizon):
    """Rows over at most `horizon` steps, in blocks, until none is live.

    The last entry of the rows is `live`. Where it suits the device, rows are stepped some at a
    time (`widths`), and only those that are live when a block begins. Steps never taken are zeros.
    """
    num_rows = len(rows[-1])
    width, *parts = widths(num_rows)
    # Vmapped rows may need both widths in one block: one part is little beside all of them.
    spare = parts[0] if parts and width == num_rows else None
    num_blocks = -(-horizon // (SHORT_BLOCK if backends.current().live_rows else BLOCK))
    block = -(-horizon // num_blocks)
    rows, records = _blank(step, rows, keys, horizon)

    def play_block(loop):
        index, rows, records = loop
        start = index * block

        def store(place, time, x, new):
            times = time + jnp.arange(len(new))
            return x.at[place, times].set(jnp.moveaxis(new, 0, 1), mode="drop")

        def play_all(rows, records):
            return _play(step, rows, records, keys, start, block, partial(store, slice(None)))

        if width == num_rows and not parts:
            return index + 1, *play_all(rows, records)

        def play_chunk(chosen, valid, loop):
            rows, records = loop
            if len(chosen) == num_rows:
                new, records = play_all(rows, records)
                # Where nothing is valid, parts of the rows will write the same records again.
                return choose(valid[0], new, rows), records
            place = jnp.where(valid, chosen, num_rows)  # past the end, so dropped
            own, own_keys = jax.tree.map(lambda x: x[chosen], (rows, keys))
            store_own = partial(store, place[:, None])
            own, records = _play(step, own, records, own_keys, start, block, store_own)
            keep = lambda x, own: x.at[place].set(own, mode="drop")
            return jax.tree.map(keep, rows, own), records

        loop = (rows, records)
        return index + 1, *chunks.fold(play_chunk, loop, rows[-1], [width, *parts], spare)

    def go_on(loop):
        index, (*_, live_rows), _ = loop
        return (index < num_blocks) & batching.any_of_all(live_rows)

    _, rows, records = jax.lax.while_loop(go_on, play_block, (jnp.int32(0), rows, records))
    return rows, records


def _play_window(step, rows, keys, origin, horizon):
    """Rows over `horizon` steps, some rows at a time where that suits the device."""
    num_rows = len(keys[0])
    num_shares = -(-num_rows // (backends.current().rows or num_rows))
    width = -(-num_rows // num_shares)
    block = max(size for size in range(1, BLOCK + 1) if horizon % size == 0)
    rows, records = _blank(step, rows, keys, horizon)

    def play_share(number, loop):
        after, records = loop
        # The last share takes some rows of the one before it along if it has too few of its own.
        first = jnp.minimum(number * width, num_rows - width)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, width)
        own, own_keys = jax.tree.map(cut, (rows, keys))

        def store(time, x, new):
            place = first, time, *(x.ndim - 2) * [0]
            return jax.lax.dynamic_update_slice(x, jnp.moveaxis(new, 0, 1), place)

        def play_block(index, loop):
            own, records = loop
            return _play(step, own, records, own_keys, index * block, block, store, origin)

        own, records = jax.lax.fori_loop(0, horizon // block, play_block, (own, records))
        put = lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, first, 0)
        return jax.tree.map(put, after, own), records

    return jax.lax.fori_loop(0, num_shares, play_share, (rows, records))


def _play(step, rows, records, keys, start, num_steps, store, origin=0):
    """Some steps of some rows.

    What comes of keys alone, noise above all, is made for all steps at once: step by step, hashing
    takes longer than what it is for.

    Args:
      step: a `Step`.
      rows: where they stand, `[n, ...]`.
      records: of all rows, `[N, T, ...]`.
      keys: keys `[n]` of the rows.
      start: time of the first step.
      num_steps: how many there are.
      store: `(time, x [N, T, ...], new [k, n, ...]) -> x` with the k steps from `time` on.
      origin: where the keys' own time has its zero.
    """
    times = start + jnp.arange(num_steps)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    row, time, own_keys = jax.eval_shape(first, (rows, times, keys))
    acted = jax.eval_shape(step.act, row)
    follow = lambda later, keys: step.follow(*later, keys)
    draw, follow = ahead.split(follow, (row, acted, time), own_keys)

    def draw_all(time):
        return jax.vmap(lambda *keys: draw([jax.random.fold_in(key, time) for key in keys]))(*keys)

    noise = batching.map_small(draw_all, origin + times)

    num_bytes = sum(x.dtype.itemsize * math.prod(x.shape[2:]) for x in jax.tree.leaves(records))
    together = backends.current().fused_loops and num_bytes <= NARROW

    def go(index, loop):
        acted = jax.vmap(step.act)(loop[0])

        def follow_all(index, loop):
            rows, records = loop
            time, drawn = jax.tree.map(lambda x: x[index], (times, noise))
            one = lambda row, acted, drawn: follow((row, acted, time), drawn)
            rows, record = jax.vmap(one)(rows, acted, drawn)
            note = lambda x, new: x.at[index].set(new) if together else store(time, x, new[None])
            return rows, jax.tree.map(note, records, record)

        return batching.once(follow_all, index, loop) if together else follow_all(index, loop)

    if not together:
        return jax.lax.fori_loop(0, num_steps, go, (rows, records))
    num_rows = len(keys[0])
    blank = lambda x: jnp.zeros((num_steps, num_rows, *x.shape[2:]), x.dtype)
    rows, block = jax.lax.fori_loop(0, num_steps, go, (rows, jax.tree.map(blank, records)))
    return rows, jax.tree.map(partial(store, start), records, block)


def _blank(step, rows, keys, num_steps):
    """Rows in the dtypes that a step leaves them in, and records `[N, T, ...]` of zeros."""
    one = lambda row, keys: step.follow(row, step.act(row), jnp.int32(0), keys)
    after, record = jax.eval_shape(jax.vmap(one), rows, keys)
    rows = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), rows, after)
    zeros = lambda x: jnp.zeros((x.shape[0], num_steps, *x.shape[1:]), x.dtype)
    return rows, jax.tree.map(zeros, record)
