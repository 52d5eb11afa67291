"""The mirage: how much variance is left for an action-dependent baseline to remove?

A point mass in a random wind, pushed by a linear-Gaussian policy that ascends the exact gradient
from a gain of zero. Along the way the variance of one step's term of the policy gradient is cut,
exactly, into what comes from the trajectory after the action, from the action and from the state.
A baseline that sees the state lowers the action's part, and one that sees the action too could
remove what is left of it. The same parts are sampled, and two ways to sample the trajectory's part
are compared: E[(G - Q)^2 |s|^2] and E[(G^2 - Q^2) |s|^2], s = grad log pi(a | s).

    python -m experiments.mirage            (about two minutes on two cores)
    python -m experiments.mirage --quick

Source: Tucker et al. 2018, "The Mirage of Action-Dependent Baselines in Reinforcement Learning",
Figure 1. The parameters of their system are not known to us.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import report
from pgjax import environments, policies, restarts, train
from pgjax.audit import Estimate, variance_decomposition
from pgjax.estimators import Hyper
from pgjax.exact import linear_quadratic as exact
from pgjax.lab.plots import COLOURS

HORIZONS, SCALES = (100, 10), (1.0, 0.1)  # steps an episode, standard deviation of the force
ENV = environments.point_mass()
POLICY = policies.make("linear", ENV, ENV.default_params)
HYPER = Hyper(discount=0.99)
HELD = {"params": {"Dense_0": False, "free": True}}  # the scale is held, or else it falls to zero
OPTIMIZER = optax.chain(optax.adam(0.05), optax.masked(optax.set_to_zero(), HELD))
PARTS = {
    "trajectory": COLOURS[0],
    "action, no baseline": COLOURS[1],
    "action, baseline V": COLOURS[2],
    "state": COLOURS[3],
}


class Forms(NamedTuple):
    """Ways to sample the trajectory's part; G and G' are returns from one state and action."""

    centred: Any  # (G - Q)^2 |s|^2
    squares: Any  # (G^2 - Q^2) |s|^2
    halved: Any  # (G - G')^2 |s|^2 / 2
    product: Any  # (G^2 - G G') |s|^2


def study(quick: bool) -> report.Findings:
    """Exact parts in all settings, samples in the first."""
    updates = (0, 10, 40) if quick else (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 300)
    looks = (10,) if quick else (0, 10, 300)
    num_episodes = 512 if quick else 16384
    settings, first = {}, None
    for horizon in HORIZONS:
        path, returns = jax.jit(ascend, static_argnums=(0, 1))(horizon, updates)
        parts = jax.jit(exact_parts, static_argnums=1)(path, horizon)
        for index, scale in enumerate(SCALES):
            row = {"return": returns, **parts}
            settings[horizon, scale] = {name: np.asarray(x[index]) for name, x in row.items()}
        first = path if first is None else first
    places = [updates.index(look) for look in looks]
    at_looks = [jax.tree.map(lambda x, place=place: x[0, place], first) for place in places]
    sampled = [sampled_parts(params, num_episodes) for params in at_looks]
    compare = jax.jit(lambda params: sampled_forms(jax.random.key(1), params, num_episodes))
    forms = [compared(compare(params)) for params in at_looks]
    numbers = {
        "updates": updates,
        "settings": {
            f"horizon {horizon}, scale {scale:g}": {**row, "share_left": left(row)}
            for (horizon, scale), row in settings.items()
        },
        "episodes": num_episodes,
        "sampled": dict(zip(looks, sampled, strict=True)),
        "forms": dict(zip(looks, forms, strict=True)),
    }
    return report.Findings(draw(numbers, settings), numbers, describe(numbers, settings))


def ascend(horizon: int, updates: tuple[int, ...]) -> tuple[Any, jax.Array]:
    """Parameters and returns after each number of updates, `[scales, updates, ...]`."""
    gradient_fn = exact.exact_gradient(ENV.system, POLICY, HYPER, horizon=horizon)
    key = jax.random.key(0)
    blank = jax.tree.map(jnp.zeros_like, POLICY.init(key, jnp.zeros(4)))["params"]

    def step(state, _):
        following, metrics = train.step(key, state, gradient_fn, OPTIMIZER)
        return following, (state.params, metrics["expected_return"])

    def run(scale):
        params = {"params": blank | {"free": jnp.full(2, jnp.log(scale))}}
        start = train.init(key, params, OPTIMIZER)
        _, path = jax.lax.scan(step, start, length=updates[-1] + 1)
        return jax.tree.map(lambda x: x[jnp.array(updates)], path)

    return jax.vmap(run)(jnp.array(SCALES))


def exact_parts(path: Any, horizon: int) -> dict[str, jax.Array]:
    """The parts along `[scales, updates]` parameters."""

    def over_path(baseline):
        at = lambda params: exact.variance_decomposition(
            ENV.system, POLICY, params, HYPER, horizon=horizon, baseline=baseline
        )
        return jax.lax.map(lambda path: jax.lax.map(at, path), path)

    none, value = over_path("none"), over_path("value")
    return dict(zip(PARTS, (none.trajectory, none.action, value.action, none.state), strict=True))


def sampled_parts(params: Any, num_episodes: int) -> dict[str, Estimate]:
    """The parts at the longer horizon, with intervals.

    There is no baseline: V depends on the time here, which a baseline of `obs` does not see.
    """
    found = variance_decomposition(
        jax.random.key(0),
        params,
        ENV,
        ENV.default_params,
        POLICY,
        HYPER,
        num_episodes=num_episodes,
        horizon=HORIZONS[0],
    )
    names = ("trajectory", "action, no baseline", "state")
    return dict(zip(names, found, strict=True))


def sampled_forms(key: jax.Array, params: Any, num_episodes: int) -> Forms:
    """All forms on the same samples, `[N]` each."""
    horizon, discount = HORIZONS[0], HYPER.discount
    visit_key, action_key, *rollout_keys = jax.random.split(key, 4)
    visits = restarts.visit(
        visit_key,
        ENV,
        ENV.default_params,
        POLICY,
        params,
        discount ** jnp.arange(horizon),
        num_episodes=num_episodes,
    )
    act = lambda key, obs: POLICY.step(params, (), obs)[1].sample(key)
    action = jax.vmap(act)(jax.random.split(action_key, num_episodes), visits.obs)
    first, second = (
        restarts.continuations(
            key,
            ENV,
            ENV.default_params,
            POLICY,
            params,
            visits,
            action,
            discount=discount,
            horizon=horizon,
        )
        for key in rollout_keys
    )
    forms = exact.values(ENV.system, POLICY, params, HYPER, horizon=horizon).action
    mean = jax.vmap(lambda time, x: jax.tree.map(lambda form: form[time], forms)(x))(
        visits.time, jnp.concatenate([visits.obs, action], axis=1)
    )

    def squared_score(obs, action):
        log_prob = lambda params: POLICY.step(params, (), obs)[1].log_prob(action)
        return jnp.sum(ravel_pytree(jax.grad(log_prob)(params))[0] ** 2)

    size = jax.vmap(squared_score)(visits.obs, action)
    return Forms(
        centred=(first - mean) ** 2 * size,
        squares=(first**2 - mean**2) * size,
        halved=(first - second) ** 2 * size / 2,
        product=(first**2 - first * second) * size,
    )


def compared(samples: Forms) -> dict[str, Any]:
    """Means and standard errors of the forms, and how much noisier the second of each pair is."""
    errors = {
        name: float(np.std(x, ddof=1) / np.sqrt(len(x))) for name, x in samples._asdict().items()
    }
    return {
        "means": {name: float(np.mean(x)) for name, x in samples._asdict().items()},
        "errors": errors,
        "ratio_with_q": errors["squares"] / errors["centred"],
        "ratio_of_rollouts": errors["product"] / errors["halved"],
    }


def left(row: dict[str, np.ndarray]) -> np.ndarray:
    """What share of the variance is the action's, once V is the baseline."""
    return row["action, baseline V"] / total(row)


