"""Which lambda is best for generalised advantages, and how does it depend on values and batch?

Squared bias, variance and mean squared error of GAE(lambda) over all of [0, 1]. On a finite MDP
they are exact, without sampling, under four kinds of values: exact ones, which know the time; the
best that depend on the state alone; such values learned from episodes; and random ones. On
CartPole, with a learned value function, they are measured by the audit.

    python -m experiments.gae_lambda            (about two minutes on two cores)
    python -m experiments.gae_lambda --quick

Source: Schulman et al. 2016, section 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import report
from pgjax import environments, estimators, exact, gradients, policies, train
from pgjax.audit import Audit, audit, mean_squared_error
from pgjax.environments import MDP
from pgjax.estimators import Estimator, Hyper
from pgjax.lab.plots import COLOURS
from pgjax.policies import Policy, ValueFunction
from pgjax.score import GradientFn

GAE = estimators.estimator("gae", "none")
MONTE_CARLO = estimators.estimator("reward_to_go", "value")
NUM_STATES, NUM_ACTIONS, HORIZON = 15, 3, 50
HYPER = Hyper(discount=0.97)
LAMBDAS = np.linspace(0, 1, 101)
BATCHES = np.logspace(0, 5, 101)
SHOWN = (1, 10, 100, 1000, 10000)


class Task(NamedTuple):
    """Where a gradient is taken: a policy in an environment, and the length of episodes."""

    env: Any
    env_params: Any
    policy: Policy
    params: Any
    value_function: ValueFunction
    hyper: Hyper
    horizon: int


class Curves(NamedTuple):
    """Over lambda, in units of |grad J|^2."""

    bias: jax.Array  # [L] |E g - grad J|^2
    trace: jax.Array  # [L] of the covariance, of one episode

    def error(self, num_episodes: Any) -> np.ndarray:
        """Mean squared error of a batch, `[L]`."""
        return np.asarray(self.trace / num_episodes + self.bias)


def study(quick: bool) -> report.Findings:
    """The exact curves of a finite MDP, then the measured ones of CartPole."""
    curves, finite = on_finite_mdp()
    audits, cart_pole = on_cart_pole(quick)
    numbers = {"finite": finite, "cart_pole": cart_pole}
    return report.Findings(
        draw(curves, audits, cart_pole["squared_norm"]), numbers, describe(numbers)
    )


def on_finite_mdp() -> tuple[dict[str, Curves], dict[str, Any]]:
    """Curves by kind of values, and what a table would say of them."""
    mdp_key, policy_key, fit_key, random_key = jax.random.split(jax.random.key(0), 4)
    mdp = random_mdp(mdp_key)
    env = environments.tabular_mdp(mdp)
    task = Task(
        env=env,
        env_params=env.default_params,
        policy=policies.tabular(NUM_STATES, NUM_ACTIONS),
        params=jax.random.normal(policy_key, (NUM_STATES, NUM_ACTIONS)),
        value_function=policies.tabular_value(NUM_STATES),
        hyper=HYPER,
        horizon=HORIZON,
    )
    learned = fit(fit_key, task, num_updates=100, num_episodes=1, rate=0.1)
    of_mdp = (mdp, task.policy, task.params)
    true = exact.values(*of_mdp, HYPER, horizon=HORIZON).state
    visits = exact.visits(*of_mdp, HYPER._replace(discount=1.0), horizon=HORIZON)
    alone = jnp.sum(visits * true[:-1], axis=0) / jnp.sum(visits, axis=0)
    spread = jnp.std(true[:-1])
    tables = {
        "exact, of state and time": true,
        "best of the state alone": ending(alone),
        "learned, of the state": ending(learned),
        "random": ending(spread * jax.random.normal(random_key, (NUM_STATES,))),
        "learned, bootstrapped at the cut": jnp.broadcast_to(learned, true.shape),
    }
    curves = exact_curves(*of_mdp, jnp.stack(list(tables.values())))
    curves = {name: jax.tree.map(lambda x, i=i: x[i], curves) for i, name in enumerate(tables)}
    rms = lambda error: float(jnp.sqrt(jnp.sum(visits * error**2) / jnp.sum(visits)))
    found = {
        name: {
            "value_error": rms(tables[name][:-1] - true[:-1]),
            "squared_bias_at_0": float(curve.bias[0]),
            "squared_bias_at_1": float(curve.bias[-1]),
            "largest_squared_bias": float(curve.bias.max()),
            "trace_at_0": float(curve.trace[0]),
            "trace_at_1": float(curve.trace[-1]),
            "best": {n: LAMBDAS[np.argmin(curve.error(n))] for n in SHOWN},
            "least_error": {n: curve.error(n).min() for n in SHOWN},
        }
        for name, curve in curves.items()
    }
    error = alone[None] - true[:-1]
    shared = jnp.sum(visits * error, axis=1, keepdims=True) / jnp.sum(visits, axis=1, keepdims=True)
    share = (rms(jnp.broadcast_to(shared, error.shape)) / rms(error)) ** 2
    return curves, {"value_size": rms(true[:-1]), "shared_by_states": share, "found": found}


def random_mdp(key: jax.Array) -> MDP:
    """Half the time nothing moves, else actions lead to a few states, each with its own reward."""
    transition_key, reward_key = jax.random.split(key)
    shape = (NUM_STATES, NUM_ACTIONS)
    moved = np.asarray(jax.random.dirichlet(transition_key, jnp.full(NUM_STATES, 0.1), shape))
    reward = np.asarray(jax.random.normal(reward_key, (NUM_STATES,)))
    return MDP(
        transition=0.5 * np.eye(NUM_STATES)[:, None] + 0.5 * moved,
        reward=np.broadcast_to(reward, moved.shape),
        initial=np.full(NUM_STATES, 1 / NUM_STATES),
        terminal=np.zeros(NUM_STATES, bool),
    )


def ending(value: jax.Array) -> jax.Array:
    """Values `[S]` at every time `[T + 1, S]`, with nothing to come after the horizon."""
    return jnp.broadcast_to(value, (HORIZON + 1, NUM_STATES)).at[-1].set(0)


def exact_curves(mdp: MDP, policy: Policy, params: Any, values: jax.Array) -> Curves:
    """Exact bias and variance for K tables of values `[K, T + 1, S]` and all lambdas, `[K, L]`."""

    def at(value, lambda_):
        hyper = HYPER._replace(lambda_=lambda_)
        moments = exact.exact_moments(mdp, policy, params, GAE, hyper, horizon=HORIZON, value=value)
        return Curves(jnp.sum(moments.bias**2), moments.trace)

    over_lambda = jax.vmap(at, (None, 0))
    curves = jax.jit(jax.vmap(over_lambda, (0, None)))(values, jnp.array(LAMBDAS))
    gradient, _ = exact.exact_gradient(mdp, policy, HYPER, horizon=HORIZON)(
        jax.random.key(0), params
    )
    return jax.tree.map(lambda x: np.asarray(x / jnp.sum(gradient**2)), curves)


def fit(key: jax.Array, task: Task, *, num_updates: int, num_episodes: int, rate: float) -> Any:
    """Values by regression on the returns of episodes, with the policy held fixed."""
    gradient_fn = gradients.policy_gradient(
        task.env,
        task.env_params,
        task.policy,
        MONTE_CARLO,
        task.hyper,
        num_episodes=num_episodes,
        horizon=task.horizon,
        value_function=task.value_function,
    )
    labels = {"policy": "policy", "value": "value"}
    optimizer = optax.partition({"policy": optax.set_to_zero(), "value": optax.adam(rate)}, labels)
    value_key, state_key, train_key = jax.random.split(key, 3)
    value = task.value_function.init(value_key, observation(task))
    state = train.init(state_key, {"policy": task.params, "value": value}, optimizer)
    learn = lambda key: train.train(key, state, gradient_fn, optimizer, num_steps=num_updates)[0]
    return jax.jit(learn)(train_key).params["value"]


def observation(task: Task) -> jax.Array:
    """A first observation, for its shape."""
    return task.env.reset_env(jax.random.key(0), task.env_params)[0]


def on_cart_pole(quick: bool) -> tuple[dict[float, Audit], dict[str, Any]]:
    """Audits by lambda of a half-trained policy with learned values."""
    lambdas = (0.95,) if quick else (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
    num_replicates = 512 if quick else 32768
    policy_key, fit_key, reference_key, audit_key = jax.random.split(jax.random.key(1), 4)
    env, env_params = environments.make("CartPole-v1")
    task = Task(
        env=env,
        env_params=env_params,
        policy=policies.make("linear", env, env_params),
        params=None,
        value_function=policies.make_value("mlp", env, env_params, hidden=(16,)),
        hyper=Hyper(discount=0.99),
        horizon=500,
    )
    task = task._replace(params=half_trained(policy_key, task))
    value = fit(fit_key, task, num_updates=10 if quick else 200, num_episodes=8, rate=0.02)

    def measure(key, estimator, lambda_, **kwargs):
        gradient_fn = of_policy(task, value, estimator, task.hyper._replace(lambda_=lambda_))
        return audit(key, task.params, gradient_fn, chunk_size=1024, **kwargs)

    reference = measure(reference_key, MONTE_CARLO, 1.0, num_replicates=4 * num_replicates)
    audits = {
        lambda_: measure(
            audit_key, GAE, lambda_, reference=reference, num_replicates=num_replicates
        )
        for lambda_ in lambdas
    }
    norm = reference.squared_norm.value
    errors = {n: {x: mean_squared_error(a, n).value for x, a in audits.items()} for n in SHOWN}
    numbers = {
        "replicates": num_replicates,
        "squared_norm": norm,
        "episode_length": reference.env_steps.value if reference.env_steps else np.nan,
        "squared_bias": {x: [y / norm for y in a.squared_bias or ()] for x, a in audits.items()},
        "trace": {x: [y / norm for y in a.trace] for x, a in audits.items()},
        "p_value": {x: a.bias_test.p_value if a.bias_test else np.nan for x, a in audits.items()},
        "best": {n: min(of, key=of.__getitem__) for n, of in errors.items()},
    }
    return audits, numbers


def half_trained(key: jax.Array, task: Task) -> Any:
    """A linear policy that keeps the pole up for some dozens of steps."""
    estimator = estimators.estimator("reward_to_go", "leave_one_out")
    gradient_fn = gradients.policy_gradient(
        task.env,
        task.env_params,
        task.policy,
        estimator,
        task.hyper,
        num_episodes=16,
        horizon=task.horizon,
    )
    optimizer = optax.adam(0.05)
    init_key, state_key, train_key = jax.random.split(key, 3)
    state = train.init(state_key, task.policy.init(init_key, observation(task)), optimizer)
    learn = lambda key: train.train(key, state, gradient_fn, optimizer, num_steps=10)[0]
    return jax.jit(learn)(train_key).params


def of_policy(task: Task, value: Any, estimator: Estimator, hyper: Hyper) -> GradientFn:
    """The policy's part of the gradient of one episode, with given values."""
    both = gradients.policy_gradient(
        task.env,
        task.env_params,
        task.policy,
        estimator,
        hyper,
        num_episodes=1,
        horizon=task.horizon,
        value_function=task.value_function,
    )

    def gradient_fn(key, params):
        gradient, metrics = both(key, {"policy": params, "value": value})
        return gradient["policy"], metrics

    return gradient_fn


