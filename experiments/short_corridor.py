"""REINFORCE on the short corridor: do Sutton & Barto's Figures 13.1 and 13.2 come out?

Three states look alike and the middle one swaps left and right, so that the best policy is random.
One episode an update from a policy that goes left 95 times in 100, with and without a learned
baseline, and two readings of the update: one step at the end of the episode along its whole
gradient, or, as the book has it, one at every step of the episode with the parameters moving along.
Besides the sampled returns, the exact ones of the learned policies are shown.

    python -m experiments.short_corridor            (about five minutes on two cores)
    python -m experiments.short_corridor --quick

Source: Sutton & Barto 2018, Example 13.1, Figures 13.1 and 13.2.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from experiments import report
from pgjax import environments, estimators, exact, gradients, policies, returns, rollout, train
from pgjax.estimators import Hyper
from pgjax.lab.plots import COLOURS
from pgjax.score import GradientFn

Rule = Callable[[Any, Any], tuple[GradientFn, optax.GradientTransformation]]

STEP_SIZES = {  # of the policy and of the baseline, which is none if it never moves
    "2^-12": (2**-12, 0),
    "2^-13": (2**-13, 0),
    "2^-14": (2**-14, 0),
    "2^-9 with baseline": (2**-9, 2**-6),
}
FIGURES = {
    "Figure 13.1: REINFORCE": ["2^-12", "2^-13", "2^-14"],
    "Figure 13.2: with a baseline": ["2^-9 with baseline", "2^-13"],
}
RULES = {"end": "step at the end", "inside": "steps inside"}
STYLES = {"end": "-", "inside": "--"}
FIRST_RIGHT = 0.05
BLOCK = 10
POLICY, VALUE = policies.tabular(1, 2), policies.tabular_value(1)
HYPER = Hyper(discount=1.0)
OPTIMUM = -(6 + 4 * np.sqrt(2))


def study(quick: bool) -> report.Findings:
    """Learns under both rules with all step sizes at once."""
    num_runs, num_episodes, horizon = (20, 100, 300) if quick else (200, 1000, 1000)
    env = environments.short_corridor(max_steps=horizon)
    rules = {"end": once_an_episode(env, horizon), "inside": at_every_step(env, horizon)}
    optimum = best(env.mdp)
    curves = {}
    for name, rule in rules.items():
        metrics = learn(jax.random.key(0), rule, num_runs=num_runs, num_episodes=num_episodes)
        metrics["exact"] = exact_returns(env.mdp, metrics.pop("right"), horizon)
        for index, label in enumerate(STEP_SIZES):
            curves[name, label] = jax.tree.map(lambda x, i=index: np.asarray(x[i]), metrics)
    found = {key: summary(curve, horizon) for key, curve in curves.items()}
    numbers = {
        "runs": num_runs,
        "episodes": num_episodes,
        "time_limit": horizon,
        "optimum": optimum,
        "found": {f"{label}, {name}": row for (name, label), row in found.items()},
    }
    return report.Findings(draw(curves, optimum), numbers, describe(numbers, found))


def once_an_episode(env: environments.TabularMDP, horizon: int) -> Rule:
    """The library's rule: plain ascent by the whole gradient, taken where the episode began."""
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        POLICY,
        estimators.estimator("reward_to_go", "value"),
        HYPER,
        num_episodes=1,
        horizon=horizon,
        value_function=VALUE,
    )

    def rule(step_size, value_step_size):
        labels = {"policy": "policy", "value": "value"}
        policy, value = optax.sgd(step_size), optax.sgd(value_step_size)
        return gradient_fn, optax.partition({"policy": policy, "value": value}, labels)

    return rule


def at_every_step(env: environments.TabularMDP, horizon: int) -> Rule:
    """The book's rule: both move at each step of an episode, and the next score is taken there.

    w <- w + alpha_w (G_t - w),   theta <- theta + alpha (G_t - w) grad log pi(a_t)
    """
    obs = jnp.int32(0)
    log_prob = lambda table, action: POLICY.step(table, (), obs)[1].log_prob(action)

    def rule(step_size, value_step_size):
        def gradient_fn(key, params):
            trajectory = rollout.episodes(
                key,
                env,
                env.default_params,
                POLICY,
                params["policy"],
                num_episodes=1,
                horizon=horizon,
            )
            reward, mask = trajectory.reward[0], trajectory.mask[0]
            target = returns.discounted_sum(reward, HYPER.discount)

            def step(params, record):
                action, target, live = record
                table, value = params["policy"], params["value"]
                error = live * (target - value[0])
                uphill = error * jax.grad(log_prob)(table, action)
                moved = {
                    "policy": table + step_size * uphill,
                    "value": value + value_step_size * error,
                }
                return moved, None

            moved, _ = jax.lax.scan(step, params, (trajectory.action[0], target, mask))
            way = jax.tree.map(jnp.subtract, moved, params)
            return way, {"return": jnp.sum(reward), "episode_length": jnp.sum(mask)}

        return gradient_fn, optax.sgd(1.0)

    return rule