def total(row: dict[str, np.ndarray]) -> np.ndarray:
    """The variance with V as the baseline."""
    return row["trajectory"] + row["action, baseline V"] + row["state"]


def describe(numbers: dict[str, Any], settings: dict[tuple[int, float], Any]) -> str:
    """The finding, from the numbers."""
    updates = numbers["updates"]
    (longer, shorter), (wide, narrow) = HORIZONS, SCALES

    rounded = lambda x: f"{float(f'{x:.2g}'):g}"

    def span(x):
        low, high = rounded(np.min(x)), rounded(np.max(x))
        return low if low == high else f"{low} to {high}"

    shares = {setting: left(row) for setting, row in settings.items()}
    share = lambda *setting: f"{span(100 * shares[setting])}%"
    means = [np.exp(np.mean(np.log(x))) for x in shares.values()]
    along = max(np.max(x) / np.min(x) for x in shares.values())
    holds = max(np.max(shares[longer, scale]) for scale in SCALES) < 0.1
    fails = np.max(shares[shorter, wide]) > 0.2
    removed = [x["action, no baseline"] / x["action, baseline V"] for x in settings.values()]
    state_share = max(np.max(x["state"] / total(x)) for x in settings.values())
    base = settings[longer, wide]
    over = base["action, no baseline"] / base["trajectory"]
    truths = [
        (name, estimate, base[name][updates.index(look)])
        for look, sampled in numbers["sampled"].items()
        for name, estimate in sampled.items()
    ]
    covered = sum(estimate.low <= truth <= estimate.high for _, estimate, truth in truths)
    states = [estimate for name, estimate, _ in truths if name == "state"]
    unseen = sum(estimate.low <= 0 for estimate in states)
    why = ", for the others make more noise than it is large" if unseen else ""
    forms = numbers["forms"]
    apart = max(
        abs(row["means"][name] - base["trajectory"][updates.index(look)]) / row["errors"][name]
        for look, row in forms.items()
        for name in Forms._fields
    )
    return (
        f"The claim is that once the values of states are subtracted, the action's part is small "
        f"beside the trajectory's, and a baseline that sees the action too has little left to "
        f"remove. On a point mass over {longer} steps that {'comes' if holds else 'does not come'} "
        f"out: along {updates[-1]} updates what the best such baseline could remove is "
        f"{share(longer, wide)} of the variance where the force has a standard deviation of "
        f"{wide:g}, and {share(longer, narrow)} where it has {narrow:g}. Over {shorter} steps, "
        f"where little happens after an action, the shares are {share(shorter, wide)} and "
        f"{share(shorter, narrow)}: in the first of these the claim "
        f"{'does not hold' if fails else 'holds too'}. A share changes by a factor of "
        f"{rounded(along)} at most along training, but from one setting to another by up to "
        f"{rounded(max(means) / min(means))}: what is left to remove is a matter of how long the "
        f"wind blows after an action and how it compares with the noise of the force. V itself "
        f"matters far more: it divides the action's part by {rounded(np.min(removed))} at least "
        f"and {rounded(np.max(removed))} at most. Without it that part is {rounded(over[0])} times "
        f"the trajectory's before the first update of the first setting and {rounded(over[-1])} "
        f"times after the last. The state's part is {rounded(100 * state_share)}% at most. Sampled "
        f"from {numbers['episodes']} episodes without a baseline, {covered} of {len(truths)} "
        f"intervals of 95% hold the exact number; of the {len(states)} of the state's part "
        f"{unseen} reach below zero{why}. Two "
        f"ways to sample the trajectory's part on common samples: with the exact Q, the standard "
        f"error of E[(G^2 - Q^2) |s|^2] is {span([x['ratio_with_q'] for x in forms.values()])} "
        f"times that of E[(G - Q)^2 |s|^2]; with a second rollout G' instead, that of G^2 - G G' "
        f"is {span([x['ratio_of_rollouts'] for x in forms.values()])} times that of "
        f"(G - G')^2 / 2. Every mean is within {apart:.1f} standard errors of the exact part. What "
        f"this does not say: the parameters of the paper's system are not known to us; the scale "
        f"of our policy is held; V is not the best baseline of the state, only a good one; and one "
        f"step's term leaves out the covariances between steps."
    )


