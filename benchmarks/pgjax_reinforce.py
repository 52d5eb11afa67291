"""The update of `benchmarks.plain_reinforce` with pgjax, from windows or from whole episodes.

Started by `benchmarks.side_by_side`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks import pgjax_ppo, rounds, training
from pgjax import backends, environments, estimators, gradients, policies, rollout, train
from pgjax.estimators import Estimator, Hyper
from pgjax.gradients.policy import batch_gradient
from pgjax.gradients.samples import GRADIENT_FIELDS
from pgjax.policies import Policy
from pgjax.score import StatefulGradientFn


def window_gradient(
    env: Any,
    env_params: Any,
    policy: Policy,
    estimator: Estimator,
    hyper: Hyper,
    *,
    num_rows: int,
    horizon: int,
    mesh: Mesh | None,
) -> StatefulGradientFn:
    """From windows; `segment_gradient` refuses returns to go, as the end of a window cuts them."""
    learn = batch_gradient(policy, estimator, hyper, None, chunk_size=None, mesh=mesh)

    def init(key, params):
        return rollout.start(key, env, env_params, policy, num_rows=num_rows)

    def step(key, params, rows):
        trajectory, rows = rollout.segments(
            key,
            env,
            env_params,
            policy,
            params,
            rows,
            horizon=horizon,
            fields=GRADIENT_FIELDS,  # what the plain program keeps
            mesh=mesh,
        )
        gradient, _ = learn(params, trajectory)
        return gradient, rows, {"env_steps": jnp.int32(trajectory.mask.size)}

    return StatefulGradientFn(init, step)


def main() -> None:
    """Serves `segments` or `episodes`."""
    settings = rounds.read_settings()
    (program,) = settings["programs"]
    mesh = training.mesh()
    num_rows, horizon = settings["num_envs"], settings["num_steps"]
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("mlp", env, env_params, hidden=(64, 64), activation="tanh")
    estimator = estimators.estimator("reward_to_go", "standardise", "uniform")
    common = (env, env_params, policy, estimator, Hyper(discount=settings["discount"]))
    if program == "segments":
        gradient_fn = window_gradient(*common, num_rows=num_rows, horizon=horizon, mesh=mesh)
    else:
        gradient_fn = gradients.policy_gradient(
            *common, num_episodes=num_rows, horizon=horizon, mesh=mesh
        )

    def run(key, learning_rate):
        policy_key, start_key, train_key = jax.random.split(key, 3)
        params = policy.init(policy_key, jnp.zeros(4))
        # The plain program takes the mean over steps, where pgjax sums.
        optimizer = optax.chain(optax.scale(1 / horizon), optax.adam(learning_rate))
        state = train.init(start_key, params, optimizer, gradient_fn)
        num_steps = settings["num_updates"]
        return train.train(train_key, state, gradient_fn, optimizer, num_steps=num_steps)

    def evaluate(outputs):
        state, metrics = outputs
        mean_return = lambda key, params: pgjax_ppo.mean_return(
            key, env, env_params, policy, params
        )
        return {
            "returns": [float(jax.jit(mean_return)(jax.random.key(1), state.params))],
            "env_steps": int(np.asarray(metrics["env_steps"]).sum(dtype=np.int64)),
        }

    arguments = (jax.random.key(0), settings["learning_rate"])
    rounds.serve(
        {program: run},
        arguments,
        evaluate,
        ["jax", "gymnax", "optax"],
        backends.current().compiler_options,
    )


if __name__ == "__main__":
    main()
