"""Distributions: small pytrees that sample, score and know their entropy.

A distribution is a NamedTuple of parameter arrays, so a policy may return it from `vmap` or `scan`.
Make one with the lower-case functions, which broadcast the parameters against each other and give
them one floating dtype; parameters out of range give NaN, not an exception.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, digamma, xlog1py, xlogy
from jax.typing import ArrayLike


class Distribution(Protocol):
    """What every distribution offers; its batch is `B` and one event has shape `E`.

    The value x that `sample` returns is the one `log_prob` scores, and the one to store.
    Environments may want another for continuous actions: `squash(x)` lies in `support`, which can
    be stretched over the action bounds where it is bounded, and clipped to them where it is not.
    Neither touches the log-probability, which stays that of what was sampled.

    Continuous samples are differentiable in the parameters (pathwise); a score-function estimator
    has to hold them constant.

    Attributes:
        support: bounds of `squash(x)`; None where x is a whole number.
    """

    @property
    def support(self) -> tuple[float, float] | None: ...
    @property
    def batch_shape(self) -> tuple[int, ...]: ...  # B
    def sample(self, key: jax.Array) -> jax.Array: ...  # [*B, *E]
    def squash(self, x: jax.Array) -> jax.Array: ...  # [*B, *E] -> [*B, *E]
    def log_prob(self, x: jax.Array) -> jax.Array: ...  # [*B, *E] -> [*B]
    def entropy(self) -> jax.Array: ...  # [*B]
    def mode(self) -> jax.Array: ...  # [*B, *E]


class Categorical(NamedTuple):
    """Law of an index in {0, ..., A - 1}: P(x) = softmax(logits)_x. A logit may be -inf."""

    logits: jax.Array  # [*B, A]
    support = None

    @property
    def batch_shape(self):
        return self.logits.shape[:-1]

    @property
    def probs(self):
        """Probability of each index, `[*B, A]`."""
        return jax.nn.softmax(self.logits)

    def sample(self, key):
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def squash(self, x):
        return x

    def log_prob(self, x):
        x, num = jnp.asarray(x, jnp.int32), self.logits.shape[-1]
        x = jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, self.batch_shape))
        log_probs = jnp.broadcast_to(jax.nn.log_softmax(self.logits), (*x.shape, num))
        # By comparison, whose gradient is as cheap; that of a gather would be a scatter.
        chosen = jax.nn.one_hot(x, num, dtype=bool)
        log_prob = jnp.sum(log_probs, axis=-1, where=chosen)
        return jnp.where((x >= 0) & (x < num), log_prob, jnp.nan)

    def entropy(self):
        return jnp.sum(_plogp(jax.nn.log_softmax(self.logits)), axis=-1)

    def mode(self):
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


class Bernoulli(NamedTuple):
    """Law of x in {0, 1}: P(1) = sigmoid(logits)."""

    logits: jax.Array  # [*B]
    support = None

    @property
    def batch_shape(self):
        return self.logits.shape

    @property
    def probs(self):
        """Probability of 1, `[*B]`."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key):
        return jax.random.bernoulli(key, self.probs).astype(jnp.int32)

    def squash(self, x):
        return x

    def log_prob(self, x):
        logits = jnp.where(x == 1, self.logits, -self.logits)
        return jnp.where((x == 0) | (x == 1), jax.nn.log_sigmoid(logits), jnp.nan)

    def entropy(self):
        heads, tails = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        return _plogp(heads) + _plogp(tails)

    def mode(self):
        return (self.logits > 0).astype(jnp.int32)


class Normal(NamedTuple):
    """Law of x = loc + scale z with z standard normal, element by element."""

    loc: jax.Array  # [*B]
    scale: jax.Array  # [*B]
    support = (-math.inf, math.inf)

    @property
    def batch_shape(self):
        return self.loc.shape

    def sample(self, key):
        return self.loc + self.scale * jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def squash(self, x):
        return x

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return -(z**2 + math.log(2 * math.pi)) / 2 - jnp.log(self.scale)

    def entropy(self):
        return jnp.log(self.scale) + (1 + math.log(2 * math.pi)) / 2

    def mode(self):
        return self.loc


