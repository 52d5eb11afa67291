"""`policy_gradient`: parts, metrics, memory, compile count, refusals, learning on probes."""

import contextlib
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax import chunks, environments, estimators, gradients, policies, rollout, train
from pgjax.environments import MDP
from pgjax.estimators import Hyper, estimator
from pgjax.gradients.samples import Selection, Term, accumulate

from .test_segments import LOGITS, remembers, walk

KEY = jax.random.key(0)


def cartpole(form="reward_to_go", baseline="leave_one_out", hyper=Hyper(1.0), **kwargs):
    """A gradient function, parameters for it, and what made them."""
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(16,))
    chosen = estimator(form, baseline)
    value = None
    obs = jnp.zeros(4)
    params = policy.init(KEY, obs)
    if estimators.needs_value(chosen):
        value = policies.make_value("mlp", env, env_params, hidden=(16,))
        params = {"policy": params, "value": value.init(jax.random.key(1), obs)}
    arguments = {"num_episodes": 32, "horizon": 60, "value_function": value} | kwargs
    gradient_fn = gradients.policy_gradient(env, env_params, policy, chosen, hyper, **arguments)
    return gradient_fn, params, (env, env_params, policy, value, chosen)


def roll(env, env_params, policy, params, num_episodes, horizon):
    run = lambda params: rollout.episodes(
        KEY, env, env_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    return jax.jit(run)(params)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_is_the_trajectory_gradient_of_its_episodes():
    gradient_fn, params, (env, env_params, policy, _, chosen) = cartpole(hyper=Hyper(0.9))
    params = jax.tree.map(lambda x: 100 * x, params)
    gradient, metrics = jax.jit(gradient_fn)(KEY, params)
    trajectory = roll(env, env_params, policy, params, 32, 60)
    expected = jax.jit(
        lambda params: gradients.trajectory_gradient(
            params, trajectory, policy=policy, estimator=chosen, hyper=Hyper(0.9)
        )
    )(params)
    assert_trees_close(gradient, expected, rtol=1e-3, atol=1e-5)
    reward, mask, log_prob = trajectory.reward, trajectory.mask, trajectory.log_prob
    told = {
        "return": reward.sum(1).mean(),
        "discounted_return": (reward @ 0.9 ** jnp.arange(60)).mean(),
        "episode_length": mask.sum(1).mean(),
        "env_steps": mask.sum(),
        "live_fraction": mask.mean(),
        "entropy": -log_prob.sum(where=mask > 0) / mask.sum(),
    }
    assert_trees_close(metrics, told, rtol=1e-5)
    assert told["entropy"] < 0.9 * np.log(2) and len({*map(float, told.values())}) == 5


def test_the_entropy_of_a_policy_with_memory_is_that_of_its_live_steps():
    env, policy, params = walk(), remembers(), jnp.asarray(LOGITS)
    of_walk = env, env.default_params, policy
    gradient_fn = gradients.policy_gradient(
        *of_walk, estimator(), Hyper(), num_episodes=16, horizon=20
    )
    _, metrics = jax.jit(gradient_fn)(KEY, params)
    trajectory = roll(*of_walk, params, 16, 20)
    live = trajectory.mask > 0
    assert 0.1 < metrics["live_fraction"] < 0.9
    np.testing.assert_allclose(metrics["entropy"], -trajectory.log_prob[live].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "baseline"),
    sorted(
        set(itertools.product(estimators.FORMS, estimators.BASELINES)) - {("total_return", "value")}
    ),
)
def test_every_pair_gives_a_finite_gradient(form, baseline):
    gradient_fn, params, _ = cartpole(form, baseline, num_episodes=4, horizon=10)
    gradient, metrics = jax.jit(gradient_fn)(KEY, params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    for leaf in jax.tree.leaves((gradient, metrics)):
        assert jnp.all(jnp.isfinite(leaf))


def test_policy_part_does_not_differentiate_the_values():
    """Pitfall 12: scaling the value loss away leaves no gradient in the value's parameters."""
    gradient_fn, params, (env, env_params, policy, value, chosen) = cartpole("gae", "value")

    def policy_part(value_params):
        trajectory = roll(env, env_params, policy, params["policy"], 4, 8)
        v, next_v = gradients.values(value, value_params, trajectory)
        steps = gradients.make_steps(chosen, trajectory, v, next_v)
        return jnp.sum(estimators.psi(chosen, steps, Hyper()))

    direct = jax.jvp(policy_part, (params["value"],), (params["value"],))[1]
    assert direct == 0


def test_value_part_descends_its_own_loss():
    gradient_fn, params, (env, env_params, policy, value, chosen) = cartpole(
        "reward_to_go", "value", hyper=Hyper(0.9)
    )
    gradient, metrics = jax.jit(gradient_fn)(KEY, params)
    trajectory = roll(env, env_params, policy, params["policy"], 32, 60)
    target = _rewards_to_go(trajectory.reward, 0.9)

    def loss(value_params):
        v = jax.vmap(jax.vmap(value.apply, (None, 0)), (None, 0))(value_params, trajectory.obs)
        return 0.5 * jnp.sum(trajectory.mask * (v - target) ** 2) / trajectory.mask.sum()

    np.testing.assert_allclose(metrics["value_loss"], loss(params["value"]), rtol=1e-4)
    uphill = jax.tree.map(jnp.negative, jax.jit(jax.grad(loss))(params["value"]))
    assert_trees_close(gradient["value"], uphill, rtol=1e-3, atol=1e-5)


def _rewards_to_go(reward, discount):
    reward = np.asarray(reward, np.float64)
    out, running = np.zeros_like(reward), np.zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        running = reward[:, t] + discount * running
        out[:, t] = running
    return out.astype(np.float32)


def test_next_value_of_the_last_step_is_that_of_the_final_observation():
    """Pitfalls 9 and 10: never the value of a reset observation or of a padded one."""
    *_, (env, env_params, policy, _, _) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 8, 30)
    total = policies.ValueFunction(init=None, apply=lambda params, obs: jnp.sum(obs) + 7.0)
    value, next_value = jax.jit(lambda t: gradients.values(total, (), t, chunk_size=5))(trajectory)
    expected = np.where(trajectory.mask, trajectory.obs.sum(-1) + 7.0, 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for row, length in enumerate(np.asarray(trajectory.mask.sum(1), int)):
        following = [*np.asarray(trajectory.obs[row, 1:length]), trajectory.final_obs[row]]
        np.testing.assert_allclose(
            next_value[row, :length], np.sum(following, axis=-1) + 7.0, rtol=1e-4, atol=1e-5
        )
        assert np.all(next_value[row, length:] == 0)


@pytest.mark.parametrize("form", ["reward_to_go", "total_return"])
def test_entropy_bonus_is_the_gradient_of_the_entropy(form):
    """With zero rewards only the bonus is left: sum over live steps of grad H, mean over rows."""
    *_, (env, env_params, policy, _, chosen) = cartpole(form)
    params = jax.tree.map(lambda x: x + 0.3, policy.init(KEY, jnp.zeros(4)))
    trajectory = roll(env, env_params, policy, params, 6, 20)
    trajectory = trajectory._replace(reward=jnp.zeros_like(trajectory.reward))
    hyper = Hyper(0.9, entropy_cost=0.5)
    gradient = jax.jit(
        lambda params: gradients.trajectory_gradient(
            params, trajectory, policy=policy, estimator=chosen, hyper=hyper, chunk_size=16
        )
    )(params)

    def bonus(params):
        entropy = lambda obs: policy.step(params, (), obs)[1].entropy()
        entropies = jax.vmap(jax.vmap(entropy))(trajectory.obs)
        weight = trajectory.mask * (0.9 ** jnp.arange(20))[None]
        return 0.5 * jnp.sum(weight * entropies) / 6

    assert_trees_close(gradient, jax.jit(jax.grad(bonus))(params), rtol=1e-3, atol=1e-6)


def test_rows_that_were_never_live_do_not_count():
    """Whatever stands in them, NaN observations and values after a natural end included."""
    *_, (env, env_params, policy, _, chosen) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 5, 40)
    value = jnp.where(trajectory.terminated, jnp.nan, trajectory.mask)

    @jax.jit
    def gradient(trajectory):
        return gradients.trajectory_gradient(
            params,
            trajectory,
            policy=policy,
            estimator=estimator("gae", "none"),
            hyper=Hyper(),
            value=trajectory.mask,
            next_value=value,
        )

    whole = gradient(trajectory)
    dead = trajectory._replace(
        obs=trajectory.obs.at[0].set(jnp.nan), mask=trajectory.mask.at[0].set(0)
    )
    rest = gradient(dead)
    own = gradient(trajectory._replace(mask=trajectory.mask.at[1:].set(0)))
    assert_trees_close(jax.tree.map(jnp.add, rest, own), whole, rtol=1e-4, atol=1e-6)


