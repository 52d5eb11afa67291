"""rejax's update with pgjax: one step on every window, with as many learning rates as runs.

Started by `benchmarks.rejax_sweep` and `benchmarks.side_by_side`. In a single epoch of a single
minibatch the policy that learns is the policy that acted, so that PPO's ratio is one and its update
is the plain gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from benchmarks import rounds, training
from pgjax import backends, environments, estimators, gradients, policies, rollout, train

# Fits the cache of one core, whatever the batch; cores that share out runs share nothing else.
CHUNK_SIZE = 256
EVALUATION_EPISODES = 128


def mean_return(key: jax.Array, env: Any, env_params: Any, policy: Any, params: Any) -> jax.Array:
    """Mean return of whole episodes."""
    num_episodes, horizon = EVALUATION_EPISODES, env_params.max_steps_in_episode
    episodes = rollout.episodes(
        key, env, env_params, policy, params, num_episodes=num_episodes, horizon=horizon
    )
    return jnp.sum(episodes.reward) / num_episodes


def main() -> None:
    """Serves `sharded`, the runs vmapped and split over the cores, or `one` run on all cores."""
    settings = rounds.read_settings()
    (program,) = settings["programs"]
    shared_out = program == "sharded"
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(64, 64), activation="tanh")
    value_function = policies.make_value("mlp", env, env_params, hidden=(64, 64))
    gradient_fn = gradients.segment_gradient(
        env,
        env_params,
        policy,
        estimators.estimator("gae", "standardise", "uniform"),
        estimators.Hyper(
            discount=settings["discount"],
            lambda_=settings["lambda_"],
            entropy_cost=settings["entropy_cost"],
        ),
        num_rows=settings["num_envs"],
        horizon=settings["num_steps"],
        value_function=value_function,
        chunk_size=CHUNK_SIZE if shared_out else None,
        mesh=None if shared_out else training.mesh(),
    )
    # rejax takes the mean over steps, where pgjax sums, before it clips entry by entry.
    scale = optax.partition(
        {
            "policy": optax.scale(1 / settings["num_steps"]),
            "value": optax.scale(settings["value_cost"]),
        },
        {"policy": "policy", "value": "value"},
    )

    def run(key, learning_rate):
        policy_key, value_key, start_key, train_key = jax.random.split(key, 4)
        params = {
            "policy": policy.init(policy_key, jnp.zeros(4)),
            "value": value_function.init(value_key, jnp.zeros(4)),
        }
        optimizer = optax.chain(
            scale,
            optax.clip(settings["clip"]),
            optax.adam(learning_rate),
        )
        state = train.init(start_key, params, optimizer, gradient_fn)
        num_steps = settings["num_updates"]
        return train.train(train_key, state, gradient_fn, optimizer, num_steps=num_steps)

    def evaluate(outputs):
        state, metrics = outputs
        keys = jax.random.split(jax.random.key(1), settings["num_runs"])
        each = jax.vmap(lambda key, params: mean_return(key, env, env_params, policy, params))
        return {
            "returns": np.asarray(jax.jit(each)(keys, state.params["policy"])).tolist(),
            "env_steps": int(np.asarray(metrics["env_steps"]).sum(dtype=np.int64)),
        }

    def one(keys, learning_rates):
        return jax.tree.map(lambda x: x[None], run(keys[0], learning_rates[0]))

    runs = jax.vmap(run)
    axis = PartitionSpec("runs")
    mesh = Mesh(np.array(jax.devices()), ("runs",))
    sharded = jax.shard_map(runs, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False)
    keys = jax.random.split(jax.random.key(0), settings["num_runs"])
    lowest, highest = settings["learning_rates"]
    arguments = (keys, jnp.geomspace(lowest, highest, settings["num_runs"]))
    programs = {"one": one, "sharded": sharded}
    rounds.serve(
        {program: programs[program]},
        arguments,
        evaluate,
        ["jax", "gymnax", "optax"],
        backends.current().compiler_options,
    )


if __name__ == "__main__":
    main()