class TanhNormal(NamedTuple):
    """Law of tanh(u) with u normal, element by element, in terms of u.

    Samples are values of u, *before* the tanh: in float32 tanh(u) rounds to 1 from u = 9 on, and
    its log-probability is lost. `log_prob(u)` is the log-density of tanh(u), not of u, and
    `entropy` that of tanh(u). Haarnoja et al. 2018 (SAC), appendix C.
    """

    loc: jax.Array  # [*B]
    scale: jax.Array  # [*B]
    support = (-1.0, 1.0)

    @property
    def batch_shape(self):
        return self.loc.shape

    def sample(self, key):
        return Normal(*self).sample(key)

    def squash(self, x):
        return jnp.tanh(x)

    def log_prob(self, x):
        return Normal(*self).log_prob(x) - _log_tanh_slope(x)

    def entropy(self):
        """H[tanh(u)] = H[u] + E log(1 - tanh(u)^2), the mean by the trapezoidal rule.

        It converges exponentially: the error is 1e-12 at a scale of 2, 1e-6 at 5, 1e-2 at 20.
        """
        return Normal(*self).entropy() + _normal_mean(_log_tanh_slope, self.loc, self.scale)

    def mode(self):
        """Returns loc: tanh(loc) is the median, and the usual deterministic action.

        It is not where the density of tanh(u) peaks, unless loc = 0 and scale <= 1 / sqrt(2).
        """
        return self.loc


class Beta(NamedTuple):
    """Law on (0, 1) with density proportional to x^(alpha - 1) (1 - x)^(beta - 1).

    Samples and modes that round to 0 or 1 are moved to the nearest number inside, so that they have
    a finite log-probability. In float32 the beta function loses digits to cancellation: entropy and
    log-probability are off by up to 3e-4 at alpha = beta = 1e3, and 1e-2 at 1e4. Scores are biased
    for parameters below about 0.3, because many samples then round to 1: E[grad log p] is not zero
    there, and float64 helps. Chou et al. 2017.
    """

    alpha: jax.Array  # [*B]
    beta: jax.Array  # [*B]
    support = (0.0, 1.0)

    @property
    def batch_shape(self):
        return self.alpha.shape

    def sample(self, key):
        return _inside_unit(jax.random.beta(key, self.alpha, self.beta, dtype=self.alpha.dtype))

    def squash(self, x):
        return x

    def log_prob(self, x):
        log_density = xlogy(self.alpha - 1, x) + xlog1py(self.beta - 1, -x)
        return log_density - betaln(self.alpha, self.beta)

    def entropy(self):
        a, b = self.alpha, self.beta
        mean_log_x = digamma(a) - digamma(a + b)
        mean_log_rest = digamma(b) - digamma(a + b)
        return betaln(a, b) - (a - 1) * mean_log_x - (b - 1) * mean_log_rest

    def mode(self):
        """Returns the interior peak if alpha, beta > 1, else the end with the smaller parameter.

        On ties: 1/2 if the law is uniform, 0 if both ends are equal poles.
        """
        a, b = self.alpha, self.beta
        peaked, uniform = (a > 1) & (b > 1), (a == 1) & (b == 1)
        peak = (a - 1) / jnp.where(peaked, a + b - 2, 1)
        end = jnp.where(uniform, 0.5, jnp.where(a > b, 1.0, 0.0))
        return _inside_unit(jnp.where(peaked, peak, end))


class Independent(NamedTuple):
    """Law of a vector of independent components: the last batch axis of `distribution`."""

    distribution: Distribution  # batch [*B, D]

    @property
    def support(self):
        return self.distribution.support

    @property
    def batch_shape(self):
        return self.distribution.batch_shape[:-1]

    def sample(self, key):
        return self.distribution.sample(key)

    def squash(self, x):
        return self.distribution.squash(x)

    def log_prob(self, x):
        return jnp.sum(self.distribution.log_prob(x), axis=-1)

    def entropy(self):
        return jnp.sum(self.distribution.entropy(), axis=-1)

    def mode(self):
        return self.distribution.mode()