def test_numpy_trajectories_are_welcome():
    *_, (env, env_params, policy, _, chosen) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 4, 10)
    options = {"policy": policy, "estimator": chosen, "hyper": Hyper()}
    gradient = gradients.trajectory_gradient(params, trajectory, **options)
    as_numpy = jax.tree.map(np.asarray, trajectory)
    assert_trees_close(
        gradients.trajectory_gradient(params, as_numpy, **options), gradient, rtol=1e-6
    )


def test_rewards_may_be_integers():
    """An entropy bonus weighs its steps by gamma^t all the same."""
    *_, (env, env_params, policy, _, chosen) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 4, 10)
    options = {"policy": policy, "estimator": chosen, "hyper": Hyper(entropy_cost=0.5)}
    gradient = gradients.trajectory_gradient(params, trajectory, **options)
    counted = trajectory._replace(reward=trajectory.reward.astype(jnp.int32))
    assert_trees_close(gradients.trajectory_gradient(params, counted, **options), gradient)


def test_hyperparameters_can_be_vmapped():
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("linear", env, env_params)
    params = policy.init(KEY, jnp.zeros(4))

    def gradient(discount, entropy_cost):
        hyper = Hyper(discount=discount, entropy_cost=entropy_cost)
        gradient_fn = gradients.policy_gradient(
            env, env_params, policy, estimator(), hyper, num_episodes=8, horizon=20
        )
        return gradient_fn(KEY, params)[0]

    rates, costs = jnp.array([0.5, 1.0]), jnp.array([0.0, 0.1])
    gradient = jax.jit(gradient)
    together = jax.jit(jax.vmap(gradient))(rates, costs)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_trees_close(one, gradient(rates[i], costs[i]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", ["episodes", "segments"])
def test_a_policy_may_close_over_what_is_vmapped(rows):
    walk_env, params = walk(), jnp.asarray(LOGITS)
    temperatures = jnp.array([0.5, 1.0, 4.0])

    def gradient(temperature):
        table = policies.tabular(*LOGITS.shape)
        apply = lambda params, obs: table.step(params / temperature, (), obs)[1]
        policy = policies.memoryless(table.init, apply)
        common = (walk_env, walk_env.default_params, policy)
        if rows == "episodes":
            gradient_fn = gradients.policy_gradient(
                *common, estimator(), Hyper(0.9), num_episodes=8, horizon=4
            )
            return gradient_fn(KEY, params)[0]
        value = policies.tabular_value(len(LOGITS))
        both = {"policy": params, "value": value.init(KEY, 0)}
        segment = gradients.segment_gradient(
            *(*common, estimator("gae", "none", "uniform"), Hyper(0.9)),
            num_rows=8,
            horizon=4,
            value_function=value,
        )
        return segment.step(KEY, both, segment.init(KEY, both))[0]["policy"]

    found = jax.jit(jax.vmap(gradient))(temperatures)
    expected = jnp.stack([jax.jit(gradient)(temperature) for temperature in temperatures])
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_values_after_the_last_steps_of_very_many_episodes_take_little_memory():
    """Activations of all final observations would take 34 MB."""
    value = policies.mlp_value(hidden=(256, 256))
    params = value.init(KEY, jnp.zeros(4))
    num, horizon = 2**14, 2
    flags = jnp.zeros((num, horizon), bool)
    trajectory = rollout.Trajectory(
        obs=jnp.zeros((num, horizon, 4)),
        action=None,
        log_prob=None,
        reward=jnp.zeros((num, horizon)),
        terminated=flags,
        truncated=flags,
        mask=jnp.ones((num, horizon)),
        final_obs=jnp.zeros((num, 4)),
    )

    def temporary_bytes(chunk_size):
        run = jax.jit(lambda trajectory: gradients.values(value, params, trajectory, chunk_size))
        return run.lower(trajectory).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(512) < 4e6
    assert temporary_bytes(num) > 16e6


def test_there_is_no_derivative_in_reverse_mode():
    gradient_fn, params, _ = cartpole(num_episodes=2, horizon=3)
    total = lambda params: sum(map(jnp.sum, jax.tree.leaves(gradient_fn(KEY, params)[0])))
    with pytest.raises(ValueError, match="reverse-mode"):
        jax.grad(total)(params)


def test_fields_that_are_missing_are_named():
    *_, (env, env_params, policy, _, chosen) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 2, 3)
    use = {"policy": policy, "estimator": chosen, "hyper": Hyper()}
    for make in (gradients.trajectory_gradient, gradients.squared_norms):
        with pytest.raises(ValueError, match="trajectory.terminated is missing"):
            make(params, trajectory._replace(terminated=None), **use)
    total = policies.ValueFunction(init=None, apply=lambda params, obs: jnp.sum(obs))
    with pytest.raises(ValueError, match="trajectory.final_obs is missing"):
        gradients.values(total, (), trajectory._replace(final_obs=None))


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("reward", lambda x: x[:, :2]),
        ("reward", lambda x: x[0]),
        ("terminated", lambda x: x[:1]),
        ("obs", lambda x: x[:, :2]),
        ("action", lambda x: x[:1]),
        ("value", lambda x: x[:, :2]),
        ("next_value", lambda x: x[..., None]),
    ],
)
def test_what_does_not_fit_the_mask_is_named(name, cut):
    *_, (env, env_params, policy, _, chosen) = cartpole()
    params = policy.init(KEY, jnp.zeros(4))
    trajectory = roll(env, env_params, policy, params, 2, 3)
    values = {"value": jnp.ones((2, 3)), "next_value": jnp.ones((2, 3))}
    use = {"policy": policy, "estimator": chosen, "hyper": Hyper()}
    gradients.trajectory_gradient(params, trajectory, **use, **values)
    if name in values:
        values[name] = cut(values[name])
    else:
        trajectory = trajectory._replace(**{name: cut(getattr(trajectory, name))})
    with pytest.raises(ValueError, match=f"{name} has shape .* the mask has .2, 3."):
        gradients.trajectory_gradient(params, trajectory, **use, **values)


