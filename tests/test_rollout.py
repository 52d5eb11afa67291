"""Episodes: ends, alignment, early stopping, independence of rows."""

from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

from pgjax import backends, distributions, environments, policies, restarts, rollout, stepping

FIELDS = ("obs", "action", "terminated", "mask")


def roll(name="CartPole-v1", *, num_episodes=16, horizon=100, seed=0, options=(), **kwargs):
    env, env_params = environments.make(name)
    policy = policies.make("mlp", env, env_params, **kwargs)
    obs, _ = env.reset(jax.random.key(1), env_params)
    params = policy.init(jax.random.key(2), obs)
    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    program = jax.jit(run, compiler_options=dict(options))
    return env, env_params, policy, params, program(jax.random.key(seed))


QUICK = ["BernoulliBandit-misc", "FrozenLake-misc", "PointRobot-misc", "ShortCorridor"]
OTHERS = sorted(set(environments.names()) - {*QUICK, "MNISTBandit-bsuite"})


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_runs_in_every_environment(name):
    with jax.numpy_rank_promotion("allow"):  # some of gymnax's own steps promote
        *_, trajectory = roll(name, num_episodes=3, horizon=5)
    for leaf in jax.tree.leaves(trajectory):
        assert leaf.shape[0] == 3
        assert jnp.all(jnp.isfinite(leaf))
    assert jnp.issubdtype(trajectory.reward.dtype, jnp.floating)


def test_shapes_and_dtypes():
    *_, trajectory = roll()
    assert trajectory.obs.shape == (16, 100, 4)
    assert trajectory.final_obs.shape == (16, 4)
    for x in (trajectory.action, trajectory.log_prob, trajectory.reward, trajectory.mask):
        assert x.shape == (16, 100)
    assert trajectory.terminated.dtype == trajectory.truncated.dtype == jnp.bool_


def test_a_row_is_an_episode():
    """Live until its one end, then nothing. Pitfall 6."""
    *_, trajectory = roll()
    mask = np.asarray(trajectory.mask)
    ends = np.asarray(trajectory.terminated | trajectory.truncated)
    length = mask.sum(1).astype(int)
    np.testing.assert_array_equal(mask, np.arange(100) < length[:, None])
    np.testing.assert_array_equal(ends.sum(1), 1)
    np.testing.assert_array_equal(ends.argmax(1), length - 1)
    for recorded in (trajectory.reward, trajectory.log_prob):  # at every step, mask or not
        np.testing.assert_array_equal(np.asarray(recorded) != 0, mask)


def test_rows_replay_in_the_environment():
    """Feeding the recorded actions back gives the recorded observations, rewards and ends."""
    env, env_params, *_, trajectory = roll()
    row = jax.tree.map(lambda x: np.asarray(x[0]), trajectory)
    states = np.asarray(row.obs)
    for t in range(int(row.mask.sum())):
        state = _cartpole_state(states[t], t)
        obs, _, reward, terminated, _ = env.step_env(
            jax.random.key(0), state, row.action[t], env_params
        )
        following = row.obs[t + 1] if row.mask[t + 1] else row.final_obs
        np.testing.assert_allclose(obs, following, atol=1e-5)
        assert reward == row.reward[t]
        assert terminated == row.terminated[t]


def _cartpole_state(obs, time):
    from gymnax.environments.classic_control.cartpole import EnvState

    x, x_dot, theta, theta_dot = obs
    return EnvState(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot, time=time)


def test_log_prob_is_of_the_recorded_action():
    _, _, policy, params, trajectory = roll("Pendulum-v1", horizon=8)
    boundary = jnp.zeros(8, bool)
    for row in range(3):
        distribution = policy.unroll(params, (), trajectory.obs[row], boundary)
        expected = distribution.log_prob(trajectory.action[row])
        np.testing.assert_allclose(trajectory.log_prob[row], expected, rtol=1e-5)


