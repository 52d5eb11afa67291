"""REINFORCE as one writes it with JAX, optax and gymnax alone; nothing here is from pgjax.

It has the environment's own automatic reset within a scan over time, returns to go within episodes,
standardised over the batch, and one backward pass over all steps at once.
Started by `benchmarks.side_by_side`.
"""

import gymnax
import jax
import jax.numpy as jnp
import optax

from benchmarks import rounds

EVALUATION_EPISODES = 128


def init(key):
    """Parameters of 2 x 64 tanh for CartPole."""
    sizes = (4, 64, 64, 2)
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(key, (inputs, outputs)) / inputs**0.5, jnp.zeros(outputs))
        for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, obs):
    """Logits of the actions, `[..., 2]`."""
    *hidden, (kernel, bias) = params
    for inner_kernel, inner_bias in hidden:
        obs = jnp.tanh(obs @ inner_kernel + inner_bias)
    return obs @ kernel + bias


def loss(params, obs, action, weight):
    """Minus the surrogate, a mean over all steps."""
    log_prob = jax.nn.log_softmax(logits(params, obs))
    taken = jnp.take_along_axis(log_prob, action[..., None], axis=-1)[..., 0]
    return -jnp.mean(taken * weight)


def reward_to_go(reward, done, discount):
    """Discounted sums `[T, N]` to the end of the episode, or of the window."""

    def step(following, now):
        reward, done = now
        total = reward + discount * jnp.where(done, 0, following)
        return total, total

    return jax.lax.scan(step, jnp.zeros(reward.shape[1]), (reward, done), reverse=True)[1]


def collect(key, params, env, env_params, obs, state, num_steps):
    """The next window of all environments: where it leaves them, and obs, action, reward, done."""

    def step(carry, key):
        obs, state = carry
        action_key, env_key = jax.random.split(key)
        action = jax.random.categorical(action_key, logits(params, obs))
        keys = jax.random.split(env_key, len(obs))
        next_obs, state, reward, terminated, truncated, _ = jax.vmap(env.step, (0, 0, 0, None))(
            keys, state, action, env_params
        )
        return (next_obs, state), (obs, action, reward, terminated | truncated)

    return jax.lax.scan(step, (obs, state), jax.random.split(key, num_steps))


def train(key, learning_rate, *, num_envs, num_steps, num_updates, discount):
    """Trained parameters."""
    env, env_params = gymnax.make("CartPole-v1")
    optimizer = optax.adam(learning_rate)
    init_key, reset_key, train_key = jax.random.split(key, 3)
    params = init(init_key)
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, num_envs), env_params)

    def update(carry, key):
        params, opt_state, obs, state = carry
        (next_obs, state), (obs, action, reward, done) = collect(
            key, params, env, env_params, obs, state, num_steps
        )
        returns = reward_to_go(reward, done, discount)
        weight = (returns - jnp.mean(returns)) / (jnp.std(returns) + 1e-8)
        gradient = jax.grad(loss)(params, obs, action, weight)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state, next_obs, state), None

    carry = (params, optimizer.init(params), obs, state)
    (params, *_), _ = jax.lax.scan(update, carry, jax.random.split(train_key, num_updates))
    return params


def mean_return(key, params):
    """Mean return of whole episodes."""
    env, env_params = gymnax.make("CartPole-v1")
    reset_key, key = jax.random.split(key)
    keys = jax.random.split(reset_key, EVALUATION_EPISODES)
    obs, state = jax.vmap(env.reset, (0, None))(keys, env_params)
    _, (_, _, reward, done) = collect(
        key, params, env, env_params, obs, state, env_params.max_steps_in_episode
    )
    first = jnp.cumsum(done, axis=0) - done == 0
    return jnp.mean(jnp.sum(reward * first, axis=0))


def main() -> None:
    """Serves `train`."""
    settings = rounds.read_settings()
    names = ("num_envs", "num_steps", "num_updates", "discount")
    shape = {name: settings[name] for name in names}

    def evaluate(params):
        returns = [float(jax.jit(mean_return)(jax.random.key(1), params))]
        env_steps = settings["num_envs"] * settings["num_steps"] * settings["num_updates"]
        return {"returns": returns, "env_steps": env_steps}

    rounds.serve(
        {"train": lambda key, learning_rate: train(key, learning_rate, **shape)},
        (jax.random.key(0), settings["learning_rate"]),
        evaluate,
        ["jax", "gymnax", "optax"],
    )


if __name__ == "__main__":
    main()
