"""What does leaving out gamma^t do to the policy gradient, and does it matter on CartPole?

First exactly, on two steps that look alike to a policy of one parameter: where the expected update
has the wrong sign, where following it leads, and a second such task where it leads to the policy
that is worst by both the discounted and the undiscounted return. Then on random MDPs: how far the
Jacobian of the update is from symmetric, as that of a gradient would be. Last on CartPole, by the
audit and in training: direction, length and noise of the update with and without gamma^t, and what
it reaches.

    python -m experiments.discount_trap            (about three minutes on two cores)
    python -m experiments.discount_trap --quick

Source: Thomas 2014, "Bias in Natural Actor-Critic Algorithms"; Nota & Thomas 2020, "Is the Policy
Gradient a Gradient?".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import report
from pgjax import audit, distributions, environments, estimators, exact, gradients, policies, train
from pgjax.audit import Audit, intervals
from pgjax.environments import MDP
from pgjax.estimators import Hyper
from pgjax.lab import statistics
from pgjax.lab.plots import COLOURS
from pgjax.policies import Policy
from pgjax.score import GradientFn, Params

WEIGHTINGS = dict(zip(estimators.STATE_WEIGHTINGS, COLOURS, strict=False))
GAMMA, THETA, WORST_THETA = 0.5, 0.3, 1.5
GAMMAS = np.linspace(0, 1, 101)
THETAS = (-3.0, -1.5, 0.0, THETA, 1.5, 3.0)
SHOWN = {0.0: "-", 1.5: "--", 3.0: ":"}
NUM_STEPS = 1000
NUM_MDPS, COARSE = 32, np.linspace(0, 1, 21)
CART_GAMMAS = {0.99: COLOURS[2], 0.9: COLOURS[3]}
BATCH, LIMIT = 16, 500
RATES = (0.05, 0.02, 0.1)  # looked at along the first
COIN = policies.memoryless(
    init=lambda key, obs: jnp.zeros(()),
    apply=lambda params, obs: distributions.bernoulli(params),
)

Paths = dict[str, dict[str, np.ndarray]]


def study(quick: bool) -> report.Findings:
    """The two exact traps, the Jacobians, and CartPole."""
    traps = (two_steps((0, 1), (0, -1.5), stops=False), two_steps((1, 0), (-7, -3), stops=True))
    both = {name: follow(traps, name, (THETA, WORST_THETA)) for name in WEIGHTINGS}
    paths, worst_paths = ({x: y[i] for x, y in both.items()} for i in range(2))
    trap, means = on_trap(traps[0])
    shares = {name: asymmetry(jax.random.key(0), name) for name in WEIGHTINGS}
    cart_pole, curves = on_cart_pole(quick)
    numbers = {
        "trap": trap | ends(paths),
        "worst_trap": on_worst_trap(traps[1]) | ends(worst_paths),
        "asymmetry": {name: summary(share) for name, share in shares.items()},
        "cart_pole": cart_pole,
    }
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    draw_signs(panels[0, 0], means)
    draw_paths(panels[0, 1], "Trap, gamma = 0.5: following it, exact", paths)
    draw_paths(panels[0, 2], "Second trap, gamma = 0.5: following it, exact", worst_paths)
    panels[0, 2].legend(frameon=False, fontsize="small", loc=(0.42, 0.5), title="in both traps")
    draw_asymmetry(panels[1, 0], shares)
    draw_cosines(panels[1, 1], cart_pole)
    draw_training(panels[1, 2], curves)
    return report.Findings(figure, numbers, describe(numbers))


def two_steps(first: tuple, second: tuple, *, stops: bool) -> MDP:
    """Two states that look alike, rewards by action; in the first, action 0 may end it all."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 2 if stops else 1] = transition[0, 1, 1] = 1
    transition[1:, :, 2] = 1
    reward = np.zeros_like(transition)
    reward[0], reward[1] = np.array(first)[:, None], np.array(second)[:, None]
    return MDP(
        transition,
        reward,
        initial=np.array([1.0, 0.0, 0.0]),
        terminal=np.array([False, False, True]),
        observation=np.zeros(3, np.int32),
    )