def learn(key: jax.Array, rule: Rule, *, num_runs: int, num_episodes: int) -> dict[str, jax.Array]:
    """Learning curves `[step sizes, runs, episodes]`; the runs share their keys."""
    start = jnp.log(jnp.array([[1 - FIRST_RIGHT, FIRST_RIGHT]]))

    def run(key, step_size, value_step_size):
        gradient_fn, optimizer = rule(step_size, value_step_size)

        def followed(key, params):
            gradient, metrics = gradient_fn(key, params)
            kept = {name: metrics[name] for name in ("return", "episode_length")}
            return gradient, kept | {"right": jax.nn.softmax(params["policy"])[0, 1]}

        init_key, train_key = jax.random.split(key)
        params = {"policy": start, "value": jnp.zeros(1)}
        state = train.init(init_key, params, optimizer, followed)
        _, metrics = train.train(train_key, state, followed, optimizer, num_steps=num_episodes)
        return {name: metrics[name] for name in ("return", "episode_length", "right")}

    over_runs = jax.vmap(run, (0, None, None))
    sizes = jnp.array(list(STEP_SIZES.values()))
    return jax.jit(jax.vmap(over_runs, (None, 0, 0)))(
        jax.random.split(key, num_runs), sizes[:, 0], sizes[:, 1]
    )


def exact_return(mdp: environments.MDP, right: jax.Array, horizon: int | None) -> jax.Array:
    """J of going right with some probability."""
    table = jnp.log(jnp.stack([1 - right, right]))[None]
    return exact.expected_return(mdp, POLICY, table, HYPER, horizon=horizon)


def exact_returns(mdp: environments.MDP, right: jax.Array, horizon: int) -> jax.Array:
    """J within the time limit at every tenth episode, `[step sizes, runs, blocks]`."""
    right = right[..., ::BLOCK]
    one = lambda right: exact_return(mdp, right, horizon)
    return jax.jit(lambda x: jax.lax.map(one, x, batch_size=512))(right.ravel()).reshape(
        right.shape
    )


def best(mdp: environments.MDP) -> dict[str, float]:
    """The optimum without a time limit, by search and in closed form."""
    objective = jax.jit(lambda right: exact_return(mdp, right, None))
    found = minimize_scalar(lambda x: -float(objective(x)), bounds=(0.01, 0.99), method="bounded")
    return {"right": float(found.x), "value": -float(found.fun), "closed_form": float(OPTIMUM)}


