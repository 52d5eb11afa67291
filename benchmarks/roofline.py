"""What share of the machine training uses: of its matrix products and of its memory bandwidth.

What the machine can do is measured on all devices at once: products of large squares and of tall
matrices with 64 x 64, a triad over arrays larger than any cache, and tanh.

The operations that training needs are those of the network's matrix products, with the activations
of acting stored for learning (`gemm_share`, relative to the fastest product) or computed a second
time (`gemm_share_twice` and, relative to the fastest tall product, `tall_share_twice`).
`operations` are all that XLA counts before it optimises, including those of random numbers and of
the environment. The memory traffic is at least the trajectory, written once and read once
(`bandwidth_share`). It is at most what the optimised instructions of a step of the environment and
of one chunk of the gradient read and write, with loops counted once; caches serve most of that
(`bandwidth_share_uncached`).

Everything is timed in turn in one process, in which the plain program, too, has the flags that
pgjax gives XLA; shares are taken within a round. The setting is CartPole with 2 x 64 tanh, an actor
alone, every step live, in float32.

    python -m benchmarks.roofline               # all of it
    python -m benchmarks.roofline --smoke       # tiny, to see that it runs; writes nothing
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import devices, kept, plain_reinforce, timing, training
from benchmarks.training import Setting
from pgjax import backends, cost, estimators, gradients, rollout, stepping
from pgjax.gradients.samples import GRADIENT_FIELDS

SQUARES = [512, 1024, 2048, 4096]
TALL = [1024, 4096, 16384]
ROWS = [4096, 65536, 2**20] if devices.ACCELERATED else [1024, 65536]
MOST_PLAIN = 65536
"""Rows of the plain program, which holds the activations of all steps."""
WIDTH = 64
COUNTED_ROWS = 4
"""Rows where operations are counted: few, as XLA counts a running sum as if it were quadratic."""


class Roof(NamedTuple):
    """A program that does one thing, and how much of it it does."""

    call: Callable[[], Any]
    amount: float


class Program(NamedTuple):
    """A program of training, and what a step of it costs."""

    call: Callable[[], Any]
    steps: int
    operations: float  # a step
    bytes: float | None  # a step


def measure(smoke: bool) -> list[kept.Row]:
    """What the machine can do, and what share of it is used."""
    mesh = Mesh(np.array(devices.DEVICES), ("devices",))
    squares, tall, rows = ([16], [32], [4]) if smoke else (SQUARES, TALL, ROWS)
    size, repeats = (2**10, 2) if smoke else (2**25, 8)
    roofs = {f"gemm, {n} squared": gemm(mesh, n, n) for n in squares}
    roofs |= {f"gemm, {n} x {WIDTH}": gemm(mesh, n, WIDTH) for n in tall}
    roofs |= {
        "bytes, triad": triad(mesh, size, repeats),
        "tanh": hyperbolic_tangent(mesh, 2**12, repeats * 100),
    }
    base = Setting(horizon=4 if smoke else 128)
    programs = {("pgjax", n): of_pgjax(base._replace(num_rows=n)) for n in rows}
    held = [n for n in rows if n <= MOST_PLAIN]
    programs |= {("plain", n): of_plain(base._replace(num_rows=n)) for n in held}
    seconds = timing.interleaved(
        {name: each.call for name, each in (roofs | programs).items()},
        rounds=1 if smoke else 7,
        least=0 if smoke else 0.2,
    )
    rates = {name: roof.amount / np.array(seconds[name]) for name, roof in roofs.items()}
    best = fastest(rates, "gemm")
    best_tall = fastest(rates, f" x {WIDTH}")
    of_machine = [kept.row({"of": name}, {"a_second": list(rates[name])}) for name in rates]
    stored, twice, tanh = network_operations(base)
    trajectory = 2 * training.trajectory_bytes(base) / (base.num_rows * base.horizon)
    of_programs = []
    for (name, num_rows), program in programs.items():
        steps = program.steps / np.array(seconds[name, num_rows])
        measured = {
            "steps_per_second": steps,
            "gemm_share": stored * steps / rates[best],
            "gemm_share_twice": twice * steps / rates[best],
            "tall_share_twice": twice * steps / rates[best_tall],
            "tanh_share": tanh * steps / rates["tanh"],
        }
        if program.bytes is not None:
            measured["bandwidth_share"] = trajectory * steps / rates["bytes, triad"]
            measured["bandwidth_share_uncached"] = program.bytes * steps / rates["bytes, triad"]
        facts = {
            "gemm": best,
            "tall": best_tall,
            "operations_stored": stored,
            "operations_twice": twice,
            "operations": program.operations,
            "tanh": tanh,
            "bytes_of_trajectory": trajectory,
            "bytes_uncached": program.bytes,
        }
        print(f"{name}, {num_rows} rows, a step: {facts}", flush=True)
        case = {"of": name, "num_rows": num_rows, "horizon": base.horizon}
        of_programs.append(kept.row(case, {k: list(x) for k, x in measured.items()}, facts))
    return of_machine + of_programs


def fastest(rates: dict[Any, np.ndarray], kind: str) -> str:
    """Name of the fastest roof of a kind."""
    return max((name for name in rates if kind in name), key=lambda name: np.median(rates[name]))


def gemm(mesh: Mesh, num: int, width: int) -> Roof:
    """`[num, width] @ [width, width]` on every device, again and again on its own result."""
    repeats = max(1, int(1e9 // (2 * num * width**2)))
    # Scaled so that the entries keep their size.
    square = jax.random.normal(jax.random.key(0), (width, width)) / width**0.5

    def body(x):
        return jax.lax.fori_loop(0, repeats, lambda _, x: x @ square, x)

    return _on_all(mesh, body, jnp.ones((num, width)), 2 * num * width**2 * repeats)


def triad(mesh: Mesh, size: int, repeats: int) -> Roof:
    """x <- x / 2 + y on every device: two arrays are read and one is written."""

    def body(xy):
        x, y = xy
        return jax.lax.fori_loop(0, repeats, lambda _, x: 0.5 * x + y, x)

    return _on_all(mesh, body, (jnp.ones(size), jnp.ones(size)), 3 * 4 * size * repeats)


def hyperbolic_tangent(mesh: Mesh, size: int, repeats: int) -> Roof:
    """tanh of an array that stays in cache."""

    def body(x):
        return jax.lax.fori_loop(0, repeats, lambda _, x: jnp.tanh(x), x)

    return _on_all(mesh, body, jnp.ones(size), size * repeats)


def _on_all(mesh: Mesh, body: Callable[[Any], Any], example: Any, amount: float) -> Roof:
    """A program that every device runs on arrays of its own."""
    num, spec = mesh.size, PartitionSpec("devices")
    several = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), example)
    arrays = jax.device_put(several, NamedSharding(mesh, spec))
    alone = lambda arrays: body(jax.tree.map(lambda x: x[0], arrays))[None]
    program = jax.jit(
        jax.shard_map(alone, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False)
    )
    with backends.matmul_precision("float32"):
        compiled = program.lower(arrays).compile()
    return Roof(lambda: compiled(arrays), amount * num)


def of_pgjax(setting: Setting) -> Program:
    """One update of pgjax."""
    few = training.step(setting._replace(num_rows=COUNTED_ROWS))
    return Program(
        call=training.step(setting, training.mesh(setting.num_rows)).compile(),
        steps=setting.num_rows * setting.horizon,
        operations=cost.flops(few.function, few.key, few.state) / (COUNTED_ROWS * setting.horizon),
        bytes=bytes_of_step(setting),
    )


def of_plain(setting: Setting) -> Program:
    """One update of a plain REINFORCE."""
    shape = {"num_steps": setting.horizon, "num_updates": 1, "discount": 0.99}
    train = lambda num_envs: partial(plain_reinforce.train, num_envs=num_envs, **shape)
    arguments = (jax.random.key(0), 3e-3)
    with backends.matmul_precision("float32"):
        compiled = jax.jit(train(setting.num_rows)).lower(*arguments).compile()
    counted = cost.flops(train(COUNTED_ROWS), *arguments)
    return Program(
        call=lambda: compiled(*arguments),
        steps=setting.num_rows * setting.horizon,
        operations=counted / (COUNTED_ROWS * setting.horizon),
        bytes=None,
    )


def network_operations(setting: Setting) -> tuple[float, float, float]:
    """Operations of a step's matrix products, activations stored or computed twice; tanhs, twice.

    The backward pass has two products for each layer, but one for the first: observations need no
    gradient.
    """
    params, _ = training.parts(setting).init(jax.random.key(0))
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2]
    forward = sum(2 * x.size for x in kernels)
    (first,) = [x for x in kernels if x.shape[0] == 4]  # the size of CartPole's observations
    stored = forward + 2 * forward - 2 * first.size
    return stored, stored + forward, 2.0 * setting.width * setting.depth


def bytes_of_step(setting: Setting) -> float:
    """Bytes that acting and learning read and write, by XLA's analysis of what it compiled."""
    env, env_params, policy, _ = own = training.parts(setting)
    params, _ = own.init(jax.random.key(0))
    widths = stepping.widths(setting.num_rows)
    steps = max(1, backends.current().chunk_size // setting.horizon) * setting.horizon

    def roll(num_episodes, horizon):
        return lambda key, params: rollout.episodes(
            key,
            env,
            env_params,
            policy,
            params,
            num_episodes=num_episodes,
            horizon=horizon,
            fields=GRADIENT_FIELDS,
        )

    def learn(params, trajectory):
        return gradients.trajectory_gradient(
            params,
            trajectory,
            policy=policy,
            estimator=estimators.estimator("reward_to_go", "batch_mean", "uniform"),
            hyper=estimators.Hyper(discount=0.99),
        )

    key = jax.random.key(0)
    chunk = jax.eval_shape(roll(steps // setting.horizon, setting.horizon), key, params)
    # The program steps rows of every width, and the analysis counts each loop once.
    acting = _bytes(roll(widths[0], 1), key, params) / sum(widths)
    return acting + _bytes(learn, params, chunk) / steps


def _bytes(function: Callable[..., Any], *args: Any) -> float:
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((analysis or {})["bytes accessed"])


if __name__ == "__main__":
    kept.run("roofline", measure, sys.argv[1:])