def describe(numbers: dict[str, Any]) -> str:
    """The finding, from the numbers."""
    finite, cart = numbers["finite"]["found"], numbers["cart_pole"]
    size = numbers["finite"]["value_size"]
    true, alone, learned, random, cut = finite.values()
    shown = [n for n in SHOWN if n <= 1000]
    best = lambda row: ", ".join(f"{row['best'][n]:g}" for n in shown)
    clean = true["largest_squared_bias"] < 1e-12
    largest = max(row["squared_bias_at_1"] for row in (true, alone, learned, random))
    table = np.array([[row["best"][n] for n in shown] for row in (alone, learned, random)])
    grows = (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    lambdas = list(cart["trace"])
    calmest = min(lambdas, key=lambda x: cart["trace"][x][0])
    bias = ", ".join(f"{cart['squared_bias'][x][0]:.2g} at {x:g}" for x in lambdas)
    biased = [f"{x:g}" for x in lambdas if cart["p_value"][x] < 0.01]
    variance = ", ".join(f"{cart['trace'][x][0]:.1f} at {x:g}" for x in lambdas)
    return (
        f"All numbers are in units of |grad J|^2. On the finite MDP with exact values, which know "
        f"the time, GAE is {'unbiased' if clean else 'BIASED'} at every lambda (squared bias at "
        f"most {true['largest_squared_bias']:.0e}), and {true['best'][1]:g} is best for every "
        f"batch: the variance of an episode is {true['trace_at_0']:.1f} at lambda 0 and "
        f"{true['trace_at_1']:.0f} at 1. At lambda 1 no values leave a bias (at most "
        f"{largest:.0e}), if nothing is worth anything after the horizon; where the cut is "
        f"bootstrapped from learned values, as `policy_gradient` does with truncated rows, "
        f"{cut['squared_bias_at_1']:.1e} is left. Values of the state alone are off by "
        f"{alone['value_error'] / size:.0%} of the values' size at best, because the time is "
        f"missing, for a squared bias of {alone['squared_bias_at_0']:.1e} at lambda 0; "
        f"{numbers['finite']['shared_by_states']:.0%} of the squared error is the same in all "
        f"states at a time. Learned ones are off by {learned['value_error'] / size:.0%}, for "
        f"{learned['squared_bias_at_0']:.2g}, and random ones by "
        f"{random['value_error'] / size:.0%}, for {random['squared_bias_at_0']:.2g}. For batches "
        f"of {', '.join(map(str, shown))} episodes the mean squared error is least at lambda "
        f"{best(alone)} (best of the state alone), {best(learned)} (learned) and {best(random)} "
        f"(random): {'' if grows else 'not in every case, '}the worse the values and the larger "
        f"the batch, the larger the lambda. On CartPole, with a linear policy, "
        f"{cart['episode_length']:.0f} steps an episode and learned values, from "
        f"{cart['replicates']} episodes a point: squared bias {bias}, beyond chance (p < 0.01) at "
        f"{', '.join(biased) or 'none'}, with p = {cart['p_value'][lambdas[-1]]:.1g} at "
        f"{lambdas[-1]:g}; variance {variance}, so "
        f"least at {calmest:g}; and of these lambdas {best(cart)} are best for the same batches."
    )


def draw(curves: dict[str, Curves], audits: dict[float, Audit], norm: float) -> Figure:
    """The finite MDP on top and at the left, CartPole below it."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    (bias, trace, best), (error, cart_terms, cart_error) = figure.subplots(2, 3)
    for (name, curve), colour in zip(list(curves.items())[:4], COLOURS, strict=False):
        if curve.bias.max() > 1e-12:
            bias.plot(LAMBDAS[:-1], curve.bias[:-1], color=colour)
        trace.plot(LAMBDAS, curve.trace, color=colour, label=name)
        best.plot(BATCHES, [LAMBDAS[np.argmin(curve.error(n))] for n in BATCHES], color=colour)
    bias.set_ylim(1e-6, None)
    bias.text(0, 1.5e-6, "exact values: none; lambda = 1: none", color=COLOURS[0], fontsize="small")
    trace.legend(frameon=False, fontsize="small", title="values", alignment="left")
    learned = list(curves.values())[2]
    for n, colour in zip(SHOWN, COLOURS, strict=False):
        curve = learned.error(n)
        error.plot(LAMBDAS, curve, color=colour)
        error.plot(LAMBDAS[np.argmin(curve)], curve.min(), "o", color=colour, markersize=5)
        error.text(1.02, curve[-1], f"N = {n}", color=colour, fontsize="small", va="center")
        points = {x: mean_squared_error(a, n) for x, a in audits.items()}
        measured(cart_error, points, norm, colour)
        last = points[max(points)].value / norm
        cart_error.text(1.02, last, f"N = {n}", color=colour, fontsize="small", va="center")
    measured(cart_terms, {x: a.trace for x, a in audits.items()}, norm, COLOURS[0], "variance")
    biases = {x: a.squared_bias for x, a in audits.items() if a.squared_bias}
    measured(cart_terms, biases, norm, COLOURS[1], "squared bias")
    cart_terms.legend(frameon=False, fontsize="small")
    dress(bias, "Finite MDP: squared bias, exact", "squared bias / |grad J|$^2$")
    dress(trace, "Finite MDP: variance, exact", "variance of one episode / |grad J|$^2$")
    dress(error, "Finite MDP, learned values: error, exact", "mean squared error / |grad J|$^2$")
    dress(cart_terms, "CartPole, learned values: measured", "of one episode / |grad J|$^2$")
    dress(cart_error, "CartPole, learned values: error", "mean squared error / |grad J|$^2$")
    dress(best, "Finite MDP: best lambda", "lambda of the least mean squared error")
    best.set_yscale("linear")
    best.set_xscale("log")
    best.set_xlabel("episodes in the batch, N")
    return figure


def measured(
    axes: Axes, points: dict[float, Any], norm: float, colour: str, label: str | None = None
) -> None:
    """Estimates over lambda with their intervals."""
    value, low, high = np.array([tuple(x) for x in points.values()]).T / norm
    axes.plot(list(points), value, "o-", color=colour, markersize=3, linewidth=1, label=label)
    axes.vlines(list(points), low, high, color=colour, linewidth=1.5)


def dress(axes: Axes, title: str, label: str) -> None:
    """Titles, labels, a logarithmic scale, and room at the right."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("lambda")
    axes.set_ylabel(label)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    report.main("gae_lambda", study, __doc__ or "")
