"""Many rows of a policy in an environment: whole episodes, or windows of rows that persist."""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from jax.core import Tracer
from jax.sharding import Mesh

from pgjax import batching, bits, checks, sharding, stepping
from pgjax.batching import choose
from pgjax.environments import to_action
from pgjax.policies import Params, Policy
from pgjax.stepping import Step


class Trajectory(NamedTuple):
    """N rows of T steps."""

    obs: jax.Array  # [N, T, *O]
    action: jax.Array  # [N, T, ...] what the distribution sampled, before squashing or clipping
    log_prob: jax.Array  # [N, T] under the policy that acted
    reward: jax.Array  # [N, T] zero after the end
    terminated: jax.Array  # [N, T] bool, natural end: the future is worth zero
    truncated: jax.Array  # [N, T] bool, cut by a time limit or the window
    mask: jax.Array  # [N, T] one while the row is live
    final_obs: Any = None  # [N, *O] after the last live step; [N, T, *O] after each, in segments

    @property
    def boundary(self) -> jax.Array:
        """`[N, T]` bool: where an episode ends, or is cut."""
        return jnp.logical_or(self.terminated, self.truncated)


STEP_FIELDS = tuple(name for name in Trajectory._fields if name != "final_obs")
"""Fields that a trajectory holds for every step."""


class Row(NamedTuple):
    """Where one episode stands."""

    state: Any  # of the environment
    obs: jax.Array  # [*O]
    policy_state: Any  # the policy's carry
    length: jax.Array  # [] int32, live steps so far
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool

    @property
    def live(self) -> jax.Array:
        """Whether the episode goes on."""
        return ~(self.terminated | self.truncated)


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
    packed: bool = False,
    mesh: Mesh | None = None,
) -> Trajectory:
    """Independent episodes from the start, at most `horizon` steps each.

    An ended row keeps its last observation, and stepping stops once every row has ended.
    Where rows are stepped some at a time (`backends.Backend.live_rows`), ended ones make room for
    others, so that the cost follows the live steps; otherwise it follows the longest episode. Rows
    have keys of their own and do not depend on each other: vmapped calls that share their
    parameters run as one call with the rows of all.

    Args:
      key: typed PRNG key.
      env: a gymnax environment; its `step_env` is called, so nothing is reset inside a row.
      env_params: its parameters.
      policy: acts.
      params: the policy's parameters.
      num_episodes: rows, N.
      horizon: steps per row, T; a row cut there is truncated.
      fields: those kept of every step; the others take no memory. `final_obs` is always kept.
      packed: whether observations of booleans are left as `bits.Bits`, an eighth of the memory.
      mesh: devices that the rows are shared out over (`sharding.mesh`); None for one.

    Returns:
      A `Trajectory` of `[N, T, ...]`, zero wherever `mask` is zero; None for fields not kept.

    Raises:
      ValueError: `num_episodes` or `horizon` below one, an unknown field, or rows that do not fit
        the mesh.
    """
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("horizon", horizon, 1)
    _check_fields(fields)
    sharding.check("num_episodes", num_episodes, mesh)

    inferred = {"mask", "terminated", "truncated"}  # from how long a row is and how it ended
    dropped = set(STEP_FIELDS) - set(fields) | inferred
    traced, restore = batching.split((params, env_params), Tracer)
    pack = bits.pack if packed else lambda obs: obs
    share = num_episodes // (1 if mesh is None else mesh.shape[sharding.AXIS])

    def play(traced, keys):
        params, env_params = restore(traced)
        advance = advancing(env, env_params)

        def begin(key):
            reset_key, *step_keys = jax.random.split(key, 3)
            obs, state = env.reset_env(reset_key, env_params)
            ended = jnp.bool_(False)
            return Row(state, obs, policy.initial_state(), jnp.int32(0), ended, ended), step_keys

        def act(row):
            return policy.step(params, row.policy_state, row.obs)

        def follow(row, acted, time, keys):
            action_key, env_key = keys
            policy_state, distribution = acted
            action = distribution.sample(action_key)
            state, obs, record = advance(env_key, distribution, action, row.state, row.obs)
            window_ends = (time == horizon - 1) & ~record.terminated
            reached = obs, time + 1, record.terminated, record.truncated | window_ends
            kept = record.obs, row.length, row.terminated, row.truncated
            obs, *end = choose(row.live, reached, kept)
            record = record._replace(obs=pack(record.obs))._replace(**dict.fromkeys(dropped))
            return Row(state, obs, policy_state, *end), record

        rows = jax.vmap(begin)(keys)
        sizes = stepping.widths(len(keys), alone=len(keys) == share)
        rows, records = stepping.while_live(Step(act, follow), *rows, horizon, sizes)
        left = rows.length[:, None] - jnp.arange(horizon)[None]
        found = {
            "mask": (left > 0).astype(jnp.result_type(float)),
            "terminated": rows.terminated[:, None] & (left == 1),
            "truncated": rows.truncated[:, None] & (left == 1),
        }
        wanted = {name: x for name, x in found.items() if name in fields}
        return records._replace(final_obs=jax.vmap(pack)(rows.obs), **wanted)

    keys = jax.random.split(key, num_episodes)
    return sharding.over_rows(batching.merge_vmap(play), mesh)(traced, keys)