def test_a_value_must_be_a_number():
    """An axis of one would be broadcast, against the targets, to a square of errors."""
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("linear", env, env_params)
    column = policies.ValueFunction(lambda key, obs: jnp.zeros((4, 1)), lambda w, obs: obs @ w)
    params = {"policy": policy.init(KEY, jnp.zeros(4)), "value": column.init(KEY, jnp.zeros(4))}
    gradient_fn = gradients.policy_gradient(
        env,
        env_params,
        policy,
        estimator("gae", "value"),
        Hyper(),
        num_episodes=4,
        horizon=5,
        value_function=column,
    )
    with pytest.raises(ValueError, match=r"value of an observation has shape \(1,\), not \(\)"):
        gradient_fn(KEY, params)


def test_peak_memory_does_not_grow_with_the_network_times_the_steps():
    """Activations of 64k samples through 2 x 256 units would take over 100 MB."""
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(256, 256))
    params = policy.init(KEY, jnp.zeros(4))

    def temporary_bytes(chunk_size):
        gradient_fn = gradients.policy_gradient(
            env,
            env_params,
            policy,
            estimator(),
            Hyper(),
            num_episodes=256,
            horizon=256,
            chunk_size=chunk_size,
        )
        analysis = jax.jit(gradient_fn).lower(KEY, params).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary_bytes(1024) < 20e6
    assert temporary_bytes(256 * 256) > 100e6


