"""What three habits do to the gradient: standardising, counting oneself, ending at the time limit.

Standardised advantages: the exact mean gradient against the true one, by the number of episodes K,
on two bandits: one whose contexts have rewards of different sizes, and a lottery that is usually
won but loses on average. A baseline that includes an episode's own return: likewise. A time limit
that is taken for a natural end: the exact gradient on a continuing task, and the values that are
learned where every true value is one. For two of the three, also what they cost in return.

    python -m experiments.biased_habits            (about a minute and a half on two cores)
    python -m experiments.biased_habits --quick

Source: Pardo et al. 2018, "Time Limits in Reinforcement Learning", for the last.
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
from pgjax import environments, estimators, exact, gradients, policies, train
from pgjax.environments import MDP, TabularMDP
from pgjax.estimators import Estimator, Hyper
from pgjax.lab import statistics
from pgjax.lab.plots import COLOURS

LEAVE_ONE_OUT, BATCH_MEAN, STANDARDISE = (
    estimators.estimator("reward_to_go", baseline)
    for baseline in ("leave_one_out", "batch_mean", "standardise")
)
GAE = estimators.estimator("gae", "none")
TD = estimators.estimator("td_residual", "none")
UNDISCOUNTED = Hyper(discount=1.0)
HYPER = Hyper(discount=0.95, lambda_=0.95)
CHAIN, CASH = 5, 0.4
LIMIT = 6
CUTS = {"bootstrapped": False, "taken for an end": True}
CUT_GRADIENTS = (*CUTS, "taken for an end, lambda = 1")
GAMMA = HYPER.discount
NO_KEY: Any = None
RATES = {"policy": 0.01, "value": 0.3}


class EndsAtLimit(TabularMDP):
    """The third habit: an episode that the time limit cuts counts as ended."""

    def is_terminated(self, state, params):
        at_limit = state.time >= params.max_steps_in_episode
        return super().is_terminated(state, params) | at_limit


def study(quick: bool) -> report.Findings:
    """Each habit in turn."""
    counts = (2, 4) if quick else (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    limits = (LIMIT,) if quick else (LIMIT, 12, 24, 48, 96)
    num_seeds, num_updates = (8, 60) if quick else (40, 500)
    shapes = {name: against_truth(mdp, counts) for name, mdp in BANDITS.items()}
    played = {
        choice.baseline: learn_bandit(choice, num_seeds, num_updates)
        for choice in (LEAVE_ONE_OUT, BATCH_MEAN, STANDARDISE)
    }
    climbed = {name: learn_chain(ends, num_seeds, num_updates) for name, ends in CUTS.items()}
    numbers = {
        "seeds": num_seeds,
        "updates": num_updates,
        "episodes": counts,
        "mean_gradient": shapes,
        "standardised_after_scaling": scaled(),
        "lottery": {name: last(curve) for name, curve in played.items()},
        "limits": limits,
        "cut": [cut_gradient(limit) for limit in limits],
        "noise_from_nothing": constant_rewards(),
        "critic": {name: critic(ends, limits) for name, ends in CUTS.items()},
        "critic_predicted": [fixed_point(limit) for limit in limits],
        "chain": {name: last(curve) for name, curve in climbed.items()},
        "hasty": last(learn_chain(False, num_seeds, num_updates, 2 * RATES["policy"])),
        "chain_policies": chain_policies(),
    }
    return report.Findings(draw(numbers, played, climbed), numbers, describe(numbers))


# --- bandits: episodes of one step ----------------------------------------------------------------


def contexts() -> MDP:
    """One arm is worth one nine times in ten and ten otherwise; the other is worth nothing."""
    ends = np.arange(3) == 2
    reward = np.zeros((3, 2, 3))
    reward[:2, 1, 2] = [1, 10]
    return MDP(
        transition=np.broadcast_to(ends.astype(float), reward.shape),
        reward=reward,
        initial=np.array([0.9, 0.1, 0]),
        terminal=ends,
    )


def lottery(scale: float = 1.0) -> MDP:
    """One arm wins one nine times in ten and loses twenty otherwise; the other does nothing."""
    transition = np.zeros((3, 2, 3))
    transition[:, 0, 1] = 1
    transition[:, 1] = [0, 0.9, 0.1]
    reward = np.zeros((3, 2, 3))
    reward[0, 1] = [0, scale, -20 * scale]
    return MDP(transition, reward, np.eye(3)[0], np.arange(3) > 0)


BANDITS = {"contexts": contexts(), "lottery": lottery()}
BANDIT_POLICY, BANDIT_PARAMS = policies.tabular(3, 2), np.zeros((3, 2))


def mean_gradients(mdp: MDP, choices: dict[Any, tuple[Estimator, int]]) -> dict[Any, jax.Array]:
    """Exact mean gradients of `(estimator, episodes)` pairs, and the truth, in one program."""

    def of(params):
        found = {
            name: exact.exact_moments(
                mdp, BANDIT_POLICY, params, choice, UNDISCOUNTED, horizon=1, num_episodes=k
            ).mean
            for name, (choice, k) in choices.items()
        }
        truth = exact.exact_gradient(mdp, BANDIT_POLICY, UNDISCOUNTED, horizon=1)
        return found | {"truth": truth(NO_KEY, params)[0]}

    return jax.jit(of)(BANDIT_PARAMS)


def against_truth(mdp: MDP, counts: tuple[int, ...]) -> dict[str, dict[str, list[float]]]:
    """Cosine and relative length of the mean gradient, by estimator and number of episodes."""
    choices = {
        f"{choice.baseline} {k}": (choice, k)
        for choice in (LEAVE_ONE_OUT, BATCH_MEAN, STANDARDISE)
        for k in counts
    }
    found = mean_gradients(mdp, choices)
    truth = found.pop("truth")
    shape = lambda baseline, of: [float(of(found[f"{baseline} {k}"], truth)) for k in counts]
    return {
        baseline: {"cosine": shape(baseline, cosine), "length": shape(baseline, length)}
        for baseline in ("leave_one_out", "batch_mean", "standardise")
    }


def scaled() -> dict[str, float]:
    """Length of the standardised gradient of four episodes with rewards ten times as large."""
    of = lambda scale: mean_gradients(lottery(scale), {"found": (STANDARDISE, 4)})
    once, ten = of(1.0), of(10.0)
    return {
        "mean_gradient": float(length(ten["found"], once["found"])),
        "truth": float(length(ten["truth"], once["truth"])),
    }


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(x * y) / jnp.sqrt(jnp.sum(x**2) * jnp.sum(y**2))


def length(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x**2) / jnp.sum(y**2))


def learn_bandit(choice: Estimator, num_seeds: int, num_updates: int) -> np.ndarray:
    """Exact returns on the lottery while learning from four episodes an update."""
    mdp = lottery()
    env = environments.tabular_mdp(mdp)
    gradient_fn = gradients.policy_gradient(
        env,
        env.default_params,
        BANDIT_POLICY,
        choice,
        UNDISCOUNTED,
        num_episodes=4,
        horizon=1,
    )
    worth = lambda params: exact.expected_return(
        mdp, BANDIT_POLICY, params, UNDISCOUNTED, horizon=1
    )
    params = {"policy": jnp.asarray(BANDIT_PARAMS)}
    gradient = lambda key, params: {"policy": gradient_fn(key, params["policy"])[0]}
    return learn(gradient, params, worth, num_seeds, num_updates)


def learn(
    gradient: Callable[..., Any],
    params: dict[str, Any],
    worth: Callable[[Any], jax.Array],
    num_seeds: int,
    num_updates: int,
    rate: float = RATES["policy"],
) -> np.ndarray:
    """What the policy is worth before every update, `[seeds, updates]`."""

    def followed(key, params):
        return gradient(key, params), {"worth": worth(params["policy"])}

    parts: Any = {"policy": optax.adam(rate), "value": optax.adam(RATES["value"])}
    optimizer = optax.partition(parts, {name: name for name in params})

    def run(key):
        state = train.init(key, params, optimizer)
        return train.train(key, state, followed, optimizer, num_steps=num_updates)[1]["worth"]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), num_seeds)))


def last(curve: np.ndarray) -> dict[str, float]:
    """Interquartile mean over seeds of what was learned, with its interval."""
    found = statistics.summarise(curve[:, -1])
    return {"return": float(found.centre), "low": float(found.low), "high": float(found.high)}


# --- a continuing task with a time limit ----------------------------------------------------------


def chain() -> MDP:
    """Cash in and stay for 0.4, or climb for nothing; climbing at the top is worth one."""
    states = np.arange(CHAIN)
    transition = np.zeros((CHAIN, 2, CHAIN))
    transition[states, 0, states] = 1
    transition[states, 1, np.minimum(states + 1, CHAIN - 1)] = 1
    reward = np.zeros((CHAIN, 2, CHAIN))
    reward[:, 0] = CASH
    reward[-1, 1] = 1
    return MDP(transition, reward, np.eye(CHAIN)[0], np.zeros(CHAIN, bool))


def even(mdp: MDP, reward: float) -> MDP:
    """The same MDP with one reward, whatever is done."""
    return mdp._replace(reward=np.full_like(mdp.reward, reward))


POLICY, PARAMS = policies.tabular(CHAIN, 2), np.zeros((CHAIN, 2))
VALUE = policies.tabular_value(CHAIN)


def cut_gradient(limit: int) -> dict[str, dict[str, float]]:
    """Mean gradients of episodes cut at a limit with the exact values of the endless task.

    They are compared with that of the endless objective; the last, whose lambda is one, also with
    that of the limit.
    """
    mdp = chain()
    truth, _ = exact.exact_gradient(mdp, POLICY, HYPER, horizon=None)(NO_KEY, PARAMS)
    value = exact.values(mdp, POLICY, PARAMS, HYPER, horizon=None).state
    on, off = both_ends(value, limit)
    found = moments(mdp, limit, jnp.stack([on, off, off]), jnp.array([HYPER.lambda_] * 2 + [1.0]))
    error = lambda x: float(jnp.sqrt(jnp.sum((x - truth) ** 2) / jnp.sum(truth**2)))
    rows = {
        name: {
            "error": error(mean),
            "cosine": float(cosine(mean, truth)),
            "climb_at_start": float(mean[0, 1] / truth[0, 1]),
        }
        for name, mean in zip(CUT_GRADIENTS, found.mean, strict=True)
    }
    rows[CUT_GRADIENTS[2]]["bias_for_the_limit"] = float(jnp.linalg.norm(found.bias[2]))
    return rows


def both_ends(value: jax.Array, limit: int) -> tuple[jax.Array, jax.Array]:
    """Values at every time, with and without anything after the limit."""
    on = jnp.broadcast_to(value, (limit + 1, len(value)))
    return on, on.at[-1].set(0)


def moments(mdp: MDP, limit: int, values: jax.Array, lambdas: jax.Array) -> exact.Moments:
    """Exact moments of one episode with generalised advantages, for several values and lambdas."""

    def of(value, lambda_):
        hyper = HYPER._replace(lambda_=lambda_)
        return exact.exact_moments(mdp, POLICY, PARAMS, GAE, hyper, horizon=limit, value=value)

    return jax.jit(jax.vmap(of))(values, lambdas)


def constant_rewards() -> dict[str, dict[str, float]]:
    """Mean and spread of the gradient where every value is one and no action matters."""
    mdp = even(chain(), 1 - GAMMA)
    values = jnp.stack(both_ends(jnp.ones(CHAIN), LIMIT))
    found = moments(mdp, LIMIT, values, jnp.full(2, HYPER.lambda_))
    return {
        name: {
            "mean": float(jnp.linalg.norm(found.mean[i])),
            "deviation": float(jnp.sqrt(jnp.maximum(found.trace[i], 0))),
        }
        for i, name in enumerate(CUTS)
    }


def actor_critic(mdp: MDP, choice: Estimator, ends: bool, num_episodes: int, horizon: int):
    """The gradient under any time limit, `(limit) -> GradientFn`; the limit may be traced."""
    env: Any = EndsAtLimit(mdp) if ends else environments.tabular_mdp(mdp)

    def within(limit):
        return gradients.policy_gradient(
            env,
            env.default_params.replace(max_steps_in_episode=limit),
            POLICY,
            choice,
            HYPER,
            num_episodes=num_episodes,
            horizon=horizon,
            value_function=VALUE,
        )

    return within


def critic(ends: bool, limits: tuple[int, ...]) -> list[float]:
    """Values learned by temporal differences in a single state, the top, whose value is one."""
    mdp = even(chain(), 1 - GAMMA)._replace(initial=np.eye(CHAIN)[-1])
    within = actor_critic(mdp, TD, ends, 1, max(limits))
    parts: Any = {"policy": optax.set_to_zero(), "value": optax.sgd(1.0)}
    optimizer = optax.partition(parts, {name: name for name in parts})

    def value(limit):
        params = {"policy": jnp.asarray(PARAMS), "value": jnp.zeros(CHAIN)}
        state = train.init(jax.random.key(0), params, optimizer)
        state, _ = train.train(jax.random.key(1), state, within(limit), optimizer, num_steps=400)
        return state.params["value"][-1]

    return np.asarray(jax.jit(jax.vmap(value))(jnp.array(limits))).tolist()


def fixed_point(limit: int) -> float:
    """The solution of V = r + gamma (1 - 1/T) V, r = 1 - gamma: one step in T is the last."""
    return (1 - GAMMA) / (1 - GAMMA * (1 - 1 / limit))


def learn_chain(
    ends: bool, num_seeds: int, num_updates: int, rate: float = RATES["policy"]
) -> np.ndarray:
    """Exact returns without a limit while an actor-critic learns from episodes cut at one."""
    mdp = chain()
    gradient_fn = actor_critic(mdp, GAE, ends, 8, LIMIT)(LIMIT)
    worth = lambda params: exact.expected_return(mdp, POLICY, params, HYPER, horizon=None)
    params = {"policy": jnp.asarray(PARAMS), "value": jnp.zeros(CHAIN)}
    gradient = lambda key, params: gradient_fn(key, params)[0]
    return learn(gradient, params, worth, num_seeds, num_updates, rate)


def chain_policies() -> dict[str, dict[str, float]]:
    """What always climbing and always cashing in are worth, without and within the limit."""
    sure = {"climb": np.array([-50.0, 50.0]), "cash": np.array([50.0, -50.0])}
    horizons = {"endless": None, "within the limit": LIMIT}
    return {
        of: {
            name: float(
                exact.expected_return(
                    chain(), POLICY, np.broadcast_to(x, (CHAIN, 2)), HYPER, horizon=horizon
                )
            )
            for name, x in sure.items()
        }
        for of, horizon in horizons.items()
    }


# --- what is said of it ---------------------------------------------------------------------------


def describe(numbers: dict[str, Any]) -> str:
    """The finding, from the numbers."""
    counts, limits = numbers["episodes"], numbers["limits"]
    rotated = numbers["mean_gradient"]["contexts"]["standardise"]
    reversed_ = numbers["mean_gradient"]["lottery"]["standardise"]["cosine"]
    own = [numbers["mean_gradient"][name]["batch_mean"] for name in BANDITS]
    shrink = np.array([(k - 1) / k for k in counts])
    off = max(np.abs(np.array(x["length"]) - shrink).max() for x in own)
    turned = max(1 - min(x["cosine"]) for x in own)
    wrong = [k for k, x in zip(counts, reversed_, strict=True) if x < 0]
    first_right = [k for k in counts if k not in wrong]
    signs = (
        f"points the wrong way with {', '.join(map(str, wrong))} episodes"
        + (f" and the right way with {', '.join(map(str, first_right))}" if first_right else "")
        if wrong
        else "points the right way throughout"
    )
    scaled = numbers["standardised_after_scaling"]
    learned = numbers["lottery"]
    same = abs(learned["batch_mean"]["return"] - learned["leave_one_out"]["return"])
    worth = lambda row: f"{row['return']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    cut, noise = numbers["cut"], numbers["noise_from_nothing"]
    right, wrongly, plain = (cut[0][name] for name in CUT_GRADIENTS)
    closer = [
        limit
        for limit, row in zip(limits, cut, strict=True)
        if row["taken for an end"]["cosine"] > row["bootstrapped"]["cosine"] + 1e-6
    ]
    beaten = (
        f"at {', '.join(map(str, closer))} steps that of the habit is the larger"
        if closer
        else "that of the habit is nowhere the larger"
    )
    sign = {True: "uphill", False: "DOWNHILL"}
    start = lambda row: f"{row['climb_at_start']:.2f}"
    critics, predicted = numbers["critic"], numbers["critic_predicted"]
    missed = max(abs(x - y) for x, y in zip(critics["taken for an end"], predicted, strict=True))
    sure, chain = numbers["chain_policies"], numbers["chain"]
    late = numbers["hasty"]["high"] < chain["bootstrapped"]["low"]
    haste = ", since the policy has made up its mind before the values are known" * late
    return (
        f"Standardising, exact means over all batches. With rewards ten times as large the true "
        f"gradient is {scaled['truth']:.0f} times as long and the standardised one "
        f"{scaled['mean_gradient']:.6f} times. With contexts whose rewards differ in size it "
        f"rotates: cosine to the truth {rotated['cosine'][0]:.3f} at K = {counts[0]} and "
        f"{rotated['cosine'][-1]:.3f} at {counts[-1]}. On a lottery that is won nine times in ten "
        f"and loses on average it {signs}: a batch without the great loss says that playing pays, "
        f"and one with it is scaled down. Learned from four episodes an update, the policy is "
        f"worth (interquartile mean over {numbers['seeds']} seeds after {numbers['updates']} "
        f"updates; not playing is worth 0, always playing -1.1) {worth(learned['standardise'])} "
        f"standardised, {worth(learned['leave_one_out'])} with leave-one-out and "
        f"{worth(learned['batch_mean'])} with the batch mean. The own return in the batch mean "
        f"shrinks the gradient to (K - 1)/K of itself, exactly (off by {off:.0e} at most), and "
        f"does not turn it (1 - cosine at most {turned:.0e}): for Adam, which divides by the "
        f"length, that is nothing: its returns are within {same:.0e} of leave-one-out's. A "
        f"time limit taken for a natural end, on a continuing task with exact values and lambda "
        f"{HYPER.lambda_:g}, against the gradient of the endless objective: at the start, where "
        f"climbing is right, with a limit of {limits[0]} steps the gradient of climbing is "
        f"{start(wrongly)} of the true one, {sign[wrongly['climb_at_start'] > 0]}, against "
        f"{start(right)} where the cut is bootstrapped. What both lack are the steps after the "
        f"limit, where the later states are: the cosine of the whole gradient is "
        f"{wrongly['cosine']:.2f} and {right['cosine']:.2f}, and {beaten}. At {limits[-1]} steps "
        f"the relative errors are "
        f"{cut[-1]['taken for an end']['error']:.1e} and {cut[-1]['bootstrapped']['error']:.1e}. "
        f"With lambda = 1 ending there is no error for another objective, the return within the "
        f"limit (bias {plain['bias_for_the_limit']:.0e}); for the endless one its cosine is "
        f"{plain['cosine']:.2f}. Where every value is c and nothing matters, "
        f"bootstrapping gives a gradient that is zero in every episode (deviation "
        f"{noise['bootstrapped']['deviation']:.0e} c), and the habit one that is zero in the mean "
        f"({noise['taken for an end']['mean']:.0e} c) with a deviation of "
        f"{noise['taken for an end']['deviation']:.2f} c. A critic learned there by temporal "
        f"differences comes to {listed(critics['bootstrapped'])} c at limits of "
        f"{', '.join(map(str, limits))}, and with the habit to "
        f"{listed(critics['taken for an end'])} c, as (1 - gamma)/(1 - gamma (1 - 1/T)) says (to "
        f"{missed:.0e}). In return: an actor-critic with a limit of {LIMIT}, where climbing is "
        f"worth {sure['endless']['climb']:.1f} and cashing in {sure['endless']['cash']:.1f}, but "
        f"{sure['within the limit']['climb']:.2f} and {sure['within the limit']['cash']:.2f} "
        f"within the limit, comes to {worth(chain['bootstrapped'])} where it bootstraps and to "
        f"{worth(chain['taken for an end'])} where it does not. The step size was chosen for the "
        f"former to learn: with twice that of the policy it comes to {worth(numbers['hasty'])}"
        f"{haste}."
    )


def listed(values: list[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in values)


def draw(
    numbers: dict[str, Any], played: dict[str, np.ndarray], climbed: dict[str, np.ndarray]
) -> Figure:
    """The batch on top, the time limit below."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    (turn, size, play), (cut, value, climb) = figure.subplots(2, 3)
    draw_means(turn, size, numbers)
    draw_cut(cut, numbers)
    limits, critics = numbers["limits"], numbers["critic"]
    grid = np.geomspace(limits[0], limits[-1])
    value.plot(grid, [fixed_point(x) for x in grid], color=COLOURS[1], linewidth=1)
    value.axhline(1, color=COLOURS[0], linewidth=1)
    value.plot(limits, critics["taken for an end"], "o", color=COLOURS[1], label="taken for an end")
    value.plot(limits, critics["bootstrapped"], "o", color=COLOURS[0], label="bootstrapped")
    log_ticks(value, limits)
    value.set_ylim(0, 1.1)
    curve(play, played["leave_one_out"], "-", "leave-one-out", COLOURS[0])
    curve(play, played["batch_mean"], "--", "batch mean", COLOURS[5])
    curve(play, played["standardise"], "-", "standardised", COLOURS[1])
    for (name, values), colour in zip(climbed.items(), COLOURS, strict=False):
        curve(climb, values, "-", name, colour)
    dress(turn, "Direction: standardised", "episodes, K", "cosine of the mean to grad J")
    dress(size, "Length", "episodes, K", "|mean gradient| / |grad J|")
    dress(play, "Learning the lottery, K = 4", "updates", "expected return, exact")
    dress(
        cut, "Time limit: climbing at the start", "limit, steps", "mean gradient / endless grad J"
    )
    dress(value, "Time limit: a learned value", "limit, steps", "value / c (lines: predicted)")
    dress(climb, f"Learning with a limit of {LIMIT}", "updates", "endless expected return, exact")
    return figure