def draw(numbers: dict[str, Any], settings: dict[tuple[int, float], Any]) -> Figure:
    """The parts in each setting, what is left in all of them, and the noise of the two forms."""
    figure = Figure(figsize=(12.0, 7.2), layout="constrained")
    panels = figure.subplots(2, 3)
    updates = np.array(numbers["updates"])
    for (horizon, scale), axes in zip(settings, panels[:, :2].ravel(), strict=True):
        axes.set_title(f"{horizon} steps, force with std {scale:g}", fontsize="medium")
        for name, colour in PARTS.items():
            axes.plot(updates, settings[horizon, scale][name], color=colour, label=name)
        axes.set_yscale("log")
        axes.set_ylabel("variance of one step's term")
    first = panels[0, 0]
    for look, sampled in numbers["sampled"].items():
        for name, estimate in sampled.items():
            point(first, look, estimate, PARTS[name])
    first.plot(
        [], [], "o", color="grey", markersize=4, label="sampled, 95% (triangle: its upper end)"
    )
    first.legend(frameon=False, fontsize="x-small")
    shares, noise = panels[:, 2]
    for index, ((horizon, scale), row) in enumerate(settings.items()):
        label = f"{horizon} steps, std {scale:g}"
        shares.plot(updates, 100 * left(row), color=COLOURS[index], label=label)
    shares.set_title("left for a baseline that sees the action", fontsize="medium")
    shares.set_yscale("log")
    shares.set_ylabel("share of the variance with baseline V, %")
    shares.legend(frameon=False, fontsize="x-small")
    bars(noise, numbers)
    for axes in panels.ravel():
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not noise:
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(-0.1, updates[-1] * 1.1)
            axes.set_xlabel("updates along the exact gradient")
    return figure


