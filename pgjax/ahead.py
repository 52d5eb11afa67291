"""The part of a function that can be computed before the rest of its arguments are known."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


def split(
    function: Callable[[Any, Any], Any], later: Any, now: Any
) -> tuple[Callable[[Any], list[jax.Array]], Callable[[Any, list[jax.Array]], Any]]:
    """What `function(later, now)` computes from `now` alone, and the rest.

        function(later, now) = rest(later, ahead(now))

    For functions that are called in turn with all of `now` known from the start, such as a step of
    a scan that draws from keys. `ahead` is then vmapped over all steps, and its many small
    operations become a few large ones. The results are the same bits.

    Args:
      function: to be split; it is traced once.
      later: arrays or their shapes.
      now: the same.

    Returns:
      `ahead` and `rest`, with a list of arrays between them.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(later, now)
    jaxpr, num_later = closed.jaxpr, len(jax.tree.leaves(later))
    unknown, known = set(jaxpr.invars[:num_later]), set(jaxpr.invars[num_later:])
    ahead_eqns, rest_eqns = [], []
    for eqn in jaxpr.eqns:
        inputs = _variables(eqn.invars)
        if inputs & unknown or eqn.effects:
            unknown.update(eqn.outvars)
            rest_eqns.append(eqn)
            continue
        ahead_eqns.append(eqn)
        if inputs & known:
            known.update(eqn.outvars)
        else:  # made of no input at all, and perhaps needed on both sides
            rest_eqns.append(eqn)
    wanted = _variables(jaxpr.outvars).union(*(_variables(eqn.invars) for eqn in rest_eqns))
    computed = [x for eqn in ahead_eqns for x in eqn.outvars]
    between = [x for x in (*jaxpr.invars[num_later:], *computed) if x in known & wanted]

    about = jaxpr.debug_info._replace(arg_names=None, result_paths=None)

    def part(inputs, outputs, eqns, effects):
        part = Jaxpr(jaxpr.constvars, inputs, outputs, eqns, effects, about)
        return jaxpr_as_fun(ClosedJaxpr(part, closed.consts))

    first = part(jaxpr.invars[num_later:], between, ahead_eqns, frozenset())
    inputs = [*jaxpr.invars[:num_later], *between]
    second = part(inputs, jaxpr.outvars, rest_eqns, jaxpr.effects)

    def rest(later, values):
        out = second(*jax.tree.leaves(later), *values)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return lambda now: first(*jax.tree.leaves(now)), rest


def _variables(atoms):
    return {x for x in atoms if not isinstance(x, Literal)}
