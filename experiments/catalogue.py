"""Bias and variance of every estimator: do the oracle and the audit agree, and which is best?

All forms, baselines and state weightings that `estimators.estimator` accepts, and the all-action
gradient with exact values, on three finite MDPs: exact moments against an audit of sampled
episodes. Estimators that read values get a table that is half of what it should be. All gradients
are of the same number of episodes K, whether the estimator couples them or not. Baselines that are
ratios over the batch have exact moments on the smallest MDP only, where batches are enumerated.

    python -m experiments.catalogue            (about four minutes on two cores)
    python -m experiments.catalogue --quick
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from experiments import report
from pgjax import environments, estimators, exact, gradients, policies, rollout
from pgjax.audit import Audit, auditor
from pgjax.environments import MDP
from pgjax.estimators import Estimator, Hyper
from pgjax.lab.plots import COLOURS
from pgjax.policies import Policy, ValueFunction

K = 4
BATCH = 64
BATCHES = (4, 64, 1024, 16384)
LEVEL = 0.95
ROUNDING = 1e-20
COUNTS_BATCH = ("leave_one_out_live", "time_mean", "standardise")
ALL_ACTION = "all-action"
NO_KEY: Any = None
QUICK_FORMS = ("reward_to_go", "gae")
NUM_REPLICATES = {True: 2048, False: 8192}


class Task(NamedTuple):
    """A policy in a finite MDP, with wrong values, and whether batches can be enumerated."""

    mdp: MDP
    policy: Policy
    params: jax.Array
    value_function: ValueFunction
    value: jax.Array  # of what is observed
    hyper: Hyper
    horizon: int
    tiny: bool = False

    @property
    def of_states(self) -> jax.Array:
        """The values `[S]`."""
        seen = self.mdp.observation
        return self.value if seen is None else self.value[seen]

    @property
    def gradient(self) -> jax.Array:
        """The truth."""
        gradient_fn = exact.exact_gradient(self.mdp, self.policy, self.hyper, horizon=self.horizon)
        return gradient_fn(NO_KEY, self.params)[0]


Row = dict[str, Any]


def study(quick: bool) -> report.Findings:
    """Exact moments and an audit of every estimator on every task."""
    rows = everything(quick)
    numbers = {
        "episodes_a_gradient": K,
        "gradients_audited": NUM_REPLICATES[quick],
        "episodes_in_the_ranking": BATCH,
        "accepted": len(list(accepted())),
        "different": len(list(different(False))),
        "agreement": agreement([row for task in rows.values() for row in task.values()]),
        "raised": {name: raised(task) for name, task in rows.items()},
        "coupling": {name: spread_by_coupling(task) for name, task in rows.items()},
        "best_by_batch": {name: best(task) for name, task in rows.items()},
        "ranked": {name: ranked(task) for name, task in rows.items()},
    }
    return report.Findings(draw(rows, NUM_REPLICATES[quick]), numbers, describe(numbers, rows))


def everything(quick: bool) -> dict[str, dict[Any, Row]]:
    """All estimators on all tasks; if quick, two forms on the smallest."""
    rows = {}
    for index, (name, make) in enumerate(TASKS.items()):
        if name == "tiny" or not quick:
            key = jax.random.fold_in(jax.random.key(0), index)
            rows[name] = of_task(key, make(), list(different(quick)), NUM_REPLICATES[quick])
    return rows


def accepted():
    """Every estimator that can be named."""
    names = (estimators.FORMS, estimators.BASELINES, estimators.STATE_WEIGHTINGS)
    for choice in itertools.product(*names):
        try:
            yield estimators.estimator(*choice)
        except ValueError:
            continue


def different(quick: bool):
    """Those that are not another estimator under a second name; if quick, some of them."""
    for choice in accepted():
        if quick and not (choice.form in QUICK_FORMS and choice.state_weighting == "discounted"):
            continue
        weighed_twice = choice.form == "total_return" and choice.state_weighting == "uniform"
        subtracted_twice = estimators.is_advantage(choice.form) and choice.baseline == "value"
        if not (weighed_twice or subtracted_twice):
            yield choice


def corridor() -> Task:
    """The short corridor, a little to the left of the best policy."""
    mdp = environments.short_corridor().mdp
    logits = jnp.log(jnp.array([[0.6, 0.4]]))
    return task(mdp, policies.tabular(1, 2), logits, discount=0.95, horizon=10)


def random_task() -> Task:
    """Five states, one of them the end, and three actions that lead anywhere."""
    key = jax.random.split(jax.random.key(1), 3)
    transition = np.asarray(jax.random.dirichlet(key[0], jnp.full(5, 0.5), (5, 3)))
    mdp = MDP(
        transition=transition,
        reward=np.asarray(jax.random.normal(key[1], (5, 3, 5))) + 1,
        initial=np.array([0.5, 0.3, 0.2, 0, 0]),
        terminal=np.arange(5) == 4,
    )
    logits = jax.random.normal(key[2], (5, 3))
    return task(mdp, policies.tabular(5, 3), logits, discount=0.9, horizon=10)


def tiny_task() -> Task:
    """Two states and the end, two actions, three steps: 39 possible episodes."""
    transition = np.zeros((3, 2, 3))
    transition[0] = [[0.7, 0.3, 0], [0, 0.6, 0.4]]
    transition[1] = [[0.5, 0.5, 0], [0, 0, 1]]
    transition[2, :, 2] = 1
    reward = np.array([[[1, -1, 0], [0, 2, 3]], [[-1, 1, 0], [0, 0, 2]], [[0, 0, 0]] * 2], float)
    mdp = MDP(transition, reward, initial=np.array([0.7, 0.3, 0]), terminal=np.arange(3) == 2)
    logits = jnp.array([[0.2, -0.3], [0.5, 0.1], [0, 0]])
    found = task(mdp, policies.tabular(3, 2), logits, discount=0.9, horizon=3)
    return found._replace(tiny=True)


TASKS = {"short corridor": corridor, "random": random_task, "tiny": tiny_task}


def task(mdp: MDP, policy: Policy, logits: jax.Array, *, discount: float, horizon: int) -> Task:
    """A task whose values are half the true mean over time; its constant is the return."""
    hyper = Hyper(discount=discount, lambda_=0.8, n=2)
    of_mdp = (mdp, policy, logits)
    true = exact.values(*of_mdp, hyper, horizon=horizon).state[:-1]
    visits = exact.visits(*of_mdp, hyper._replace(discount=1.0), horizon=horizon)
    states = np.arange(np.shape(mdp.terminal)[0])
    seen = states if mdp.observation is None else mdp.observation
    sums = jnp.zeros((2, logits.shape[0]))
    sums = sums.at[:, seen].add(jnp.stack([jnp.sum(visits * true, 0), jnp.sum(visits, 0)]))
    value = 0.5 * sums[0] / jnp.where(sums[1] > 0, sums[1], 1)
    constant = exact.expected_return(*of_mdp, hyper, horizon=horizon)
    hyper = hyper._replace(constant=float(constant))
    value_function = policies.tabular_value(logits.shape[0])
    return Task(mdp, policy, logits, value_function, value, hyper, horizon)


def of_task(
    key: jax.Array, task: Task, choices: list[Estimator], num_replicates: int
) -> dict[Any, Row]:
    """What is known of every estimator, in units of |grad J|^2."""
    gradient = task.gradient
    norm = float(jnp.sum(gradient**2))
    moments = exact_moments(task, choices)
    audits = measure(key, task, choices, gradient, num_replicates)
    return {name: row(moments.get(name), found, norm) for name, found in audits.items()}


def exact_moments(task: Task, choices: list[Estimator]) -> dict[Any, tuple[float, float]]:
    """Trace and squared bias of all estimators for which they are exact, in one program."""
    known = [x for x in choices if task.tiny or x.baseline not in COUNTS_BATCH]

    def of(params):
        of_mdp = (task.mdp, task.policy, params)
        kwargs: Any = {"horizon": task.horizon, "num_episodes": K}
        found = [
            exact.exact_moments(*of_mdp, choice, task.hyper, value=task.of_states, **kwargs)
            for choice in known
        ]
        if task.mdp.observation is None:
            found.append(exact.all_action_moments(*of_mdp, task.hyper, **kwargs))
        return [(x.trace, jnp.sum(x.bias**2)) for x in found]

    found = jax.jit(of)(task.params)
    return {
        name: (float(trace), float(bias))
        for name, (trace, bias) in zip([*known, ALL_ACTION], found, strict=False)
    }


def measure(
    key: jax.Array,
    task: Task,
    choices: list[Estimator],
    gradient: jax.Array,
    num_replicates: int,
) -> dict[Any, Audit]:
    """Audits of independent episodes, by one program that is told which estimator to use."""
    env = environments.tabular_mdp(task.mdp)
    sizes: Any = {"num_episodes": K, "horizon": task.horizon}
    names: list[Any] = list(choices)
    branches: list[Callable[..., Any]] = [of_trajectory(task, choice) for choice in choices]
    if task.mdp.observation is None:
        q = exact.action_values(task.mdp, task.policy, task.hyper, horizon=task.horizon)
        all_action = gradients.all_action_gradient(
            env, env.default_params, task.policy, task.hyper, action_values=q, **sizes
        )
        names.append(ALL_ACTION)
        branches.append(lambda key, params, *_: all_action(key, params)[0])

    def gradient_fn(key, chosen):
        params, which = chosen
        trajectory = rollout.episodes(key, env, env.default_params, task.policy, params, **sizes)
        values = gradients.values(task.value_function, task.value, trajectory)
        return jax.lax.switch(which, branches, key, params, trajectory, *values), {}

    measure = auditor(gradient_fn, num_replicates=num_replicates, chunk_size=2048, level=LEVEL)
    keys = jax.random.split(key, len(names))
    return {
        name: measure(keys[i], (task.params, np.int32(i)), gradient) for i, name in enumerate(names)
    }


def of_trajectory(task: Task, choice: Estimator) -> Callable[..., jax.Array]:
    """`(key, params, trajectory, value, next_value) -> gradient`, the policy's part."""

    def gradient(key, params, trajectory, value, next_value):
        return gradients.trajectory_gradient(
            params,
            trajectory,
            policy=task.policy,
            estimator=choice,
            hyper=task.hyper,
            value=value,
            next_value=next_value,
        )

    return gradient


