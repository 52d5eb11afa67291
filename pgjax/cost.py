"""Operations of a program, counted over the iterations that it really runs.

XLA's own analysis counts the body of a loop once, however often it runs; here each body is
analysed by XLA and its runs are counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

LOOPS = frozenset({"scan", "while", "cond"})


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of one call, as XLA counts them.

        sum_b runs_b flops_b,   b over the bodies of loops, branches, and the rest

    The program is run once, with counters in its loops: trips may depend on data. XLA counts an
    addition or a multiplication of integers like one of floats, and transcendental functions not at
    all; its count is taken before it optimises. A loop within the condition of a loop counts as run
    once, and so does one that XLA generates itself, as for sorting.

    Args:
      function: what is called; jitted or not.
      *args: its arguments.
    """
    program = jax.make_jaxpr(function)(*args)
    bodies = list(_bodies(program.jaxpr))
    place = {id(body): index for index, body in enumerate(bodies)}

    @jax.jit
    def runs(leaves):
        counts = jnp.zeros(len(bodies), jnp.int32)
        return _run(program, leaves, counts, place)[1]

    counts = runs(jax.tree.leaves(args)).tolist()
    return sum(count * _analysed(body) for count, body in zip(counts, bodies, strict=True))


def _run(
    program: ClosedJaxpr, args: Sequence[Any], counts: jax.Array, place: Mapping[int, int]
) -> tuple[list[Any], jax.Array]:
    """Evaluates a program, counting how often each body runs, this one included."""
    jaxpr = program.jaxpr
    counts = counts.at[place[id(jaxpr)]].add(1)
    known = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known |= zip(jaxpr.invars, args, strict=True)
    read = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        if _loops(equation):
            values = list(map(read, equation.invars))
            results, counts = _run_loop(equation, values, counts, place)
        else:
            alone = _part(jaxpr, [equation])
            results = jaxpr_as_fun(alone)(*map(read, alone.jaxpr.invars))
        known |= zip(equation.outvars, results, strict=True)
    return list(map(read, jaxpr.outvars)), counts


def _run_loop(equation, values, counts, place):
    name, parameters = equation.primitive.name, equation.params
    if name == "scan":
        return _run_scan(parameters, values, counts, place)
    if name == "while":
        return _run_while(parameters, values, counts, place)
    if name == "cond":
        branches = [
            lambda counts, *args, branch=branch: _run(branch, args, counts, place)
            for branch in parameters["branches"]
        ]
        return jax.lax.switch(values[0], branches, counts, *values[1:])
    (body,) = _inside(equation)
    return _run(body, values, counts, place)


def _run_scan(parameters, values, counts, place):
    num_consts, num_carry = parameters["num_consts"], parameters["num_carry"]
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]

    def step(carry, x):
        counts, carry = carry
        results, counts = _run(parameters["jaxpr"], [*consts, *carry, *x], counts, place)
        return (counts, results[:num_carry]), results[num_carry:]

    (counts, carry), out = jax.lax.scan(
        step,
        (counts, carry),
        values[num_consts + num_carry :],
        length=parameters["length"],
        reverse=parameters["reverse"],
    )
    return [*carry, *out], counts


def _run_while(parameters, values, counts, place):
    condition, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    split = parameters["cond_nconsts"]
    end = split + parameters["body_nconsts"]
    looked = place[id(condition.jaxpr)]

    def live(carry):
        return jaxpr_as_fun(condition)(*values[:split], *carry)[0]

    def turn(loop):
        counts, carry = loop
        results, counts = _run(body, [*values[split:end], *carry], counts, place)
        # A vmapped condition is an array: rows that have finished keep their values.
        kept = partial(_where, live(carry))
        return counts.at[looked].add(1), list(map(kept, results, carry))

    go_on = lambda loop: jnp.any(live(loop[1]))
    counts, results = jax.lax.while_loop(go_on, turn, (counts.at[looked].add(1), values[end:]))
    return results, counts


def _where(condition, new, old):
    return jnp.where(
        condition.reshape(condition.shape + (1,) * (old.ndim - condition.ndim)), new, old
    )


def _bodies(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """The jaxpr and all bodies within it that are run, or not, on their own."""
    yield jaxpr
    for equation in jaxpr.eqns:
        if _loops(equation):
            for body in _inside(equation):
                yield from _bodies(body.jaxpr)


def _loops(equation: JaxprEqn) -> bool:
    """Whether an equation is a loop or a branch, or a call with one inside."""
    if equation.primitive.name in LOOPS:
        return True
    return len(_inside(equation)) == 1 and any(map(_loops, _inside(equation)[0].jaxpr.eqns))


def _inside(equation: JaxprEqn) -> list[ClosedJaxpr]:
    """The programs that an equation runs."""
    found = []
    for value in equation.params.values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Jaxpr) and not part.constvars:
                found.append(ClosedJaxpr(part, []))
            elif isinstance(part, ClosedJaxpr):
                found.append(part)
    return found


def _part(jaxpr: Jaxpr, equations: Sequence[JaxprEqn]) -> ClosedJaxpr:
    """Some equations of a jaxpr as a program, from all they need to all they compute."""
    made = [var for equation in equations for var in equation.outvars]
    used = (atom for equation in equations for atom in equation.invars)
    own = set(made)
    needed = dict.fromkeys(x for x in used if not isinstance(x, Literal) and x not in own)
    part = jaxpr.replace(constvars=[], invars=list(needed), outvars=made, eqns=list(equations))
    return ClosedJaxpr(part, [])


def _analysed(jaxpr: Jaxpr) -> float:
    """XLA's count for what a body does itself, outside of the loops within it."""
    rest = _part(jaxpr, [equation for equation in jaxpr.eqns if not _loops(equation)])
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in rest.jaxpr.invars]
    analysis = jax.jit(jaxpr_as_fun(rest)).lower(*shapes).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))