def expected(mdp: MDP, policy: Policy, weighting: str, discount: Any, horizon: int) -> GradientFn:
    """The exact expected update under a state weighting; metrics: both returns.

    The all-action gradient has the same mean as reward-to-go, for less work.
    """

    def gradient_fn(key, params):
        moments = exact.all_action_moments(
            mdp,
            policy,
            params,
            Hyper(discount=discount),
            horizon=horizon,
            state_weighting=weighting,
        )
        return moments.mean, both_returns(mdp, policy, params, discount, horizon)

    return gradient_fn


def both_returns(
    mdp: MDP, policy: Policy, params: Params, discount: Any, horizon: int
) -> dict[str, jax.Array]:
    """J_gamma and J_1."""
    value = lambda discount: exact.expected_return(
        mdp, policy, params, Hyper(discount=discount), horizon=horizon
    )
    return {"discounted": value(discount), "undiscounted": value(1.0)}


def follow(
    mdps: tuple[MDP, ...], weighting: str, starts: tuple[float, ...]
) -> list[dict[str, np.ndarray]]:
    """Both exact returns along plain ascent by the expected update, in several MDPs at once."""
    optimizer = optax.sgd(1.0)
    key = jax.random.key(0)  # an exact update does not look at it

    def path(mdp, start):
        gradient_fn = expected(mdp, COIN, weighting, GAMMA, 2)
        state = train.init(key, start, optimizer)
        _, metrics = train.train(key, state, gradient_fn, optimizer, num_steps=NUM_STEPS)
        return {name: metrics[name] for name in ("discounted", "undiscounted")}

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *mdps)
    found = jax.jit(jax.vmap(path))(stacked, jnp.array(starts))
    return [{x: np.asarray(y[i]) for x, y in found.items()} for i in range(len(mdps))]


def on_trap(mdp: MDP) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """r_0 = a_0, r_1 = -1.5 a_1: exact moments of reward-to-go over gamma and theta."""
    moments = {}
    for name in WEIGHTINGS:
        estimator = estimators.estimator("reward_to_go", "none", name)
        at = lambda gamma, theta, x=estimator: exact.exact_moments(
            mdp, COIN, theta, x, Hyper(discount=gamma), horizon=2
        )
        over = jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))
        moments[name] = over(jnp.array(GAMMAS), jnp.array(THETAS))
    here = (int(np.argmin(np.abs(GAMMAS - GAMMA))), THETAS.index(THETA))
    means = {name: np.asarray(found.mean) for name, found in moments.items()}
    wrong = np.sign(means["uniform"]) == -np.sign(means["discounted"])
    gradient_fn = exact.exact_gradient(mdp, COIN, Hyper(discount=GAMMA), horizon=2)
    numbers = {
        "gradient": jax.jit(gradient_fn)(jax.random.key(0), THETA)[0],
        "mean": {name: x[here] for name, x in means.items()},
        "trace": {name: x.trace[here] for name, x in moments.items()},
        "wrong_from": [GAMMAS[column].min() for column in wrong.T],
        "wrong_to": [GAMMAS[column].max() for column in wrong.T],
        "from_undiscounted_gradient": np.abs(means["uniform"] - means["discounted"][-1]).max(),
    }
    return numbers, means


def on_worst_trap(mdp: MDP) -> dict[str, Any]:
    """Stopping pays 1 now; going on pays -3 later, or -7 if the second action differs.

    By either return, the more likely going on is, the worse. But once there, the same action is the
    better one, and without gamma^t that counts in full.
    """
    thetas = jnp.linspace(-10, 10, 201)
    returns = jax.jit(jax.vmap(lambda theta: both_returns(mdp, COIN, theta, GAMMA, 2)))(thetas)
    return {
        "starts_at": jax.nn.sigmoid(WORST_THETA),
        "worst": {name: x.min() for name, x in returns.items()},
        "best": {name: x.max() for name, x in returns.items()},
        "always_falling": bool(all(jnp.all(jnp.diff(x) < 0) for x in returns.values())),
    }


