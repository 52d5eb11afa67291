"""Persistent rows: windows join up, ends inside a row leak nothing, memory starts afresh."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

from pgjax import distributions, environments, policies, rollout, sharding
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator, psi
from pgjax.gradients import make_steps, trajectory_gradient, values
from pgjax.policies import Policy
from pgjax.rollout import Trajectory

KEY = jax.random.key(0)
HYPER = Hyper(discount=0.5, lambda_=0.7, n=2)
NUM_ROWS, HORIZON, NUM_STATES = 4, 12, 5
FORMS = ("reward_to_go", "td_residual", "n_step", "gae")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def walk():
    """A random walk whose last state is terminal, cut by a time limit; the start never comes back.

    State 0 leads to 1, 2 or 3 and is never entered, so that a 0 is always a reset.
    """
    random = np.random.default_rng(0)
    transition = np.zeros((NUM_STATES, 2, NUM_STATES))
    transition[..., 1:] = random.dirichlet(np.ones(NUM_STATES - 1), size=(NUM_STATES, 2))
    reward = random.normal(size=transition.shape)
    mdp = MDP(transition, reward, np.eye(NUM_STATES)[0], np.arange(NUM_STATES) == NUM_STATES - 1)
    return environments.tabular_mdp(mdp, max_steps=4)


def remembers(logits=lambda params, obs: params[obs]) -> Policy:
    """A policy with memory: logits, by default of a table, times the age of its carry."""

    def step(params, carry, obs):
        return carry + 1, distributions.categorical(logits(params, obs) * (1 + carry))

    def unroll(params, carry, obs, boundary):
        def scan_step(carry, inputs):
            obs, boundary = inputs
            after, distribution = step(params, carry, obs)
            return jnp.where(boundary, 0, after), distribution

        return jax.lax.scan(scan_step, carry, (obs, boundary))[1]

    return Policy(lambda key, obs: None, lambda: jnp.int32(0), step, unroll)


LOGITS = np.random.default_rng(1).normal(size=(NUM_STATES, 2))


POLICIES = {"memoryless": policies.tabular(NUM_STATES, 2), "memory": remembers()}
WALK = walk()


@functools.cache
def _segments(policy, horizon):
    def run(key, env_params, rows):
        params = jnp.asarray(LOGITS)
        return rollout.segments(key, WALK, env_params, policy, params, rows, horizon=horizon)

    return jax.jit(run)


def play(policy, rows, horizon=HORIZON, key=KEY, env_params=None):
    """A window of the walk, and the rows after it."""
    return _segments(policy, horizon)(key, env_params or WALK.default_params, rows)


@functools.cache
def begin(policy, num_rows=NUM_ROWS):
    return rollout.start(jax.random.key(1), WALK, WALK.default_params, policy, num_rows=num_rows)


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


@pytest.fixture
def window(policy):
    """The rows a window started from, in the midst of episodes, the window, and the rows after."""
    _, rows = play(policy, begin(policy))
    return rows, *play(policy, rows)


def test_two_windows_are_one_of_twice_the_length(policy, window):
    rows, whole, after = window
    first, between = play(policy, rows, HORIZON // 2)
    second, last = play(policy, between, HORIZON // 2)
    for field in ("obs", "action", "log_prob", "reward", "terminated", "final_obs", "mask"):
        joined = np.concatenate([getattr(first, field), getattr(second, field)], axis=1)
        np.testing.assert_array_equal(joined, getattr(whole, field))
    inside = [*range(HORIZON // 2 - 1), *range(HORIZON // 2, HORIZON)]
    joined = np.concatenate([first.truncated, second.truncated], axis=1)
    np.testing.assert_array_equal(joined[:, inside], whole.truncated[:, inside])
    assert np.all(first.truncated[:, -1] | first.terminated[:, -1])
    jax.tree.map(np.testing.assert_array_equal, last, after)
    other, _ = play(policy, rows, key=jax.random.key(7))
    assert np.any(other.action != whole.action)


@pytest.mark.parametrize("horizon", [37, 2, 31])
def test_a_window_may_be_of_any_length(horizon, policy):
    """Also a prime one, that blocks do not divide."""
    rows = begin(policy)
    whole, after = play(policy, rows, horizon)
    parts = []
    for length in (horizon - 1, 1):
        part, rows = play(policy, rows, length)
        parts.append(part)
    for field in ("obs", "action", "log_prob", "reward", "terminated", "final_obs"):
        joined = np.concatenate([getattr(part, field) for part in parts], axis=1)
        np.testing.assert_array_equal(joined, getattr(whole, field))
    jax.tree.map(np.testing.assert_array_equal, rows, after)


@pytest.mark.parametrize(("horizon", "blocks"), [(37, {8, 5}), (66, {6}), (7, {7})])
def test_noise_of_a_window_is_made_some_steps_at_a_time(horizon, blocks):
    policy = POLICIES["memoryless"]
    program = _segments(policy, horizon).trace(KEY, WALK.default_params, begin(policy))
    noise = re.findall(rf"f64\[(\d+),{NUM_ROWS},2\]", str(program.jaxpr))
    assert {int(steps) for steps in noise} - {1} == blocks


def test_rows_go_on_where_they_end_and_nowhere_else(window):
    """Everywhere live; after an end comes a start; the true next observation never is one."""
    _, window, after = window
    ends = np.array(window.terminated | window.truncated)
    assert np.all(window.mask == 1) and np.all(window.final_obs != 0)
    assert np.all(window.terminated == (window.final_obs == NUM_STATES - 1))
    following = np.concatenate([window.obs[:, 1:], after.obs[:, None]], axis=1)
    began = following == 0
    np.testing.assert_array_equal(began[:, :-1], ends[:, :-1])
    np.testing.assert_array_equal(following[~began], np.asarray(window.final_obs)[~began])
    assert ends[:, :-1].sum() > NUM_ROWS and np.any(window.truncated[:, :-1])
    np.testing.assert_array_equal(after.elapsed == 0, began[:, -1])
    assert after.time == 2 * HORIZON


def test_log_prob_is_of_the_policy_with_its_memory_at_the_start_of_the_window(policy, window):
    rows, window, _ = window
    boundary = window.terminated | window.truncated
    unroll = jax.vmap(policy.unroll, (None, 0, 0, 0))
    distribution = unroll(jnp.asarray(LOGITS), rows.policy_state, window.obs, boundary)
    log_prob = distribution.log_prob(window.action)
    np.testing.assert_allclose(log_prob, window.log_prob, atol=1e-12)
    if jax.tree.leaves(rows.policy_state):  # the memory matters, and so does forgetting it
        assert np.any(rows.policy_state > 0)
        for state, ends in [(0 * rows.policy_state, boundary), (rows.policy_state, 0 * boundary)]:
            wrong = unroll(jnp.asarray(LOGITS), state, window.obs, ends).log_prob(window.action)
            assert np.abs(wrong - window.log_prob).max() > 0.1


def cut(window: Trajectory, policy_state):
    """Every episode of a window in a row of its own, padded to the window's length.

    With the policy's memory at the start of each: that of the row, or none after an end.
    """
    ends = np.asarray(window.terminated | window.truncated)
    pieces = []
    for row, column in np.argwhere(ends):
        before = np.flatnonzero(ends[row, :column])
        pieces.append((row, slice(before[-1] + 1 if len(before) else 0, column + 1)))

    def rows(x):
        out = np.zeros((len(pieces), HORIZON, *np.shape(x)[2:]), np.asarray(x).dtype)
        for index, (row, steps) in enumerate(pieces):
            out[index, : steps.stop - steps.start] = x[row, steps]
        return jnp.asarray(out)

    parts = jax.tree.map(rows, window._replace(final_obs=None))
    last = jnp.asarray([window.final_obs[row, steps.stop - 1] for row, steps in pieces])
    own = lambda x: jnp.asarray([x[row] * (steps.start == 0) for row, steps in pieces])
    return parts._replace(final_obs=last), jax.tree.map(own, policy_state)


VALUE = policies.tabular_value(NUM_STATES)


@functools.cache
def _gradients(policy):
    """Of all forms in one program."""

    def compute(window, policy_state, table):
        v, next_v = values(VALUE, table, window, chunk_size=5)
        return {
            form: trajectory_gradient(
                jnp.asarray(LOGITS),
                window,
                policy=policy,
                estimator=estimator(form, "none"),
                hyper=HYPER,
                value=v,
                next_value=next_v,
                policy_state=policy_state,
                chunk_size=24,
            )
            for form in FORMS
        }

    return jax.jit(compute)


def gradient(policy, window, form, table, policy_state=()):
    return _gradients(policy)(window, policy_state, table)[form]


TABLE = jnp.asarray(np.random.default_rng(2).normal(size=NUM_STATES))


@pytest.mark.parametrize("form", FORMS)
def test_08_episodes_in_a_row_equal_rows_of_their_own(policy, window, form):
    rows, window, _ = window
    apart, states = cut(window, rows.policy_state)
    share = len(apart.mask) / NUM_ROWS  # a mean over rows counts each of more rows for less
    expected = share * gradient(policy, apart, form, TABLE, states)
    together = gradient(policy, window, form, TABLE, rows.policy_state)
    np.testing.assert_allclose(together, expected, atol=1e-12)
    nothing = jnp.zeros_like(window.truncated)
    leaking = window._replace(truncated=nothing, terminated=nothing)
    wrong = gradient(policy, leaking, form, TABLE, rows.policy_state)
    assert np.abs(wrong - expected).max() > 1e-2


@pytest.mark.parametrize("form", FORMS[1:])
def test_09_the_value_of_a_reset_observation_changes_only_its_own_step(form):
    """V(reset) = 1e6 is V(s_t) of first steps, and the value of nothing that came before."""
    policy = POLICIES["memoryless"]
    window, _ = play(policy, begin(policy))

    def weights(table, window):
        steps = make_steps(estimator(form, "none"), window, *values(VALUE, table, window))
        return psi(estimator(form, "none"), steps, HYPER)

    before, after = weights(TABLE, window), weights(TABLE.at[0].set(1e6), window)
    elsewhere = np.asarray(window.obs) != 0
    np.testing.assert_array_equal(np.asarray(before)[elsewhere], np.asarray(after)[elsewhere])
    # Bootstraps from what stands next in the row.
    careless = window._replace(final_obs=window.final_obs[:, -1])
    wrong = weights(TABLE.at[0].set(1e6), careless)
    assert np.abs(np.asarray(before - wrong)[elsewhere]).max() > 1e3


@pytest.mark.parametrize("form", ["td_residual", "gae"])
def test_10_truncation_is_not_termination(form):
    """V = c and r = (1 - gamma) c give no advantage anywhere, unless an end is a natural one."""
    policy, env_params = POLICIES["memoryless"], WALK.default_params
    env_params = env_params.replace(
        reward=jnp.full_like(env_params.reward, 0.5 * 3.0),
        terminal=jnp.zeros(NUM_STATES, bool),
    )
    window, _ = play(policy, begin(policy), env_params=env_params)
    assert np.any(window.truncated[:, :-1])
    constant = jnp.full(NUM_STATES, 3.0)
    np.testing.assert_allclose(gradient(policy, window, form, constant), 0, atol=1e-12)
    natural = window._replace(terminated=window.truncated)
    assert np.abs(gradient(policy, natural, form, constant)).max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_11_terminated_wins(form):
    """An end that is natural and at the time limit is natural: no value follows it."""
    policy = POLICIES["memoryless"]
    window, _ = play(policy, begin(policy, 32))
    both = np.asarray(window.terminated & window.truncated)
    assert both.any()
    once = window._replace(truncated=window.truncated & ~window.terminated)
    tables = TABLE, TABLE.at[NUM_STATES - 1].set(1e6)
    gradients = [gradient(policy, w, form, table) for w in (window, once) for table in tables]
    for other in gradients[1:]:
        np.testing.assert_array_equal(gradients[0], other)
    cut_only = window._replace(terminated=window.terminated & ~window.truncated)
    changed = np.abs(gradient(policy, cut_only, form, TABLE) - gradients[0]).max() > 1e-3
    assert changed == (form != "reward_to_go")


def test_an_episode_may_end_by_nature_and_at_the_time_limit_at_once():
    play = partial(rollout.episodes, num_episodes=32, horizon=9)
    policy, params = POLICIES["memoryless"], jnp.asarray(LOGITS)
    trajectory = jax.jit(lambda: play(KEY, WALK, WALK.default_params, policy, params))()
    last = np.asarray(trajectory.mask.sum(1), int) - 1
    both = trajectory.terminated & trajectory.truncated
    assert 0 < both.sum() < 32 and set(last[np.any(both, axis=1)]) == {3}
    ends = np.asarray(trajectory.terminated | trajectory.truncated)
    np.testing.assert_array_equal(ends, np.arange(9) == last[:, None])
    natural = np.asarray(trajectory.final_obs) == NUM_STATES - 1
    np.testing.assert_array_equal(np.any(trajectory.terminated, axis=1), natural)


def test_windows_can_be_vmapped_and_compile_once():
    policy, env_params = POLICIES["memoryless"], WALK.default_params
    keys = jax.random.split(KEY, 3)
    begin = lambda key: rollout.start(key, WALK, env_params, policy, num_rows=NUM_ROWS)
    step = jax.jit(
        jax.vmap(
            lambda key, rows: rollout.segments(
                key, WALK, env_params, policy, jnp.asarray(LOGITS), rows, horizon=HORIZON
            )
        )
    )
    window, rows = step(keys, jax.vmap(begin)(keys))
    step(keys, rows)
    assert step._cache_size() == 1
    expected, _ = play(policy, begin(keys[1]), key=keys[1])
    np.testing.assert_array_equal(window.action[1], expected.action)


def test_runs_where_steps_and_resets_differ_in_dtype():
    """Pendulum: continuous actions, and the time limit of the environment's own."""
    env, env_params = environments.make("Pendulum-v1", max_steps_in_episode=5)
    policy = policies.make("linear", env, env_params)
    params = policy.init(KEY, jnp.zeros(3))
    rows = rollout.start(KEY, env, env_params, policy, num_rows=2)
    run = lambda rows: rollout.segments(KEY, env, env_params, policy, params, rows, horizon=12)
    window, rows = jax.jit(run)(rows)
    assert np.all(np.isfinite(window.obs))
    np.testing.assert_array_equal(np.flatnonzero(window.truncated[0]), [4, 9, 11])
    np.testing.assert_array_equal(rows.elapsed, 2)