def draw_means(turn: Axes, size: Axes, numbers: dict[str, Any]) -> None:
    """Direction and length of mean gradients over the number of episodes."""
    counts, found = numbers["episodes"], numbers["mean_gradient"]
    colours = {"contexts": COLOURS[1], "lottery": COLOURS[3]}
    for name, colour in colours.items():
        of = found[name]["standardise"]
        turn.plot(counts, of["cosine"], "o-", color=colour, markersize=3, label=name)
        size.plot(
            counts, of["length"], "o-", color=colour, markersize=3, label=f"standardised, {name}"
        )
    tenfold = np.array(found["lottery"]["standardise"]["length"]) / 10
    label = "standardised, lottery, rewards x 10"
    size.plot(counts, tenfold, "o--", color=COLOURS[3], markersize=3, label=label)
    of = found["contexts"]
    size.plot(counts, of["batch_mean"]["length"], "o-", color=COLOURS[5], markersize=3)
    size.plot(counts, of["leave_one_out"]["length"], color=COLOURS[0])
    size.plot([], [], "o-", color=COLOURS[5], markersize=3, label="batch mean")
    size.plot([], [], color=COLOURS[0], label="leave-one-out")
    turn.axhline(1, color=COLOURS[0], linewidth=1, label="leave-one-out, batch mean")
    turn.axhline(0, color="0.8", linewidth=1, zorder=0)
    for axes in (turn, size):
        log_ticks(axes, [2**i for i in range(1, 7) if 2**i <= counts[-1]])
    size.set_yscale("log")


def draw_cut(axes: Axes, numbers: dict[str, Any]) -> None:
    """The gradient of climbing at the start of episodes that are cut, over the limit."""
    for name, colour in zip(CUT_GRADIENTS, COLOURS, strict=False):
        climbs = [row[name]["climb_at_start"] for row in numbers["cut"]]
        axes.plot(numbers["limits"], climbs, "o-", color=colour, markersize=3, label=name)
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    log_ticks(axes, numbers["limits"])


def log_ticks(axes: Axes, places: Any) -> None:
    """A logarithmic scale with ticks where the points are."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(x) for x in places])


def curve(axes: Axes, values: np.ndarray, style: str, label: str, colour: str) -> None:
    """Interquartile mean over seeds, and its interval."""
    found = statistics.summarise(values)
    axes.plot(found.centre, style, color=colour, label=label)
    axes.fill_between(
        np.arange(len(found.low)), found.low, found.high, color=colour, alpha=0.2, linewidth=0
    )


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, labels and a legend."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


if __name__ == "__main__":
    report.main("biased_habits", study, __doc__ or "")