def ends(paths: Paths) -> dict[str, Any]:
    """Where paths begin and where they lead."""
    start = {of: x[0] for of, x in paths["uniform"].items()}
    return {
        "start": start,
        "reached": {a: {b: x[-1] for b, x in y.items()} for a, y in paths.items()},
    }


def asymmetry(key: jax.Array, weighting: str) -> np.ndarray:
    """Antisymmetric share of the Jacobian of the expected update, `[MDPs, gammas]`.

        |A - A'| / 2 |A|,   zero for the gradient of any function, at most one

    On random MDPs of four states and two actions, ten steps, at random logits.
    """
    policy = policies.tabular(4, 2)

    def share(key, gamma):
        transition_key, reward_key, logits_key = jax.random.split(key, 3)
        mdp = MDP(
            transition=jax.nn.softmax(2 * jax.random.normal(transition_key, (4, 2, 4))),
            reward=jax.random.normal(reward_key, (4, 2, 4)),
            initial=jnp.full(4, 0.25),
            terminal=jnp.zeros(4, bool),
        )
        logits = jax.random.normal(logits_key, (4, 2))
        mean = lambda logits: expected(mdp, policy, weighting, gamma, 10)(key, logits)[0]
        jacobian = jax.jacfwd(mean)(logits).reshape(8, 8)
        return jnp.linalg.norm(jacobian - jacobian.T) / (2 * jnp.linalg.norm(jacobian))

    over = jax.vmap(jax.vmap(share, (None, 0)), (0, None))
    return np.asarray(jax.jit(over)(jax.random.split(key, NUM_MDPS), jnp.array(COARSE)))


def summary(share: np.ndarray) -> dict[str, Any]:
    """What a table would say of the asymmetry: least, median and largest over MDPs."""
    spread = np.quantile(share, (0, 0.5, 1), axis=0).T
    rows = {f"{COARSE[i]:.2g}": spread[i] for i in (0, 10, 18, 20)}
    return {"largest": share.max(), "least_below_one": share[:, :-1].min(), "at": rows}


def on_cart_pole(quick: bool) -> tuple[dict[str, Any], dict[float, dict[str, np.ndarray]]]:
    """Training with each weighting, and audits of both along one of the runs."""
    looks = (0, 10) if quick else (0, 10, 40)
    rates = RATES[:1] if quick else RATES
    num_seeds, num_updates = (4, 12) if quick else (12, 80)
    num_replicates = 128 if quick else 1024
    train_key, audit_key, truth_key = jax.random.split(jax.random.key(1), 3)
    runs = {name: learn(train_key, name, rates, num_seeds, num_updates) for name in WEIGHTINGS}
    measures = {name: auditor(name, num_replicates) for name in WEIGHTINGS}
    rows: dict[float, Any] = {gamma: {} for gamma in CART_GAMMAS}
    lengths = {}
    for n in looks:
        params = jax.tree.map(lambda x, n=n: x[0, 0, 0, n], runs["discounted"]["params"])
        undiscounted = measures["discounted"](truth_key, (params, 1.0))
        lengths[n] = float(undiscounted.env_steps or np.nan) / BATCH
        for gamma in CART_GAMMAS:
            at = (params, gamma)
            truth = measures["discounted"](truth_key, at)
            audits = {name: measure(audit_key, at, truth) for name, measure in measures.items()}
            found = {name: row(x, truth, undiscounted) for name, x in audits.items()}
            ratio = audit.compare(audits["uniform"], audits["discounted"]).trace
            rows[gamma][n] = found | {"ratio_of_traces": ratio}
    best = {gamma: at_best_rate(runs, rates, i) for i, gamma in enumerate(CART_GAMMAS)}
    numbers = {
        "replicates": num_replicates,
        "seeds": num_seeds,
        "updates": num_updates,
        "step_sizes": rates,
        "episode_length": lengths,
        "audits": rows,
        "training": {gamma: scores(found) for gamma, found in best.items()},
    }
    curves = {
        gamma: {x: run["return"] for x, run in found.items()} for gamma, found in best.items()
    }
    return numbers, curves


