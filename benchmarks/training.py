"""One step of training, as a user of the library puts it together; several scripts measure it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.devices import DEVICES
from pgjax import backends, environments, estimators, gradients, policies, rollout, sharding, train
from pgjax.gradients.samples import GRADIENT_FIELDS

ENDLESS = {
    "theta_threshold_radians": 1e9,
    "x_threshold": 1e9,
    "max_steps_in_episode": 10**9,
}
"""Parameters of CartPole under which nothing ends an episode, so that every step is live."""


def compile(function: Callable[..., Any], *args: Any) -> jax.stages.Compiled:
    """`function`, compiled with what pgjax tells the compiler, in float32 by default."""
    known = backends.current()
    jitted = jax.jit(function, compiler_options=dict(known.compiler_options))
    with backends.matmul_precision(known.precisions[0]):
        return jitted.lower(*args).compile()


class Setting(NamedTuple):
    """What is trained."""

    env: str = "CartPole-v1"
    rows: str = "episodes"  # or segments
    learner: str = "actor"  # or actor-critic: GAE with a learned value function
    num_rows: int = 1024
    horizon: int = 128
    width: int = 64
    depth: int = 2
    endless: bool = True  # CartPole whose episodes do not end


class Step(NamedTuple):
    """A step of training and what to call it with."""

    function: Callable[..., Any]  # (key, state) -> (state, metrics), not jitted
    key: jax.Array
    state: train.TrainState

    def compile(self) -> "Program":
        """The compiled step, to be called with its own state again and again."""
        compiled = compile(self.function, self.key, self.state)
        # Placed where the program wants them, so that calls need not move them.
        args = jax.device_put((self.key, self.state), compiled.input_shardings[0])
        return Program(compiled, args)


class Program(NamedTuple):
    """A compiled program and what it is called with."""

    compiled: jax.stages.Compiled
    args: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.compiled(*self.args)


class Parts(NamedTuple):
    """An environment, and the policy and value function for it."""

    env: Any
    env_params: Any
    policy: policies.Policy
    value_function: policies.ValueFunction

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters of the policy and of the value function."""
        obs, _ = self.env.reset_env(key, self.env_params)
        return self.policy.init(key, obs), self.value_function.init(key, obs)


def parts(setting: Setting) -> Parts:
    """Environment, policy and value function of a setting."""
    overrides = ENDLESS if setting.endless and setting.env == "CartPole-v1" else {}
    env, env_params = environments.make(setting.env, **overrides)
    hidden = (setting.width,) * setting.depth
    policy = policies.make("mlp", env, env_params, hidden=hidden)
    value_function = policies.make_value("mlp", env, env_params, hidden=hidden)
    return Parts(env, env_params, policy, value_function)


def step(setting: Setting, mesh: jax.sharding.Mesh | None = None) -> Step:
    """The step of a setting, on the devices of a mesh.

    Raises:
      ValueError: a setting that the library does not have, such as segments without a critic.
    """
    own = parts(setting)
    critic = setting.learner == "actor-critic"
    pair = ("gae", "value") if critic else ("reward_to_go", "batch_mean")
    estimator = estimators.estimator(*pair, state_weighting="uniform")
    common = (own.env, own.env_params, own.policy, estimator, estimators.Hyper(discount=0.99))
    shape: dict[str, Any] = {
        "horizon": setting.horizon,
        "value_function": own.value_function if critic else None,
        "mesh": mesh,
    }
    if setting.rows == "segments":
        gradient_fn = gradients.segment_gradient(*common, num_rows=setting.num_rows, **shape)
    else:
        gradient_fn = gradients.policy_gradient(*common, num_episodes=setting.num_rows, **shape)
    optimizer = optax.adam(3e-3)
    key = jax.random.key(0)

    @jax.jit
    def init(key):
        params, of_value = own.init(key)
        if critic:
            params = {"policy": params, "value": of_value}
        return train.init(key, params, optimizer, gradient_fn)

    def function(key, state):
        return train.step(key, state, gradient_fn, optimizer)

    return Step(function, key, init(key))


def trajectory_bytes(setting: Setting) -> int:
    """Bytes of all rows of one update."""
    own = parts(setting)
    env, env_params, policy, _ = own

    def roll(key):
        params, _ = own.init(key)
        if setting.rows == "segments":
            rows = rollout.start(key, env, env_params, policy, num_rows=setting.num_rows)
            return rollout.segments(
                key,
                env,
                env_params,
                policy,
                params,
                rows,
                horizon=setting.horizon,
                fields=(*GRADIENT_FIELDS, "final_obs"),
                packed=True,
            )[0]
        return rollout.episodes(
            key,
            env,
            env_params,
            policy,
            params,
            num_episodes=setting.num_rows,
            horizon=setting.horizon,
            fields=GRADIENT_FIELDS,
            packed=True,
        )

    shapes = jax.eval_shape(roll, jax.random.key(0))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def mesh(num_rows: int | None = None) -> jax.sharding.Mesh | None:
    """All devices, or as many as can share out the rows evenly; None if that is one."""
    counts = range(1, len(DEVICES) + 1)
    count = max(x for x in counts if num_rows is None or num_rows % x == 0)
    return sharding.mesh(DEVICES[:count]) if count > 1 else None


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes a compiled program needs besides its inputs and outputs, on each of its devices.

    Raises:
      RuntimeError: the backend does not say.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError(f"{jax.default_backend()} tells nothing of a program's memory")
    return analysis.temp_size_in_bytes