@pytest.mark.parametrize(
    "fields", [("mask", "reward"), ("obs", "truncated"), ("final_obs",), ()], ids=str
)
def test_what_is_not_asked_for_is_not_kept(fields):
    policy = POLICIES["memoryless"]
    rows = begin(policy)
    whole, after = play(policy, rows)
    run = partial(rollout.segments, env=WALK, env_params=WALK.default_params, policy=policy)
    run = jax.jit(partial(run, params=jnp.asarray(LOGITS), horizon=HORIZON, fields=fields))
    part, same = run(KEY, carry=rows)
    assert {name for name in Trajectory._fields if getattr(part, name) is not None} == {*fields}
    for name in fields:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_bad_input():
    policy = POLICIES["memoryless"]
    with pytest.raises(ValueError, match="num_rows=0"):
        rollout.start(KEY, WALK, WALK.default_params, policy, num_rows=0)
    with pytest.raises(ValueError, match="horizon=0"):
        play(policy, begin(policy), horizon=0)
    few = {"horizon": 1, "fields": ["rewards"]}
    with pytest.raises(ValueError, match="fields='rewards' is unknown"):
        rollout.segments(KEY, WALK, WALK.default_params, policy, (), begin(policy), **few)
    few["fields"] = "obs"
    with pytest.raises(ValueError, match="fields='obs' must be a collection"):
        rollout.segments(KEY, WALK, WALK.default_params, policy, (), begin(policy), **few)