@pytest.mark.parametrize(
    ("rows", "form", "baseline", "most"),
    [("episodes", "reward_to_go", "leave_one_out", 1.2), ("segments", "gae", "value", 1.4)],
)
def test_an_update_needs_little_beside_its_trajectory(rows, form, baseline, most, monkeypatch):
    """What it makes of whole batches; live samples are looked for a slab at a time."""
    num, horizon = 2**14, 128
    make, shape = gradients.segment_gradient, {"num_rows": num}
    if rows == "episodes":
        make, shape = gradients.policy_gradient, {"num_episodes": num}
    _, params, (env, env_params, policy, value, _) = cartpole(form, baseline)
    gradient_fn = make(
        *(env, env_params, policy, estimator(form, baseline, "uniform"), Hyper()),
        **shape,
        horizon=horizon,
        value_function=value,
    )
    optimizer = optax.adam(1e-2)

    def times_the_trajectory():
        state = jax.eval_shape(lambda key: train.init(key, params, optimizer, gradient_fn), KEY)
        step = jax.jit(lambda key, state: train.step(key, state, gradient_fn, optimizer))
        analysis = step.lower(KEY, state).compile().memory_analysis()
        # obs, action, log_prob, reward and mask; two flags; observations after each step
        bytes_of_step = 4 * (4 + 1 + 1 + 1 + 1) + 2 + (16 if rows == "segments" else 0)
        return analysis.temp_size_in_bytes / (num * horizon * bytes_of_step)

    assert 1 < times_the_trajectory() < most
    monkeypatch.setattr(chunks, "SEARCHED", 10**6)
    assert times_the_trajectory() > most