def row(moments: tuple[float, float] | None, found: Audit, norm: float) -> Row:
    """One estimator: what is exact, what was measured, and the error of a batch."""
    measured = {
        "trace_measured": np.array(found.trace) / norm,
        "squared_bias_measured": np.array(found.squared_bias) / norm,
        "p_value": found.bias_test.p_value if found.bias_test else np.nan,
    }
    if moments is None:
        trace, bias = measured["trace_measured"][0], measured["squared_bias_measured"][0]
        known = {"exact": False}
    else:
        trace, bias = moments[0] / norm, moments[1] / norm
        bias = 0.0 if bias < ROUNDING else bias
        known = {"exact": True, "trace": trace, "squared_bias": bias}
    return {"error": trace * K / BATCH + bias} | known | measured


def agreement(rows: list[Row]) -> dict[str, Any]:
    """How many intervals hold the truth, and how far off the worst measured trace is."""
    known = [row for row in rows if row["exact"]]
    unbiased = [row for row in known if row["squared_bias"] == 0]
    biased = [row for row in known if row["squared_bias"] > 0]
    ratios = [row["trace_measured"][0] / row["trace"] for row in known]

    def share(rows, name):
        held = sum(x[f"{name}_measured"][1] <= x[name] <= x[f"{name}_measured"][2] for x in rows)
        chance = stats.binomtest(held, len(rows), LEVEL).pvalue
        return {"held": held, "of": len(rows), "p_value": float(chance)}

    return {
        "trace": share(known, "trace"),
        "squared_bias_of_biased": share(biased, "squared_bias"),
        "squared_bias_of_unbiased": share(unbiased, "squared_bias"),
        "trace_off_by_at_most": max(abs(x - 1) for x in ratios),
        "unbiased_rejected": sum(row["p_value"] < 1 - LEVEL for row in unbiased),
        "biased_detected": sum(row["p_value"] < 1 - LEVEL for row in biased),
        "least_p_value_of_unbiased": min(row["p_value"] for row in unbiased),
        "measured_only": len(rows) - len(known),
    }