@pytest.mark.parametrize("mesh", [None, sharding.mesh(jax.devices()[:1])], ids=["plain", "mesh"])
def test_what_is_not_traced_stays_as_it_is(mesh):
    """Functions and numbers in the parameters, and numbers that an environment's reset reads."""
    env, env_params = environments.make("CartPole-v1")
    table = policies.make("linear", env, env_params)

    class Concrete(type(env)):
        def reset_env(self, key, env_params):
            assert int(env_params.max_steps_in_episode) == 3
            return super().reset_env(key, env_params)

    def step(own, carry, obs):
        params, function, number = own
        assert function is jnp.tanh and number > 0
        return table.step(params, carry, obs)

    params = (table.init(KEY, jnp.zeros(4)), jnp.tanh, 1)
    policy, env_params = table._replace(step=step), env_params.replace(max_steps_in_episode=3)

    def run(env, policy, params):
        rows = rollout.start(KEY, env, env_params, policy, num_rows=2)
        return rollout.segments(KEY, env, env_params, policy, params, rows, horizon=8, mesh=mesh)[0]

    found = jax.jit(lambda: run(Concrete(), policy, params))()
    expected = jax.jit(lambda: run(env, table, params[0]))()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Widening(environment.Environment):
    """A whole number at first, and a fraction after a step."""

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=3)

    def reset_env(self, key, params):
        return jnp.int8(0), environment.EnvState(time=jnp.int32(0))

    def step_env(self, key, state, action, params):
        after = environment.EnvState(time=state.time + 0.5)
        return after.time.astype(jnp.float32), after, 1.0, after.time > 2, {}

    def is_terminated(self, state, params):
        return state.time > 2

    def action_space(self, params=None):
        return spaces.Discrete(2)