def point(axes: Axes, update: int, estimate: Estimate, colour: str) -> None:
    """An estimate and its interval; only the upper end of one that reaches below zero."""
    if estimate.low > 0:
        axes.plot([update, update], [estimate.low, estimate.high], color=colour)
        axes.plot(update, estimate.value, "o", color=colour, markersize=4)
    elif estimate.high > 0:
        axes.plot(update, estimate.high, "v", color=colour, markersize=5)


def bars(axes: Axes, numbers: dict[str, Any]) -> None:
    """Relative standard errors of the forms of the trajectory's part."""
    names = ("(G - Q)²", "G² - Q²", "(G - G')² / 2", "G² - G G'")
    looks = numbers["forms"]
    for index, (field, name) in enumerate(zip(Forms._fields, names, strict=True)):
        errors = [100 * row["errors"][field] / row["means"]["centred"] for row in looks.values()]
        place = np.arange(len(looks)) + 0.2 * (index - 1.5)
        axes.bar(place, errors, 0.18, color=COLOURS[index], label=name)
    axes.set_title("two ways to sample the trajectory's part", fontsize="medium")
    axes.set_xticks(range(len(looks)), [str(look) for look in looks])
    axes.set_xlabel("updates along the exact gradient")
    axes.set_ylabel(f"standard error, % ({numbers['episodes']} episodes)")
    axes.legend(frameon=False, fontsize="x-small", title="times |s|²", title_fontsize="x-small")


if __name__ == "__main__":
    report.main("mirage", study, __doc__ or "")