def trace_of(row: Row) -> float:
    """The trace, exact where it can be."""
    return row["trace"] if row["exact"] else row["trace_measured"][0]


def bias_of(row: Row) -> float:
    """The squared bias, exact where it can be."""
    return row["squared_bias"] if row["exact"] else row["squared_bias_measured"][0]


def raised(rows: dict[Any, Row]) -> dict[str, float]:
    """Variance with a baseline over that without, where it is larger beyond doubt."""
    found = {}
    for name, of in rows.items():
        if isinstance(name, Estimator) and name.baseline not in ("none", "standardise"):
            without = rows[name._replace(baseline="none")]["trace"]
            least = of["trace"] if of["exact"] else of["trace_measured"][1]
            if least > without * (1 + 1e-9):
                found[label(name)] = trace_of(of) / without
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def spread_by_coupling(rows: dict[Any, Row]) -> dict[str, float]:
    """Variance of reward-to-go with each baseline over that without any."""
    plain = estimators.estimator("reward_to_go", "none")
    return {
        baseline: trace_of(rows[plain._replace(baseline=baseline)]) / rows[plain]["trace"]
        for baseline in estimators.BASELINES
    }


def best(rows: dict[Any, Row]) -> dict[int, str]:
    """The estimator of least error, all-action left out, by the number of episodes."""
    named = {name: row for name, row in rows.items() if name != ALL_ACTION}
    spread = {name: trace_of(row) for name, row in named.items()}
    error = lambda name, n: spread[name] * K / n + max(bias_of(named[name]), 0.0)
    return {n: label(min(named, key=lambda name: error(name, n))) for n in BATCHES}