def on_cart_pole_with(discount: Any, weighting: str) -> tuple[Policy, GradientFn]:
    """A linear policy, and its reward-to-go gradient with a leave-one-out baseline."""
    env, env_params = environments.make("CartPole-v1")
    policy = policies.make("linear", env, env_params)
    gradient_fn = gradients.policy_gradient(
        env,
        env_params,
        policy,
        estimators.estimator("reward_to_go", "leave_one_out", weighting),
        Hyper(discount=discount),
        num_episodes=BATCH,
        horizon=LIMIT,
    )
    return policy, gradient_fn


def learn(
    key: jax.Array, weighting: str, rates: tuple[float, ...], num_seeds: int, num_updates: int
) -> dict[str, Any]:
    """Returns and policies of all runs, `[rates, gammas, seeds, updates]`; keys differ by seed."""

    def run(rate, gamma, key):
        policy, gradient_fn = on_cart_pole_with(gamma, weighting)

        def followed(key, params):
            gradient, metrics = gradient_fn(key, params)
            return gradient, metrics | {"params": params}

        optimizer = optax.adam(rate)
        init_key, train_key = jax.random.split(key)
        state = train.init(init_key, policy.init(init_key, jnp.zeros(4)), optimizer)
        _, metrics = train.train(train_key, state, followed, optimizer, num_steps=num_updates)
        return {name: metrics[name] for name in ("return", "discounted_return", "params")}

    over_seeds = jax.vmap(run, (None, None, 0))
    over = jax.jit(jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (0, None, None)))
    keys = jax.random.split(key, num_seeds)
    return jax.tree.map(np.asarray, over(jnp.array(rates), jnp.array(list(CART_GAMMAS)), keys))


def auditor(weighting: str, num_replicates: int) -> Callable[..., Audit]:
    """`(key, (params, discount), reference) -> Audit` of batches on CartPole."""

    def gradient_fn(key, at):
        params, discount = at
        return on_cart_pole_with(discount, weighting)[1](key, params)

    return audit.auditor(gradient_fn, num_replicates=num_replicates, chunk_size=64)


def row(found: Audit, truth: Audit, undiscounted: Audit) -> dict[str, Any]:
    """An audit beside two independent references: grad J_gamma and grad J_1."""
    other = audit.summarise(found.mean, found.blocks, undiscounted.blocks)
    squared = intervals.ratio(found.squared_norm, truth.squared_norm, 0.0)
    return {
        "cosine": found.cosine,
        "cosine_to_undiscounted": other.cosine,
        "length_ratio": np.sqrt(np.clip(squared, 0, None)),
        "snr": found.snr,
        "p_value": found.bias_test.p_value if found.bias_test else None,
    }


def at_best_rate(
    runs: dict[str, dict[str, Any]], rates: tuple[float, ...], gamma: int
) -> dict[str, dict[str, Any]]:
    """The runs of each weighting at the rate with the highest return over all updates."""
    found = {}
    for name, run in runs.items():
        best = int(np.argmax(statistics.iqm(run["return"][:, gamma].mean(-1).T)))
        found[name] = {x: run[x][best, gamma] for x in ("return", "discounted_return")}
        found[name]["rate"] = rates[best]
    return found