def summary(curve: dict[str, np.ndarray], horizon: int) -> dict[str, Any]:
    """What a table would say of one rule and step size; `last` is the last tenth of episodes.

    A run is lost if more than half its episodes are cut.
    """
    num_runs, num_episodes = curve["return"].shape
    last = curve["return"][:, -(num_episodes // 10) :].mean(1)
    near = np.median(curve["exact"], axis=0) > OPTIMUM - 1
    truncated = np.sum(curve["episode_length"] == horizon, axis=1)
    lost = truncated > num_episodes / 2
    return {
        "last": float(last.mean()),
        "last_error": float(last.std(ddof=1) / np.sqrt(num_runs)),
        "exact_mean": float(curve["exact"][:, -1].mean()),
        "exact_median": float(np.median(curve["exact"][:, -1])),
        "episodes_to_within_one": int(np.argmax(near)) * BLOCK if near.any() else None,
        "lost_runs": int(lost.sum()),
        "truncated": int(truncated.sum()),
        "truncated_in_other_runs": int(truncated[~lost].sum()),
    }


def describe(numbers: dict[str, Any], found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The finding, from the numbers."""
    optimum, limit = numbers["optimum"], numbers["time_limit"]
    gap = abs(optimum["value"] - optimum["closed_form"])
    *plain, based = STEP_SIZES
    winners = [max(plain, key=lambda label: found[rule, label]["last"]) for rule in RULES]
    agreement = {
        (True, True): "which both rules bear out",
        (
            False,
            True,
        ): "which stepping inside the episode bears out and stepping at its end does not",
        (
            True,
            False,
        ): "which stepping at the end bears out and stepping inside the episode does not",
        (False, False): "which neither rule bears out",
    }[winners[0] == "2^-13", winners[1] == "2^-13"]
    medians = np.array([[found[rule, x]["exact_median"] for x in plain] for rule in RULES])
    cut = {rule: sum(found[rule, x]["truncated"] for x in STEP_SIZES) for rule in RULES}
    other = sum(row["truncated_in_other_runs"] for row in found.values())
    played = numbers["runs"] * numbers["episodes"] * len(STEP_SIZES)

    def last(rule, label):
        return f"{found[rule, label]['last']:.1f} ± {found[rule, label]['last_error']:.1f}"

    def lasts(rule):
        return ", ".join(f"{last(rule, label)} at {label}" for label in plain)

    def reached(rule, label):
        episodes = found[rule, label]["episodes_to_within_one"]
        return "never" if episodes is None else f"after {episodes} episodes"

    def lost(rule):
        counts = {label: found[rule, label]["lost_runs"] for label in STEP_SIZES}
        some = [f"{count} at {label}" for label, count in counts.items() if count]
        return ", ".join(some) or "none"

    return (
        f"The best policy, found by maximising the exact return, goes right with probability "
        f"{optimum['right']:.4f} for {optimum['value']:.4f}, which is -(6 + 4 sqrt 2) to "
        f"{gap:.0e}. Plain REINFORCE, mean return of the last tenth of {numbers['episodes']} "
        f"episodes and its standard error over {numbers['runs']} runs: with one step at the end "
        f"of each episode {lasts('end')}; stepping inside the episode, as the book does, "
        f"{lasts('inside')}. The best is {winners[0]} under the first rule and {winners[1]} under "
        f"the second; the book names 2^-13, {agreement}. The usual run hardly tells the rules "
        f"apart: at the end the medians of the exact returns differ by at most "
        f"{np.ptp(medians, axis=0).max():.1f}. But a run can be lost: a long episode throws the "
        f"policy to nearly always left or right, where the score vanishes and hardly anything "
        f"brings it back. Lost under the first rule: {lost('end')}; under the second: "
        f"{lost('inside')}. With the baseline the median run comes within one of the optimum "
        f"{reached('end', based)} (second rule: {reached('inside', based)}), without, at 2^-13, "
        f"{reached('end', '2^-13')} ({reached('inside', '2^-13')}); the mean with it, lost runs "
        f"included, ends at {last('end', based)} ({last('inside', based)}). Episodes are cut at "
        f"{limit} steps: of {played} under either rule {cut['end']} under the first and "
        f"{cut['inside']} under the second, {other} of all these in runs that were not lost. A "
        f"nearly endless episode thus counts as -{limit}, so that the means of lost runs, sampled "
        f"or exact, are far too good, and the gradient is that of the return within the limit. "
        f"The book's w moves at every step; under the first rule ours moves once an episode, by "
        f"the mean over its steps."
    )


def draw(curves: dict[tuple[str, str], dict[str, np.ndarray]], optimum: dict[str, float]) -> Figure:
    """On top the mean of the sampled returns over runs, below the median of the exact ones."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    colours = dict(zip(STEP_SIZES, COLOURS, strict=False))
    for (title, labels), (above, below) in zip(FIGURES.items(), panels.T, strict=True):
        above.set_title(title, fontsize="medium")
        for (rule, style), label in [(pair, x) for x in labels for pair in STYLES.items()]:
            curve, colour = curves[rule, label], colours[label]
            sampled = blocks(curve["return"])
            error = sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
            line(above, sampled.mean(axis=0), error, error, colour, style)
            low, middle, high = np.quantile(curve["exact"], [0.25, 0.5, 0.75], axis=0)
            name = f"{pretty(label)}, {RULES[rule]}"
            line(below, middle, middle - low, high - middle, colour, style, name)
        for axes in (above, below):
            axes.axhline(optimum["value"], color=COLOURS[-1], linewidth=0.8, linestyle=":")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        below.legend(frameon=False, fontsize="small", loc="lower right")
        below.set_xlabel("episode")
    panels[0, 0].text(0, optimum["value"] + 1, f"v* = {optimum['value']:.2f}", fontsize="small")
    panels[0, 0].set_ylabel("return of an episode\n(mean of runs and ten episodes, standard error)")
    panels[1, 0].set_ylabel("exact return of the policy\n(median of runs, quartiles)")
    panels[0, 0].set_ylim(-90, -5)
    panels[1, 0].set_ylim(-90, -5)
    return figure


def line(
    axes: Axes, centre, below, above, colour: str, style: str, label: str | None = None
) -> None:
    """A curve and its band, over episodes."""
    episode = np.arange(len(centre)) * BLOCK
    axes.plot(episode, centre, style, color=colour, label=label, linewidth=1.3)
    axes.fill_between(
        episode, centre - below, centre + above, color=colour, alpha=0.15, linewidth=0
    )


def pretty(label: str) -> str:
    """A power with its exponent raised."""
    return re.sub(r"2\^(-\d+)", r"$2^{\1}$", label)


def blocks(x: np.ndarray) -> np.ndarray:
    """Means of every ten episodes, `[runs, episodes]` -> `[runs, blocks]`."""
    return x.reshape(len(x), -1, BLOCK).mean(-1)


if __name__ == "__main__":
    report.main("short_corridor", study, __doc__ or "")