def ranked(rows: dict[Any, Row]) -> dict[str, Row]:
    """Estimators by their mean squared error, best first."""
    order = sorted(rows, key=lambda name: rows[name]["error"])
    return {label(name): rows[name] for name in order}


def label(name: Any) -> str:
    return "+".join(name) if isinstance(name, Estimator) else name


# --- what is said of it ---------------------------------------------------------------------------


def describe(numbers: dict[str, Any], rows: dict[str, dict[Any, Row]]) -> str:
    """The finding, from the numbers."""
    found = numbers["agreement"]
    traces, biases = found["trace"], found["squared_bias_of_biased"]
    zeros = found["squared_bias_of_unbiased"]
    held = lambda x: f"{x['held']} of {x['of']} (p = {x['p_value']:.2g})"
    usual = all(x["p_value"] > 0.01 for x in (traces, biases))
    discounted = Hyper(discount=0.5)
    proven = {label(x) for x in different(False) if estimators.is_unbiased(x, discounted)[0]}
    parts = []
    for name, ranking in numbers["ranked"].items():
        order = list(ranking)
        named = [x for x in order if x != ALL_ACTION]
        best, worst = ranking[named[0]], ranking[named[-1]]
        unbiased = next(x for x in named if x in proven)
        place = [i for i, x in enumerate(order, 1) if x == ALL_ACTION]
        rank = f"{ALL_ACTION} is number {place[0]}, " if place else ""
        parts.append(
            f"{name}: {rank}{named[0]} has {best['error']:.3g}, the best unbiased one, {unbiased}, "
            f"{ranking[unbiased]['error']:.3g}, and the worst, {named[-1]}, {worst['error']:.3g}"
        )
    raising = [
        f"{name}: {len(found)}, most of all {first} ({found[first]:.2f} times)"
        for name, found in numbers["raised"].items()
        for first in list(found)[:1]
    ]
    coupled = "; ".join(
        f"{name}: " + ", ".join(f"{x} {ratio:.2f}" for x, ratio in of.items() if x != "none")
        for name, of in numbers["coupling"].items()
    )
    changing = "; ".join(
        f"{name}: {', '.join(of.values())}" for name, of in numbers["best_by_batch"].items()
    )
    dearer = ", ".join(
        f"{of['leave_one_out'] / of['constant']:.2f} ({name})"
        for name, of in numbers["coupling"].items()
    )
    return (
        f"{numbers['accepted']} estimators can be named, of which {numbers['different']} are "
        f"different, and each was audited with {numbers['gradients_audited']} gradients of "
        f"{K} episodes on {len(rows)} finite MDP{'s' * (len(rows) > 1)}, independently. Intervals "
        f"of {LEVEL:.0%} hold the exact trace of the covariance in {held(traces)}, the exact "
        f"squared bias of biased estimators in {held(biases)}, and the zero of unbiased ones in "
        f"{held(zeros)}; p is the probability of a count as odd if each interval held with "
        f"{LEVEL:.0%}. That is {'as it should be' if usual else 'NOT as it should be'} for the "
        f"first two. The trace is off by {found['trace_off_by_at_most']:.1%} at most. The test of "
        f"bias rejects {found['unbiased_rejected']} of {zeros['of']} unbiased estimators at "
        f"{1 - LEVEL:.0%} (least p {found['least_p_value_of_unbiased']:.2g}) and detects "
        f"{found['biased_detected']} of {biases['of']} biased ones. {found['measured_only']} are "
        f"only measured: their baselines are ratios over the batch, and there are too many batches "
        f"to enumerate. Mean squared error of {BATCH} episodes, in units of |grad J|^2: "
        f"{'; '.join(parts)}. The values that are given are half of what they should be. Bias does "
        f"not shrink with the batch; the best of those that have a name, with "
        f"{', '.join(map(str, BATCHES))} episodes: {changing}. A "
        f"baseline raises the variance over none with the same form in some cases "
        f"({'; '.join(raising) or 'none'}). Variance of reward-to-go with a baseline over that "
        f"without: {coupled}; what standardise and batch_mean gain is paid in bias. Leave-one-out, "
        f"whose baseline is the mean of {K - 1} other episodes at the step, has {dearer} times the "
        f"variance of the expected return as a constant."
    )


