"""rejax's PPO in its one-epoch, one-minibatch setting, with as many learning rates as runs.

Started by `benchmarks.rejax_sweep` and `benchmarks.side_by_side`, in a virtual environment that has
rejax and need not have pgjax. Evaluation during training is off: as rejax evaluates at least once,
at the end, its callback is replaced by one that does nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from rejax import PPO

from benchmarks import rounds


def main() -> None:
    """Serves what is asked for of `one`, `vmap` (as in rejax's documentation) and `sharded`."""
    settings = rounds.read_settings()
    total = settings["num_envs"] * settings["num_steps"] * settings["num_updates"]
    ppo = PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=1,
        num_minibatches=1,
        total_timesteps=total,
        eval_freq=total,
        skip_initial_evaluation=True,
        max_grad_norm=settings["clip"],
        gamma=settings["discount"],
        gae_lambda=settings["lambda_"],
        ent_coef=settings["entropy_cost"],
        vf_coef=settings["value_cost"],
    )
    evaluation = ppo.eval_callback
    ppo = ppo.replace(eval_callback=lambda ppo, state, key: ())

    def train(key, learning_rate):
        return ppo.replace(learning_rate=learning_rate).train(key)[0]

    def evaluate(states):
        returns = jax.jit(jax.vmap(lambda state: evaluation(ppo, state, state.rng)[1]))(states)
        return {
            "returns": np.mean(returns, axis=1).tolist(),
            "env_steps": settings["num_runs"] * total,
        }

    def one(keys, learning_rates):
        state = train(keys[0], learning_rates[0])
        return jax.tree.map(lambda x: jnp.asarray(x)[None], state)

    runs = jax.vmap(train)
    axis = PartitionSpec("runs")
    mesh = Mesh(np.array(jax.devices()), ("runs",))
    sharded = jax.shard_map(runs, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False)
    keys = jax.random.split(jax.random.key(0), settings["num_runs"])
    lowest, highest = settings["learning_rates"]
    arguments = (keys, jnp.geomspace(lowest, highest, settings["num_runs"]))
    programs = {"one": one, "vmap": runs, "sharded": sharded}
    asked = {name: programs[name] for name in settings["programs"]}
    rounds.serve(asked, arguments, evaluate, ["jax", "gymnax", "rejax", "distrax", "optax"])


if __name__ == "__main__":
    main()
