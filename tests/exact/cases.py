"""Policies in small MDPs, each with its logits once more in numpy, analytic in the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pgjax import heads, policies
from pgjax.environments import MDP
from pgjax.policies import Policy

from ..enumeration import Problem, complex_step, enumerate_paths, random_problem, scores

FEATURES = np.random.default_rng(10).normal(size=(4, 2))
ALIASES = np.array([0, 1, 1, 2])


class Case(NamedTuple):
    """A policy in an MDP, and what numpy makes of it."""

    mdp: MDP
    policy: Policy
    params: Any
    logits: Callable[[np.ndarray], np.ndarray]  # flat [D], complex too -> [S, A]
    horizon: int

    @property
    def flat(self):
        """The parameters, `[D]`."""
        return np.asarray(ravel_pytree(self.params)[0])

    @property
    def problem(self) -> Problem:
        return self.at(self.flat)

    def at(self, flat) -> Problem:
        """The problem with the policy's logits at real parameters."""
        return Problem(*self.mdp[:4], self.logits(flat), self.horizon)

    def paths(self):
        return enumerate_paths(self.problem)

    def slopes(self):
        """Derivative of the logits in the parameters, `[S, A, D]`."""
        return complex_step(self.logits, self.flat)

    def scores(self, paths):
        """grad log pi(a_t | s_t) in the flat parameters, `[M, T, D]`."""
        return np.einsum("mtsa,sad->mtd", scores(self.problem, paths), self.slopes())


def tabular(problem: Problem, aliases=None) -> Case:
    """A softmax table over states or, with `aliases` `[S]`, over what they look like."""
    shape = problem.logits.shape
    seen = np.arange(shape[0]) if aliases is None else aliases
    return Case(
        mdp=MDP(*problem[:4], observation=None if aliases is None else aliases.astype(np.int32)),
        policy=policies.tabular(*shape),
        params=jnp.asarray(problem.logits),
        logits=lambda flat: flat.reshape(shape)[seen],
        horizon=problem.horizon,
    )


def network(problem: Problem, features=None, *, hidden=(), bernoulli=False) -> Case:
    """A network over one-hot states or, with `features` `[S, F]`, over what is observed."""
    num_states, num_actions = problem.logits.shape
    head = heads.bernoulli() if bernoulli else heads.categorical(num_actions)
    see = policies.one_hot(num_states) if features is None else policies.ravel
    inputs = np.eye(num_states) if features is None else features
    policy = policies.mlp(head, hidden=hidden, features=see)
    start = policy.init(jax.random.key(0), np.int32(0) if features is None else features[0])
    random = np.random.default_rng(11)
    params = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), start)
    shapes = [x.shape for x in jax.tree.leaves(params)]  # bias and kernel of each layer in turn

    def logits(flat):
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        leaves = [x.reshape(s) for x, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
        (bias, kernel), *rest = zip(leaves[::2], leaves[1::2], strict=True)
        x = inputs @ kernel + bias
        for bias, kernel in rest:
            x = np.tanh(x) @ kernel + bias
        return np.concatenate([np.zeros_like(x), x], axis=-1) if bernoulli else x

    return Case(MDP(*problem[:4], observation=features), policy, params, logits, problem.horizon)


def cases(seed=0, *, num_actions=3, **kwargs) -> dict[str, Case]:
    """Every kind of policy, by name, in the same MDP; the Bernoulli one with two actions."""
    problem = random_problem(seed, num_actions=num_actions, **kwargs)
    coin = random_problem(seed, num_actions=2, **kwargs)
    return {
        "tabular": tabular(problem),
        "aliased": tabular(problem, ALIASES),
        "linear": network(problem),
        "mlp": network(problem, hidden=(3,)),
        "features": network(problem, FEATURES, hidden=(3,)),
        "bernoulli": network(coin, bernoulli=True),
    }