def test_windows_can_be_scanned_where_a_step_changes_a_dtype():
    env, policy = Widening(), POLICIES["memoryless"]
    policy = policies.memoryless(policy.init, lambda params, obs: distributions.categorical(params))
    env_params, params = env.default_params, jnp.zeros(2)
    rows = rollout.start(KEY, env, env_params, policy, num_rows=2)

    def window(rows, _):
        trajectory, rows = rollout.segments(KEY, env, env_params, policy, params, rows, horizon=4)
        return rows, trajectory.obs

    _, obs = jax.lax.scan(window, rows, None, length=2)
    joined = jnp.moveaxis(obs, 0, 1).reshape(2, 8)
    np.testing.assert_array_equal(joined, 2 * [[0, 0.5, 1, 1.5, 2, 0, 0.5, 1]])


def test_windows_can_be_vmapped_over_what_a_memory_and_an_environment_start_from():
    """Also where nothing else is vmapped: what is closed over is an argument to JAX's rules."""
    policy, env_params = POLICIES["memory"], WALK.default_params

    def run(first, start):
        remembering = policy._replace(initial_state=lambda: first)
        env = walk()
        reset = env.reset_env
        moved = lambda key, env_params: (start, reset(key, env_params)[1].replace(index=start))
        env.reset_env = moved
        rows = rollout.start(KEY, env, env_params, remembering, num_rows=NUM_ROWS)
        window, rows = rollout.segments(
            KEY, env, env_params, remembering, jnp.asarray(LOGITS), rows, horizon=HORIZON
        )
        return window, rows

    first, start = jnp.array([0, 3, 5], jnp.int32), jnp.array([0, 1, 2], jnp.int32)
    found = jax.jit(jax.vmap(run))(first, start)
    assert len(np.unique(found[0].obs[:, :, 0])) == 3
    for index in range(3):
        expected = jax.jit(run)(first[index], start[index])
        own = jax.tree.map(lambda x, index=index: x[index], found)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), own, expected)