def test_the_window_truncates():
    *_, trajectory = roll("Pendulum-v1", horizon=7)
    assert jnp.all(trajectory.truncated[:, -1]) and not jnp.any(trajectory.truncated[:, :-1])
    assert not jnp.any(trajectory.terminated)
    assert jnp.all(trajectory.mask == 1)


def test_the_time_limit_truncates():
    *_, trajectory = roll("Pendulum-v1", horizon=250)
    assert jnp.all(trajectory.truncated[:, 199])
    np.testing.assert_array_equal(trajectory.mask.sum(1), 200)


def counting(num_episodes, horizon):
    """Episodes of CartPole, `(key, scale) -> Trajectory`, and a list of all steps of rows."""
    env, env_params, policy, params, _ = roll()
    taken = []

    def counted(key, state, action, env_params):
        jax.debug.callback(taken.append, state.time)
        return type(env).step_env(env, key, state, action, env_params)

    class Counting(type(env)):
        step_env = staticmethod(counted)

    def run(key, scale=1.0):
        return rollout.episodes(
            key,
            Counting(),
            env_params,
            policy,
            jax.tree.map(lambda x: x * scale, params),
            num_episodes=num_episodes,
            horizon=horizon,
        )

    return run, taken


def test_stepping_stops_when_every_row_has_ended():
    """Steps are never taken past the block in which the last row ends, alone or vmapped."""
    run, taken = counting(num_episodes=4, horizon=2000)
    lengths = jax.jit(run)(jax.random.key(0)).mask.sum(1)
    jax.effects_barrier()
    assert len(taken) / 4 < lengths.max() + backends.CPU.block
    for others in ((), (jnp.ones(3),)):  # with shared parameters, and with some for each
        taken.clear()
        keys = jax.random.split(jax.random.key(0), 3)
        lengths = jax.jit(jax.vmap(run))(keys, *others).mask.sum(2)
        jax.effects_barrier()
        assert len(taken) / 12 < lengths.max() + backends.CPU.block


def step_few(monkeypatch, live_rows, live_parts):
    """Lays out episodes as on a device where so many rows are stepped at a time."""
    layout = backends.CPU._replace(live_rows=live_rows, live_parts=live_parts)
    monkeypatch.setattr(backends, "current", lambda: layout)
    monkeypatch.setattr(stepping, "LEAST_PART", 1)


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(1, (1,)), (63, (63,)), (64, (64, 8)), (255, (255, 31)), (256, (256,)), (257, (256, 32))],
)
def test_rows_left_over_are_stepped_in_parts_unless_that_costs_more(num_rows, expected, laid_out):
    laid_out(backends.CPU)
    assert stepping.widths(num_rows) == expected
    if num_rows >= 256:
        assert stepping.widths(num_rows, alone=False) == (256, 32)
    laid_out(backends.GPU)
    assert stepping.widths(num_rows, alone=False) == stepping.widths(num_rows) == (num_rows,)