def test_params_without_a_value_are_refused():
    gradient_fn, params, _ = cartpole("gae", "value")
    with pytest.raises(ValueError, match="params with a value function must be"):
        gradient_fn(KEY, params["policy"])


def test_a_sum_over_very_many_chunks_is_not_worn_away():
    """One after the other, a hundred thousand tenths in float32 make 9998.6."""
    live = Selection(jnp.ones(10**5, bool), 1)
    tenths = jnp.full(10**5, 0.1)
    sum_of = lambda x, valid: jnp.sum(valid * x)
    (total,) = accumulate(live, Term(sum_of, tenths, like=jnp.zeros(())))
    np.testing.assert_allclose(total, 1e4, rtol=2e-7)


def test_second_call_does_not_compile_again():
    gradient_fn, params, _ = cartpole("gae", "value")
    optimizer = optax.adam(1e-2)
    step = jax.jit(lambda key, state: train.step(key, state, gradient_fn, optimizer))
    state = train.init(KEY, params, optimizer)
    state, _ = step(KEY, state)
    with _count_compilations() as count:
        for seed in range(2):
            state, _ = step(jax.random.fold_in(KEY, seed), state)
        assert count() == 0
        jax.jit(lambda x: x + 1)(jnp.zeros(3))
        assert count() > 0  # the counter does count


def constructors():
    """Every gradient with a value function, of the random walk."""
    env, env_params = walk(), walk().default_params
    policy, value = policies.tabular(5, 2), policies.tabular_value(5)
    common, batch = (env, env_params, policy), {"num_episodes": 4, "horizon": 4}
    window = {"num_rows": 4, "horizon": 4, "value_function": value}
    chosen, hyper = estimator("gae", "value", "uniform"), Hyper(0.9)
    action_value = policies.tabular_value(5, num_actions=2)
    return {
        "policy": gradients.policy_gradient(*common, chosen, hyper, **batch, value_function=value),
        "natural": gradients.natural_gradient(
            *common, chosen, hyper, **batch, value_function=value, damping=0.1
        ),
        "segment": gradients.segment_gradient(*common, chosen, hyper, **window),
        "average reward": gradients.average_reward_gradient(
            *common, chosen, Hyper(1.0), **window, renewal=True
        ),
        "all action": gradients.all_action_gradient(
            *common, hyper, **batch, action_value_function=action_value
        ),
    }