class Greedy(NamedTuple):
    """All of a distribution's mass on its mode.

    Where x is a whole number, log P(x) is 0 at the mode and -inf elsewhere, and NaN where the
    distribution gives NaN. A continuous one has no density left: its log-probability is 0, and
    good for nothing but acting.
    """

    distribution: Any  # `probs` needs a finite one

    @property
    def probs(self):
        """Probabilities in the shape of those of the distribution, which has to be finite."""
        probs, mode = self.distribution.probs, self.mode()
        if probs.ndim == mode.ndim:  # of a one
            return mode.astype(probs.dtype)
        return jax.nn.one_hot(mode, probs.shape[-1], dtype=probs.dtype)

    def sample(self, key):
        return self.distribution.mode()

    def log_prob(self, x):
        if self.support is not None:
            return jnp.zeros(self.batch_shape)
        log_prob, mode = self.distribution.log_prob(x), self.mode()
        event = tuple(range(len(self.batch_shape) - mode.ndim, 0))
        at_mode = jnp.all(jnp.equal(*jnp.broadcast_arrays(x, mode)), axis=event)
        known = jnp.where(at_mode, 0, -jnp.inf).astype(log_prob.dtype)
        return jnp.where(jnp.isnan(log_prob), jnp.nan, known)

    def entropy(self):
        return jnp.zeros(self.distribution.batch_shape)

    def mode(self):
        return self.distribution.mode()

    @property
    def batch_shape(self):
        return self.distribution.batch_shape

    def squash(self, x):
        return self.distribution.squash(x)

    @property
    def support(self):
        return self.distribution.support


def categorical(logits: jax.Array) -> Categorical:
    """Makes a categorical law from logits `[*B, A]`; samples are int32."""
    return Categorical(*_parameters(logits))


def bernoulli(logits: ArrayLike) -> Bernoulli:
    """Makes a Bernoulli law from the log-odds `[*B]` of a one; samples are int32."""
    return Bernoulli(*_parameters(logits))


def normal(loc: ArrayLike, scale: ArrayLike) -> Normal:
    """Makes normal laws, one per element, from means and standard deviations `[*B]`."""
    return Normal(*_parameters(loc, scale))


def tanh_normal(loc: ArrayLike, scale: ArrayLike) -> TanhNormal:
    """Makes laws of tanh(u), one per element, from means and standard deviations `[*B]` of u."""
    return TanhNormal(*_parameters(loc, scale))


def beta(alpha: ArrayLike, beta: ArrayLike) -> Beta:
    """Makes beta laws, one per element, from their parameters `[*B]`."""
    return Beta(*_parameters(alpha, beta))


def independent(distribution: Distribution) -> Independent:
    """Makes one event of the last batch axis: log-probabilities and entropies sum over it.

    Raises:
        ValueError: `distribution` has no batch axis.
    """
    if not distribution.batch_shape:
        raise ValueError("distribution must have a batch axis to sum over, got batch_shape=()")
    return Independent(distribution)


def _parameters(*xs: ArrayLike) -> list[jax.Array]:
    """Broadcasts parameters against each other in one floating dtype."""
    dtype = jnp.result_type(*xs, float)
    return jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in xs))


def _plogp(log_p: jax.Array) -> jax.Array:
    """-p log p, with value and gradient zero where p is zero."""
    p = jnp.exp(log_p)
    return -p * jnp.where(p > 0, log_p, 0)


def _log_tanh_slope(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2), without the cancellation."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _normal_mean(f, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """E f(loc + scale z) with z standard normal, by the trapezoidal rule on 128 nodes."""
    nodes = np.linspace(-9, 9, 128)
    weights = np.exp(-(nodes**2) / 2)
    rule = jnp.asarray(np.stack([nodes, weights / weights.sum()], axis=1), loc.dtype)

    # Node by node, and checkpointed, lest all nodes of all elements be in memory at once.
    @jax.checkpoint
    def add(total, node):
        z, weight = node
        return total + weight * f(loc + scale * z), None

    return jax.lax.scan(add, jnp.zeros_like(loc), rule, unroll=8)[0]


def _inside_unit(x: jax.Array) -> jax.Array:
    """Moves what rounded to 0 or 1 back inside the open interval."""
    limits = jnp.finfo(x.dtype)
    return jnp.clip(x, limits.tiny, 1 - limits.epsneg)