@pytest.mark.parametrize("widths", [(4, 1), (8, 4)])
def test_only_live_rows_are_stepped(widths, monkeypatch):
    """At most three rows too many a block: those that fill its last chunk."""
    step_few(monkeypatch, *widths)
    run, taken = counting(num_episodes=64, horizon=200)
    lengths = np.asarray(jax.jit(run)(jax.random.key(0)).mask.sum(1), int)
    jax.effects_barrier()
    blocks = -(-lengths // backends.CPU.block)
    of_rows = backends.CPU.block * blocks.sum()
    filling = backends.CPU.block * 3 * blocks.max()
    assert of_rows <= len(taken) <= of_rows + filling
    assert of_rows + filling < 64 * lengths.max() / 2  # what stepping all of them would take


def test_few_of_many_vmapped_rows_are_stepped_by_themselves(monkeypatch):
    """Those of a run by itself, whatever the others do; all wait for what any of them does."""
    step_few(monkeypatch, 256, 8)
    run, taken = counting(num_episodes=64, horizon=200)
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = np.asarray(jax.jit(jax.vmap(run))(keys, jnp.ones(3)).mask.sum(2), int)
    jax.effects_barrier()
    blocks = -(-lengths.max() // backends.CPU.block)
    live = (lengths[..., None] > backends.CPU.block * np.arange(blocks)).sum(1)  # [3, blocks]
    whole = 64 * (live > 8).any(0)
    parts = 8 * ((live > 0) & (live <= 8)).any(0)
    assert len(taken) == 3 * backends.CPU.block * (whole + parts).sum()
    assert len(taken) < 0.8 * 3 * 64 * lengths.max()  # what stepping all of them would take


@pytest.mark.parametrize("num_calls", [3, (3, 2)])
def test_vmapped_rows_of_one_policy_are_stepped_together(num_calls, monkeypatch):
    """They fill each other's places, so that the cost follows the live steps of all of them."""
    step_few(monkeypatch, 8, 4)
    run, taken = counting(num_episodes=8, horizon=200)
    keys = jax.random.split(jax.random.key(0), num_calls)
    of_all = jax.vmap(run) if keys.ndim == 1 else jax.vmap(jax.vmap(run))
    lengths = np.asarray(jax.jit(of_all)(keys).mask.sum(-1), int)
    jax.effects_barrier()
    blocks = -(-lengths // backends.CPU.block)
    of_rows = backends.CPU.block * blocks.sum()
    assert of_rows <= len(taken) <= of_rows + backends.CPU.block * blocks.max()
    assert len(taken) < 0.6 * lengths.size * lengths.max()  # what call by call would take


def test_vmapped_rows_may_depend_on_anything():
    """On parameters of the environment, given or closed over, and on a policy that closes over."""
    env, env_params, policy, params, _ = roll()
    key, gravity = jax.random.key(3), jnp.array([2.0, 9.8, 40.0])

    def run(key, env_params, scale):
        scaled = lambda params, carry, obs: policy.step(
            jax.tree.map(lambda x: x * scale, params), carry, obs
        )
        acting = policy._replace(step=scaled)
        return rollout.episodes(
            key, env, env_params, acting, params, num_episodes=5, horizon=60
        ).mask.sum(1)

    changed = lambda gravity: env_params.replace(gravity=gravity)
    runs = {
        "given": lambda x: run(key, changed(x), 1.0),
        "closed over": lambda x: run(key, env_params, x),
        "both": lambda x: run(key, changed(x), x),
    }
    for function in runs.values():
        found = jax.jit(jax.vmap(function))(gravity)
        expected = jnp.stack([jax.jit(function)(x) for x in gravity])
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found, axis=0)) > 1


def test_a_rollout_may_be_in_what_is_differentiated():
    """Its values are constants of a surrogate, however it is vmapped."""
    env, env_params, policy, params, _ = roll()

    def surrogate(params, key):
        found = rollout.episodes(
            key, env, env_params, policy, params, num_episodes=3, horizon=20, fields=FIELDS
        )
        found = jax.lax.stop_gradient(found)
        unroll = lambda obs, boundary: policy.unroll(params, (), obs, boundary)
        log_prob = jax.vmap(unroll)(found.obs, found.terminated).log_prob(found.action)
        return jnp.sum(log_prob * found.mask)

    keys = jax.random.split(jax.random.key(6), 2)
    together = jax.jit(jax.vmap(jax.grad(surrogate), (None, 0)))(params, keys)
    for i, key in enumerate(keys):
        alone = jax.jit(jax.grad(surrogate))(params, key)
        own = jax.tree.map(itemgetter(i), together)
        chex.assert_trees_all_close(own, alone, rtol=1e-4, atol=1e-5)
        assert any(np.any(leaf) for leaf in jax.tree.leaves(alone))


def test_what_is_not_traced_stays_as_it_is():
    """Functions and numbers in the parameters, and arrays that an environment makes numbers of."""
    env, env_params, policy, params, expected = roll(num_episodes=2, horizon=5)

    concrete = env_params.replace(max_steps_in_episode=jnp.int32(500))

    class Concrete(type(env)):
        def step_env(self, key, state, action, env_params):
            assert int(env_params.max_steps_in_episode) == 500
            return super().step_env(key, state, action, env_params)

    def step(own, carry, obs):
        params, function, number = own
        assert function is jnp.tanh and number > 0
        return policy.step(params, carry, obs)

    found = jax.jit(
        lambda key: rollout.episodes(
            key,
            Concrete(),
            concrete,
            policy._replace(step=step),
            (params, jnp.tanh, 1),
            num_episodes=2,
            horizon=5,
        )
    )(jax.random.key(0))
    np.testing.assert_allclose(found.obs, expected.obs, rtol=1e-5)


@pytest.mark.parametrize("name", ["CartPole-v1", "Catch-bsuite", "FrozenLake-misc"])
@pytest.mark.parametrize("widths", [(1, 1), (5, 1), (8, 3), (16, 2), (37, 1), (100, 4), (None, 1)])
def test_rows_are_the_same_however_many_are_stepped_at_a_time(name, widths, monkeypatch):
    *_, expected = roll(name, num_episodes=37, horizon=70)
    step_few(monkeypatch, *widths)
    *_, found = roll(name, num_episodes=37, horizon=70)
    for a, b in zip(found, expected, strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_vmapped_equals_looped(parts, monkeypatch):
    step_few(monkeypatch, 8, parts)
    env, env_params, policy, params, _ = roll()
    keys = jax.random.split(jax.random.key(5), 3)
    run = lambda key: rollout.episodes(
        key, env, env_params, policy, params, num_episodes=8, horizon=60
    )
    together = jax.jit(jax.vmap(run))(keys)
    for i, key in enumerate(keys):
        for a, b in zip(together, jax.jit(run)(key), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("widths", [(None, 1), (8, 1), (64, 4)])
@pytest.mark.parametrize("horizon", [1, 20, 23])
def test_rows_are_the_same_however_their_steps_are_stored(horizon, widths, monkeypatch):
    step_few(monkeypatch, *widths)
    found = []
    # Not optimised at all, as tests are compiled, the two are rounded otherwise.
    options = backends.CPU.compiler_options
    for most in (0, 10**6):  # step by step, and by blocks
        monkeypatch.setattr(stepping, "SMALL_RECORD", most)
        found.append(roll(num_episodes=40, horizon=horizon, options=options)[-1])
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("most", [0, 10**6])
@pytest.mark.parametrize("widths", [(None, 1), (8, 1), (64, 4)])
def test_what_an_environment_does_after_its_end_is_not_seen(widths, most, monkeypatch):
    """Ended rows are stepped on until their block is over; here, all that gives is NaN."""
    step_few(monkeypatch, *widths)
    monkeypatch.setattr(stepping, "SMALL_RECORD", most)
    env, env_params, policy, params, expected = roll(num_episodes=40, horizon=60)
    inner = type(env)
    after_end = []

    class Spoilt(inner):
        def step_env(self, key, state, action, env_params):
            over = inner.is_terminated(self, state, env_params)
            jax.debug.callback(lambda over: after_end.append(bool(over)), over)
            out = inner.step_env(self, key, state, action, env_params)
            spoil = lambda x: jnp.where(over, jnp.nan, x) if x.dtype == jnp.float32 else x
            return jax.tree.map(spoil, out)

    run = lambda key: rollout.episodes(
        key, Spoilt(), env_params, policy, params, num_episodes=40, horizon=60
    )
    found = jax.jit(run)(jax.random.key(0))
    jax.effects_barrier()
    assert any(after_end)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_horizon_does_not_change_what_came_before():
    *_, short = roll(horizon=20)
    *_, long = roll(horizon=90)
    np.testing.assert_array_equal(short.action * short.mask, (long.action * long.mask)[:, :20])


def test_actions_and_environment_use_different_keys():
    """Pitfall 18: with one key for both, FrozenLake's slips would follow from the actions."""
    env, env_params = environments.make("SimpleBandit-bsuite")
    policy = policies.memoryless(
        init=lambda key, obs: (), apply=lambda params, obs: distributions.normal(0.0, 1.0)
    )

    class Noise(type(env)):
        def step_env(self, key, state, action, params):
            obs, state, _, terminated, info = super().step_env(key, state, 0, params)
            return obs, state, jax.random.normal(key), terminated, info

        def action_space(self, params=None):
            return environments.make("Pendulum-v1")[0].action_space()

    trajectory = rollout.episodes(
        jax.random.key(0), Noise(), env_params, policy, (), num_episodes=4000, horizon=1
    )
    correlation = np.corrcoef(trajectory.action[:, 0], trajectory.reward[:, 0])[0, 1]
    assert abs(correlation) < 4.5 / 4000**0.5


def test_greedy_takes_the_mode():
    env, env_params, policy, params, _ = roll("Pendulum-v1")
    trajectory = rollout.episodes(
        jax.random.key(0),
        env,
        env_params,
        policies.greedy(policy),
        params,
        num_episodes=2,
        horizon=5,
    )
    mode = policy.unroll(params, (), trajectory.obs[0], jnp.zeros(5, bool)).mode()
    np.testing.assert_allclose(trajectory.action[0], mode, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("widths", [(None, 1), (5, 1), (5, 2)])
def test_what_is_not_asked_for_is_not_kept(widths, monkeypatch):
    step_few(monkeypatch, *widths)
    env, env_params, policy, params, whole = roll()

    def play(fields):
        few = {"num_episodes": 16, "horizon": 100, "fields": fields}
        return rollout.episodes(jax.random.key(0), env, env_params, policy, params, **few)

    for fields in (("mask", "reward"), ("obs", "final_obs"), ("obs",), ()):
        part = jax.jit(play, static_argnums=0)(fields)
        kept = {name for name in rollout.STEP_FIELDS if getattr(part, name) is not None}
        assert kept == set(fields) - {"final_obs"}
        for name in (*fields, "final_obs"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    with pytest.raises(ValueError, match="fields='reward' must be a collection"):
        play("reward")
    with pytest.raises(ValueError, match="fields='rewards' is unknown"):
        play(("rewards",))


@pytest.mark.parametrize("count", ["num_episodes", "horizon"])
def test_bad_input(count):
    with pytest.raises(ValueError, match=f"{count}=0"):
        roll(**{count: 0})


class Odd(environment.Environment):
    """Moves by a tenth a step; how it starts, and what a step gives, are given."""

    def __init__(self, start=(0.0, 0.0), **changes):
        super().__init__()
        self.first, self.changes = jnp.asarray(start), changes

    default_params = environment.EnvParams()

    def reset_env(self, key, params):
        return self.first, environment.EnvState(time=jnp.int32(0))

    def step_env(self, key, state, action, params):
        state = environment.EnvState(time=state.time + 1)
        given = {"obs": jnp.full(2, 0.1) * state.time, "reward": 1.0, "terminated": False}
        given |= self.changes
        return given["obs"], state, given["reward"], given["terminated"], {}

    def is_truncated(self, state, params):
        return self.changes.get("truncated", jnp.bool_(False))

    def is_terminated(self, state, params):
        return jnp.bool_(False)

    def action_space(self, params=None):
        return spaces.Discrete(2)


@pytest.mark.parametrize("rows", ["episodes", "segments"])
@pytest.mark.parametrize(
    ("start", "obs"),
    [(jnp.zeros(2, jnp.int32), None), (jnp.full(2, 0.5), jnp.ones(2, jnp.int32))],
)
def test_observations_have_a_dtype_that_holds_those_of_resets_and_steps(start, obs, rows):
    env = Odd(start, **({} if obs is None else {"obs": obs}))
    policy = policies.memoryless(
        lambda key, obs: (), lambda params, obs: distributions.categorical(jnp.zeros(2))
    )
    key, params = jax.random.key(0), env.default_params
    if rows == "episodes":
        found = rollout.episodes(key, env, params, policy, (), num_episodes=3, horizon=4)
    else:
        carry = rollout.start(key, env, params, policy, num_rows=3)
        found, after = rollout.segments(key, env, params, policy, (), carry, horizon=4)
        chex.assert_trees_all_equal_shapes_and_dtypes(carry, after)
    steps = 0.1 * np.arange(1, 4) if obs is None else np.ones(3)
    expected = np.concatenate([np.ravel(start)[:1], steps])
    assert found.obs.dtype == found.final_obs.dtype == jnp.float32
    np.testing.assert_allclose(found.obs, np.tile(expected[None, :, None], (3, 1, 2)), rtol=1e-6)


def test_restarts_where_resets_and_steps_differ_in_dtype():
    env = Odd(jnp.zeros(2, jnp.int32))
    policy = policies.memoryless(
        lambda key, obs: (), lambda params, obs: distributions.categorical(jnp.zeros(2))
    )
    own = (jax.random.key(0), env, env.default_params, policy, ())
    visits = restarts.visit(*own, jnp.ones(4), num_episodes=9)
    np.testing.assert_allclose(visits.obs[:, 0], 0.1 * visits.time, rtol=1e-6)
    assert visits.obs.dtype == jnp.float32 and len(set(np.asarray(visits.time))) > 1
    left = restarts.continuations(*own, visits, jnp.zeros(9, int), discount=1.0, horizon=4)
    np.testing.assert_array_equal(left, 4 - visits.time)


def test_observations_may_be_numbers_of_python():
    env = Odd(0, obs=3)
    policy = policies.memoryless(
        lambda key, obs: (), lambda params, obs: distributions.categorical(jnp.zeros(2))
    )
    found = rollout.episodes(
        jax.random.key(0), env, env.default_params, policy, (), num_episodes=2, horizon=3
    )
    np.testing.assert_array_equal(found.obs, 2 * [[0, 3, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": jnp.ones(1)}, r"reward of a step in Odd has shape \(1,\), not \(\)"),
        ({"terminated": jnp.zeros(1, bool)}, "terminated of a step in Odd has shape"),
        ({"truncated": jnp.zeros(1, bool)}, "truncated of a step in Odd has shape"),
        ({"obs": jnp.zeros(3)}, r"observations in Odd have shape \(2,\) before and \(3,\) after"),
        ({"obs": jnp.float32(0)}, r"observations in Odd have shape \(2,\) before and \(\) after"),
    ],
)
def test_steps_of_wrong_shapes_are_refused(changes, message):
    env = Odd(**changes)
    policy = policies.memoryless(
        lambda key, obs: (), lambda params, obs: distributions.categorical(jnp.zeros(2))
    )
    play = {"num_episodes": 3, "horizon": 4}
    with pytest.raises(ValueError, match=message):
        rollout.episodes(jax.random.key(0), env, env.default_params, policy, (), **play)


def test_actions_of_another_shape_are_refused():
    env, env_params = environments.make("Pendulum-v1")
    policy = policies.memoryless(
        lambda key, obs: (), lambda params, obs: distributions.normal(jnp.zeros(2), 1.0)
    )
    with pytest.raises(ValueError, match=r"actions have shape \(2,\); Pendulum-v1's \(1,\)"):
        rollout.episodes(jax.random.key(0), env, env_params, policy, (), num_episodes=2, horizon=3)
