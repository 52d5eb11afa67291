"""Stable-Baselines3's A2C on its own vectorised environments, which are stepped in turn in Python.

Started by `benchmarks.side_by_side`, in a virtual environment that has Stable-Baselines3 and needs
neither JAX nor pgjax.
"""

import time

import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import rounds

EVALUATION_EPISODES = 32


def main() -> None:
    """Serves `learn`."""
    settings = rounds.read_settings()
    total = settings["num_envs"] * settings["num_steps"] * settings["num_updates"]
    begun = time.perf_counter()
    env = make_vec_env("CartPole-v1", n_envs=settings["num_envs"], seed=0)

    def learn():
        model = A2C(
            "MlpPolicy",
            env,
            learning_rate=settings["learning_rate"],
            n_steps=settings["num_steps"],
            gamma=settings["discount"],
            gae_lambda=settings["lambda_"],
            ent_coef=settings["entropy_cost"],
            vf_coef=settings["value_cost"],
            max_grad_norm=settings["clip"],
            normalize_advantage=True,
            use_rms_prop=False,  # Adam
            policy_kwargs={"activation_fn": torch.nn.Tanh, "net_arch": [64, 64]},
            device="cpu",
            seed=0,
        )
        return model.learn(total)

    def evaluate(model):
        mean_return, _ = evaluate_policy(
            model, env, n_eval_episodes=EVALUATION_EPISODES, deterministic=False
        )
        return {"returns": [float(mean_return)], "env_steps": total}

    ready = {"learn": time.perf_counter() - begun}
    rounds.answer({"learn": learn}, ready, evaluate, ["stable-baselines3", "torch", "gymnasium"])


if __name__ == "__main__":
    main()