def scores(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """IQMs over seeds with intervals: over all updates, in the last tenth, and of differences."""
    last = lambda x: x[:, -max(1, x.shape[1] // 10) :].mean(1)
    looks = {
        "all": lambda run: run["return"].mean(1),
        "last": lambda run: last(run["return"]),
        "last_discounted": lambda run: last(run["discounted_return"]),
    }
    found: dict[str, Any] = {"rate": {name: run["rate"] for name, run in runs.items()}}
    for look, of in looks.items():
        values = {name: of(run) for name, run in runs.items()}
        values["difference"] = values["uniform"] - values["discounted"]
        found[look] = {name: statistics.summarise(x) for name, x in values.items()}
    return found


def describe(numbers: dict[str, Any]) -> str:
    """The finding, from the numbers."""
    trap, worst, share = numbers["trap"], numbers["worst_trap"], numbers["asymmetry"]["uniform"]
    low, high = min(trap["wrong_from"]), max(trap["wrong_to"])
    same = len(set(trap["wrong_to"])) == len(set(trap["wrong_from"])) == 1
    start, along, plain = trap["start"], trap["reached"]["discounted"], trap["reached"]["uniform"]
    reached = worst["reached"]["uniform"]
    gap = max(reached[x] - worst["worst"][x] for x in reached)
    percent = lambda gamma, i: f"{float(share['at'][gamma][i]):.0%}"
    none = "the gradient of no function" if share["least_below_one"] > 1e-6 else "NOT SHOWN"
    return (
        f"At gamma {GAMMA} and theta {THETA} the exact gradient of J_gamma is "
        f"{trap['gradient']:+.4f}. The mean of reward-to-go is {trap['mean']['discounted']:+.4f} "
        f"with gamma^t and {trap['mean']['uniform']:+.4f} without; the trace for an episode, "
        f"{trap['trace']['discounted']:.3f} and {trap['trace']['uniform']:.3f}. Its sign is wrong "
        f"for gamma from {low:g} to {high:g}, in steps of 0.01, "
        f"{'at every' if same else 'depending on'} theta. "
        f"Without gamma^t the mean is here the gradient of the undiscounted return J_1 (to "
        f"{trap['from_undiscounted_gradient']:.0e}, whatever gamma), as no action changes what "
        f"comes next: following it takes J_1 from {start['undiscounted']:.3f} to "
        f"{plain['undiscounted']:.3f} and J_gamma from {start['discounted']:.3f} to "
        f"{plain['discounted']:.3f}; with gamma^t J_gamma gets to {along['discounted']:.3f}. In "
        f"general it does not ascend J_1 either. In the second trap both returns "
        f"{'fall' if worst['always_falling'] else 'DO NOT ALWAYS FALL'} with the probability of "
        f"going on, which without gamma^t is nevertheless driven up from "
        f"{worst['starts_at']:.2f}: to J_gamma {reached['discounted']:.2f} and J_1 "
        f"{reached['undiscounted']:.2f}, within {gap:.0e} of the worst there is of either; with "
        f"gamma^t J_gamma gets to {worst['reached']['discounted']['discounted']:.2f}. A function "
        f"of one parameter is always a derivative; of eight parameters, on {NUM_MDPS} random "
        f"MDPs, the Jacobian of the expected update without gamma^t is antisymmetric to a share of "
        f"{percent('0', 1)} at gamma 0, {percent('0.5', 1)} at 0.5 and {percent('0.9', 1)} at 0.9 "
        f"(median; at most {percent('0', 2)}, {percent('0.5', 2)} and {percent('0.9', 2)}), and "
        f"{share['least_below_one']:.0e} or more in each of them at each gamma below 1: {none}. "
        f"With gamma^t the share is {numbers['asymmetry']['discounted']['largest']:.0e} at most. "
        + describe_cart_pole(numbers["cart_pole"])
    )


def describe_cart_pole(numbers: dict[str, Any]) -> str:
    """What was measured on CartPole."""
    lengths = numbers["episode_length"]
    steps = ", ".join(f"{length:.0f}" for length in lengths.values())
    directions = [direction(gamma, list(x.values())) for gamma, x in numbers["audits"].items()]
    learned = [learning(gamma, found) for gamma, found in numbers["training"].items()]
    return (
        f"CartPole, batches of {BATCH} episodes of a linear policy after "
        f"{', '.join(map(str, lengths))} updates with gamma^t at 0.99 ({steps} steps an episode); "
        f"intervals of 95% from {numbers['replicates']} batches. {' '.join(directions)} Trained "
        f"for {numbers['updates']} updates, IQM of {numbers['seeds']} seeds, without gamma^t "
        f"against with it: {'; '.join(learned)}. The step size is the best of "
        f"{len(numbers['step_sizes'])} for each, chosen on these runs, and Adam hides that the two "
        f"updates differ in length."
    )


def direction(gamma: float, looks: list[dict[str, Any]]) -> str:
    """Direction, length and noise without gamma^t, at each look."""
    listed = lambda name, field: ", ".join(f"{x[name][field][0]:.2f}" for x in looks)
    pairs = lambda field: [compared(x["uniform"][field], x["discounted"][field]) for x in looks]
    cosines = ", ".join(between(x["uniform"]["cosine"]) for x in looks)
    chances = ", ".join(chance(x["uniform"]["p_value"]) for x in looks)
    lengths = ", ".join(between(x["uniform"]["length_ratio"], ".1f") for x in looks)
    return (
        f"At gamma {gamma:g} the cosine of the expected update without gamma^t to grad J_gamma is "
        f"{cosines} and its length {lengths} times that of grad J_gamma (p of no bias {chances}). "
        f"Its cosine to grad J_1 is {listed('uniform', 'cosine_to_undiscounted')}; that of the "
        f"update with gamma^t, {listed('discounted', 'cosine_to_undiscounted')} (the former "
        f"{', '.join(pairs('cosine_to_undiscounted'))}). Its signal-to-noise ratio is "
        f"{listed('uniform', 'snr')}; with gamma^t, {listed('discounted', 'snr')} (the former "
        f"{', '.join(pairs('snr'))})."
    )


def learning(gamma: float, found: dict[str, Any]) -> str:
    """What training reached without gamma^t, against what it reached with it."""

    def told(look, digits):
        centre = lambda name: f"{float(found[look][name].centre):.{digits}f}"
        difference = found[look]["difference"]
        interval = (difference.centre, difference.low, difference.high)
        verdict = compared(interval, (0, 0, 0))
        return (
            f"{centre('uniform')} against {centre('discounted')} (difference "
            f"{between(interval, f'.{digits}f')}, {verdict})"
        )

    return (
        f"at gamma {gamma:g} the return is {told('last', 0)} in the last tenth and "
        f"{told('all', 0)} over all updates, J_gamma {told('last_discounted', 2)} in the last "
        f"tenth (no policy has more than {(1 - gamma**LIMIT) / (1 - gamma):.2f})"
    )


def chance(p_value: float) -> str:
    """A p-value; far in the tail its distribution is not known well enough to say more."""
    return f"{p_value:.0e}" if p_value > 1e-10 else "below 1e-10"


def between(interval: Any, form: str = ".2f") -> str:
    """A number and its interval."""
    value, low, high = (f"{x:{form}}" for x in interval)
    return f"{value} ({low} to {high})"


def compared(first: Any, second: Any) -> str:
    """Whether intervals `(value, low, high)` tell two numbers apart."""
    if first[1] > second[2]:
        return "larger"
    return "smaller" if first[2] < second[1] else "not told apart"


def draw_signs(axes: Axes, means: dict[str, np.ndarray]) -> None:
    """The expected update over gamma."""
    for theta, style in SHOWN.items():
        for name, colour in WEIGHTINGS.items():
            mean = means[name][:, THETAS.index(theta)]
            axes.plot(GAMMAS, mean, style, color=colour)
            axes.text(1.02, mean[-1], f"theta {theta:g}", fontsize="small", va="center")
    wrong = np.sign(means["uniform"]) == -np.sign(means["discounted"])
    end = GAMMAS[wrong.all(axis=1)].max(initial=0)
    axes.axvspan(0, end, color="0.93", zorder=0)
    axes.text(end / 2, 0.27, "wrong sign", ha="center", fontsize="small")
    axes.text(0.3, 0.185, "with gamma^t", color=WEIGHTINGS["discounted"], fontsize="small")
    axes.text(0.3, -0.115, "without", color=WEIGHTINGS["uniform"], fontsize="small")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(-0.15, 0.3)
    dress(axes, "Trap: expected update, exact", "gamma", "mean of reward-to-go")


def draw_paths(axes: Axes, title: str, paths: Paths) -> None:
    """Both returns along both updates."""
    styles = {"discounted": ("-", "J_gamma"), "undiscounted": ("--", "J_1")}
    for (name, colour), label in zip(WEIGHTINGS.items(), ("with gamma^t", "without"), strict=True):
        for of, (style, objective) in styles.items():
            text = f"{objective}, {label}"
            axes.plot(1 + np.arange(NUM_STEPS), paths[name][of], style, color=colour, label=text)
    axes.set_xscale("log")
    axes.set_xlim(1, NUM_STEPS)
    dress(axes, title, "updates", "exact return")


def draw_asymmetry(axes: Axes, shares: dict[str, np.ndarray]) -> None:
    """Median and range over MDPs."""
    for (name, colour), label in zip(WEIGHTINGS.items(), ("with gamma^t", "without"), strict=True):
        low, middle, high = np.quantile(shares[name], (0, 0.5, 1), axis=0)
        axes.plot(COARSE, middle, color=colour)
        axes.fill_between(COARSE, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.text(0.02, middle[0] + 0.012, label, color=colour, fontsize="small")
    dress(
        axes,
        "Random MDPs: Jacobian of the expected update",
        "gamma",
        f"antisymmetric share\n(median and range of {NUM_MDPS})",
    )


def draw_cosines(axes: Axes, numbers: dict[str, Any]) -> None:
    """Directions at the points where the policy was looked at."""
    lengths = numbers["episode_length"]
    lines = (
        ("-", "uniform", "cosine", "without, to grad J_gamma"),
        ("--", "uniform", "cosine_to_undiscounted", "without, to grad J_1"),
        (":", "discounted", "cosine_to_undiscounted", "with gamma^t, to grad J_1"),
    )
    for i, (gamma, colour) in enumerate(CART_GAMMAS.items()):
        for j, (style, name, field, label) in enumerate(lines):
            value, low, high = np.array(
                [x[name][field] for x in numbers["audits"][gamma].values()]
            ).T
            place = np.arange(len(lengths)) + 0.03 * (3 * i + j - 2.5)
            text = f"{gamma:g}: {label}"
            axes.plot(place, value, style, color=colour, marker="o", markersize=3, label=text)
            axes.vlines(place, low, high, color=colour)
    axes.set_xticks(
        range(len(lengths)), [f"{n} updates,\n{x:.0f} steps" for n, x in lengths.items()]
    )
    axes.legend(frameon=False, fontsize="small", title="gamma", alignment="left")
    dress(axes, "CartPole: direction of the expected update", "", "cosine, interval of 95%")


def draw_training(axes: Axes, curves: dict[float, dict[str, np.ndarray]]) -> None:
    """Learning curves."""
    for (gamma, runs), style in zip(curves.items(), ("-", "--"), strict=True):
        for (name, colour), label in zip(
            WEIGHTINGS.items(), ("with gamma^t", "without"), strict=True
        ):
            curve = statistics.summarise(runs[name])
            update = np.arange(1, len(curve.centre) + 1)
            text = f"{gamma:g}: {label}"
            axes.plot(update, curve.centre, style, color=colour, label=text)
            axes.fill_between(update, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1.35 * LIMIT)
    axes.legend(
        frameon=False, fontsize="small", loc="upper left", ncols=2, title="gamma", alignment="left"
    )
    dress(axes, "CartPole: training, each at its best rate", "updates", "return (IQM, 95%)")


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles and labels."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    report.main("discount_trap", study, __doc__ or "")