def draw(rows: dict[str, dict[Any, Row]], num_replicates: int) -> Figure:
    """Agreement on top, the ranking of one task below."""
    figure = Figure(figsize=(11, 10.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    above, below = halves
    trace, none, bias = above.subplots(1, 3, width_ratios=[2, 1.1, 2])
    for (name, of), colour in zip(rows.items(), COLOURS, strict=False):
        known = [row for row in of.values() if row["exact"]]
        biased = [row for row in known if row["squared_bias"] > 0]
        ratios(trace, known, "trace", colour, name)
        ratios(bias, biased, "squared_bias", colour, name)
        zeros(none, [row for row in known if row["squared_bias"] == 0], num_replicates, colour)
    none.axhline(0, color="black", linewidth=0.8)
    none.set_xticks([])
    dress(trace, "Variance", "exact trace / |grad J|$^2$", "measured / exact")
    dress(none, "Squared bias: zero", "estimators", "measured, in units of trace / gradients")
    dress(bias, "Squared bias: not zero", "exact / |grad J|$^2$", "measured / exact")
    bias.set_ylim(-1, 3)
    handles, names = trace.get_legend_handles_labels()
    bias.legend(handles, names, frameon=False, fontsize="small", loc="upper right", title="MDP")
    name = "random" if "random" in rows else next(iter(rows))
    table(below.subplots(), name, rows[name])
    return figure


def ratios(axes: Axes, rows: list[Row], name: str, colour: str, label: str) -> None:
    """Measured over exact with intervals, over exact."""
    exactly = np.array([row[name] for row in rows])
    value, low, high = (np.array([row[f"{name}_measured"] for row in rows]) / exactly[:, None]).T
    axes.vlines(exactly, low, high, color=colour, linewidth=1, alpha=0.7)
    axes.plot(exactly, value, "o", color=colour, markersize=2.5, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")


def zeros(axes: Axes, rows: list[Row], num_replicates: int, colour: str) -> None:
    """Squared biases that should be zero, in units of their noise, one beside the other."""
    unit = np.array([row["trace"] for row in rows]) / num_replicates
    value, low, high = np.array([row["squared_bias_measured"] for row in rows]).T / unit[None]
    place = len(axes.collections) * 20 + np.arange(len(rows))
    axes.vlines(place, low, high, color=colour, linewidth=1)
    axes.plot(place, value, "o", color=colour, markersize=2.5)


def table(axes: Axes, name: str, rows: dict[Any, Row]) -> None:
    """Errors by form and weighting, and by baseline."""
    named = {x: row for x, row in rows.items() if isinstance(x, Estimator)}
    lines = list(dict.fromkeys((x.form, x.state_weighting) for x in named))
    columns = list(estimators.BASELINES)
    errors = np.full((len(lines), len(columns)), np.nan)
    for choice, of in named.items():
        i, j = lines.index((choice.form, choice.state_weighting)), columns.index(choice.baseline)
        errors[i, j] = of["error"]
    shown = np.log10(errors)
    axes.imshow(shown, cmap="cividis", aspect="auto")
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for choice, of in named.items():
        i, j = lines.index((choice.form, choice.state_weighting)), columns.index(choice.baseline)
        style = "normal" if of["exact"] else "italic"
        colour = "white" if shown[i, j] < middle else "black"
        text = f"{of['error']:.2g}" + "~" * (not of["exact"])
        axes.text(j, i, text, ha="center", va="center", style=style, color=colour, fontsize="small")
    axes.set_xticks(range(len(columns)), columns, fontsize="small")
    axes.set_yticks(
        range(len(lines)),
        [form if form == "total_return" else f"{form}, {by}" for form, by in lines],
        fontsize="small",
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    all_action = rows.get(ALL_ACTION)
    beside = f"; all-action: {all_action['error']:.2g}" if all_action else ""
    axes.set_title(
        f"Mean squared error / |grad J|$^2$ of {BATCH} episodes, MDP {name!r} "
        f"(~ measured only{beside})",
        fontsize="medium",
    )


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles and labels."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    report.main("catalogue", study, __doc__ or "")