@pytest.mark.parametrize("name", ["policy", "natural", "segment", "average reward", "all action"])
def test_a_gradient_has_the_types_of_its_params_and_moments_can_be_kept(name):
    with jax.enable_x64(True):
        gradient_fn, optimizer = constructors()[name], optax.adam(0.1)
        value = jnp.zeros((5, 2) if name == "all action" else 5, jnp.float32)
        params = {"policy": jnp.zeros((5, 2), jnp.float32), "value": value}
        state = train.init(KEY, params, optimizer, gradient_fn)
        state, _ = train.train(KEY, state, gradient_fn, optimizer, num_steps=2)
        assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
        assert all(np.any(x != 0) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("dtype", [jnp.float32, bool, jnp.int32])
def test_a_mask_may_be_of_any_type(dtype):
    """And all else in single precision, as it was saved, where double precision is the default."""
    with jax.enable_x64(True):
        env, policy, params = walk(), policies.tabular(5, 2), jnp.asarray(LOGITS)
        trajectory = roll(env, env.default_params, policy, params, 8, 4)
        choices = {"policy": policy, "estimator": estimator(), "hyper": Hyper(0.9)}
        expected = gradients.trajectory_gradient(params, trajectory, **choices)
        narrow = lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x
        saved = jax.tree.map(narrow, trajectory)
        saved = saved._replace(mask=trajectory.mask.astype(dtype))
        found = gradients.trajectory_gradient(narrow(params), saved, **choices)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert found.dtype == jnp.float32


@contextlib.contextmanager
def _count_compilations():
    """Counts XLA compilations while it is open."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles():
            yield lambda: sum("XLA compilation" in r.getMessage() for r in records)
    finally:
        logging.getLogger("jax").removeHandler(handler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_episodes": 0}, "num_episodes=0"),
        ({"num_episodes": -3}, "num_episodes=-3"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_episodes": 2**20, "horizon": 2**11}, "must be below 2\\*\\*31 steps"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"num_episodes": 1}, "computed from other episodes"),
        ({"hyper": Hyper(discount=1.5)}, "discount=1.5"),
        ({"hyper": Hyper(lambda_=-0.1)}, "lambda=-0.1"),
        ({"hyper": Hyper(discount=float("nan"))}, "discount=nan"),
        ({"hyper": Hyper(n=0.0)}, "n=0.0"),
        ({"form": "gae", "baseline": "none", "value_function": None}, "needs a value function"),
        ({"baseline": "value", "value_function": None}, "needs a value function"),
        ({"form": "gea"}, "did you mean 'gae'"),
        ({"form": "total_return", "baseline": "value"}, "does not go with"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        cartpole(**arguments)


def probe(reward):
    """Two steps, two actions; `reward[s]` are the rewards of the two actions in state s."""
    transition = np.zeros((3, 2, 3))
    transition[0, :, 1] = transition[1, :, 2] = transition[2, :, 2] = 1
    table = np.zeros((3, 2, 3)) + np.asarray([*reward, [0, 0]], float)[:, :, None]
    return MDP(transition, table, np.eye(3)[0], np.arange(3) == 2)


@pytest.mark.parametrize(
    ("form", "baseline"),
    [
        ("total_return", "leave_one_out"),
        ("reward_to_go", "none"),
        ("reward_to_go", "value"),
        ("td_residual", "value"),
        ("n_step", "value"),
        ("gae", "value"),
    ],
)
def test_learns_a_probe_with_a_known_answer(form, baseline):
    """Action 1 pays first, action 0 second: credit to the wrong step learns the opposite."""
    env = environments.tabular_mdp(probe([[0.0, 1.0], [2.0, 0.0]]))
    policy, value = policies.tabular(3, 2), policies.tabular_value(3)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        policy,
        estimator(form, baseline),
        Hyper(discount=0.9),
        num_episodes=32,
        horizon=3,
        value_function=value,
    )
    params = {"policy": policy.init(KEY, None), "value": value.init(KEY, None)}
    optimizer = optax.adam(0.1)
    state = train.init(KEY, params, optimizer)
    state, _ = jax.jit(
        lambda state: train.train(KEY, state, gradient_fn, optimizer, num_steps=120)
    )(state)
    probs = jax.nn.softmax(state.params["policy"])
    assert probs[0, 1] > 0.9 and probs[1, 0] > 0.9
    if form != "total_return":
        np.testing.assert_allclose(state.params["value"][1], 2.0, atol=0.3)


def test_learns_cartpole():
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params)
    gradient_fn = gradients.policy_gradient(
        env, env_params, policy, estimator(), Hyper(1.0), num_episodes=256, horizon=500
    )
    optimizer = optax.adam(1e-2)
    state = train.init(KEY, policy.init(KEY, jnp.zeros(4)), optimizer)
    state, metrics = jax.jit(
        lambda state: train.train(KEY, state, gradient_fn, optimizer, num_steps=15)
    )(state)
    assert metrics["return"][0] < 40
    assert metrics["return"][-1] > 400