def start(key: jax.Array, env: Any, env_params: Any, policy: Policy, *, num_rows: int) -> Rows:
    """Persistent rows at the start of their first episodes, for `segments`.

    Args:
      key: typed PRNG key.
      env: a gymnax environment.
      env_params: its parameters.
      policy: whose memory, if any, starts in its initial state.
      num_rows: N.

    Returns:
      `Rows` at time zero.

    Raises:
      ValueError: `num_rows` below one.
    """
    checks.at_least("num_rows", num_rows, 1)

    def begin(key):
        obs, state = env.reset_env(key, env_params)
        return state, obs, policy.initial_state(), jnp.int32(0)

    def step(key, action):
        state, *_ = begin(key)
        obs, state, *_ = env.step_env(key, state, action, env_params)
        return state, obs

    state, obs, *others = jax.vmap(begin)(jax.random.split(key, num_rows))
    like, space = (state, obs), env.action_space(env_params)
    if isinstance(space, spaces.Discrete | spaces.Box):
        dtype = jnp.result_type(float) if isinstance(space, spaces.Box) else space.dtype
        like = jax.eval_shape(step, key, jax.ShapeDtypeStruct(space.shape, dtype))
    # Else a first window would leave them in other or stronger types, and the second compile anew.
    strong = lambda x, like: x.astype(like.dtype)
    state, obs = jax.tree.map(strong, state, like[0]), promote(obs, like[1])
    policy_state, elapsed = jax.tree.map(strong, others, others)
    return Rows(state, obs, policy_state, elapsed, time=jnp.int32(0))


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
    packed: bool = False,
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
      horizon: steps per window, T.
      fields: those kept of every step, with `final_obs` where values need it; the others take no
        memory.
      packed: whether observations of booleans are left as `bits.Bits`, an eighth of the memory.
      mesh: devices that the rows are shared out over (`sharding.mesh`); None for one.

    Returns:
      A `Trajectory` of `[N, T, ...]` that is live throughout, whose `final_obs [N, T, *O]` are the
      true next observations, before any reset; None for fields not kept; and the rows after it.

    Raises:
      ValueError: `horizon` below one, an unknown field, or rows that do not fit the mesh.
    """
    checks.at_least("horizon", horizon, 1)
    _check_fields(fields)
    sharding.check("num_rows", len(carry.elapsed), mesh)

    traced, restore = batching.split(params, Tracer)

    @batching.lazy_select
    def restart_where(key):
        obs, state = env.reset_env(key, env_params)
        return state, obs, policy.initial_state()

    advance = advancing(env, env_params)
    pack = bits.pack if packed else lambda obs: obs
    dropped = set(Trajectory._fields) - set(fields) | {"mask"}  # which is one everywhere

    def act(params, row):
        _, obs, policy_state, _ = row
        return policy.step(params, policy_state, obs)

    def follow(row, acted, time, keys):
        reset_key, action_key, env_key = keys
        state, obs, _, elapsed = row
        policy_state, distribution = acted
        action = distribution.sample(action_key)
        next_state, next_obs, record = advance(env_key, distribution, action, state, obs)
        record = record._replace(obs=pack(record.obs), final_obs=pack(next_obs))
        ends = record.boundary
        window_ends = (time == horizon - 1) & ~record.terminated
        record = record._replace(truncated=record.truncated | window_ends)
        record = record._replace(**dict.fromkeys(dropped))
        following = next_state, next_obs, policy_state
        state, obs, policy_state = restart_where(ends, following, reset_key)
        return (state, obs, policy_state, jnp.where(ends, 0, elapsed + 1)), record

    def play(whole, keys, *rows):
        traced, time = whole
        step_keys = list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0))
        step = Step(partial(act, restore(traced)), follow)
        rows, records = stepping.window(step, rows, step_keys, time, horizon)
        if "mask" in fields:
            mask = jnp.ones((len(keys), horizon), jnp.result_type(float))
            records = records._replace(mask=mask)
        return rows, records

    keys, (*rows, time) = jax.random.split(key, len(carry.elapsed)), carry
    rows, trajectory = sharding.over_rows(play, mesh)((traced, time), keys, *rows)
    return trajectory, Rows(*rows, time=time + horizon)


def _check_fields(fields):
    if isinstance(fields, str):
        raise ValueError(f"fields={fields!r} must be a collection of names, such as ({fields!r},)")
    for field in fields:
        checks.choice("fields", field, Trajectory._fields)


def promote(obs: Any, other: Any) -> Any:
    """Observations, promoted to dtypes that also hold those of others, as of a step."""
    common = lambda x, y: jnp.promote_types(jnp.result_type(x), jnp.result_type(y))
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(common(x, y)), obs, other)


def advancing(env: Any, env_params: Any) -> Callable[..., tuple[Any, Any, Trajectory]]:
    """One step of one row with an action drawn from a distribution, without a reset.

    Returns:
      `(key, distribution, action, state, obs) -> (state, obs, record)`; the key is the
      environment's.

    Raises:
      ValueError: when traced, actions that do not fit the environment's space, or a step whose
        reward or end is no scalar, or whose observation has another shape than the one before.
    """
    space = env.action_space(env_params)

    def advance(key, distribution, action, state, obs):
        has_shape = isinstance(space, spaces.Discrete | spaces.Box)
        if has_shape and action.size != math.prod(space.shape):
            raise ValueError(
                f"policy's actions have shape {action.shape}; {env.name}'s {space.shape}"
            )
        taken = to_action(space, distribution, action)
        next_obs, next_state, reward, terminated, _ = env.step_env(key, state, taken, env_params)
        truncated = env.is_truncated(next_state, env_params)
        _check_step(env, obs, next_obs, reward=reward, terminated=terminated, truncated=truncated)
        obs, next_obs = promote(obs, next_obs), promote(next_obs, obs)
        record = Trajectory(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action),
            reward=jnp.asarray(reward, jnp.result_type(float)),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(truncated, bool),
            mask=jnp.ones((), jnp.result_type(float)),
        )
        return next_state, next_obs, record

    return advance


def _check_step(env, obs, next_obs, **scalars):
    for name, x in scalars.items():
        if jnp.shape(x) != ():
            raise ValueError(f"{name} of a step in {env.name} has shape {jnp.shape(x)}, not ()")
    before, after = jax.tree.map(jnp.shape, (obs, next_obs))
    if before != after:
        raise ValueError(
            f"observations in {env.name} have shape {before} before and {after} after a step"
        )
