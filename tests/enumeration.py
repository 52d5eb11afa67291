"""A plain numpy witness: every trajectory of a small finite MDP, and the exact numbers that follow.

Nothing here imports pgjax or JAX. Trajectories are enumerated with their probabilities, so every
expectation is a finite sum, and gradients of expectations are complex-step derivatives of that sum:
exact to rounding, and free of the log-derivative trick that the estimators under test rely on.

Axes: M paths, T steps (the horizon), S states, A actions.
"""

import itertools
from typing import NamedTuple

import numpy as np

COMPLEX_STEP = 1e-30


class Problem(NamedTuple):
    """A finite MDP, a horizon and the logits of a softmax policy."""

    transition: np.ndarray  # [S, A, S]
    reward: np.ndarray  # [S, A, S]
    initial: np.ndarray  # [S]
    terminal: np.ndarray  # [S] bool
    logits: np.ndarray  # [S, A]
    horizon: int


class Paths(NamedTuple):
    """All trajectories of positive probability, one a row; steps after the end are zero."""

    probability: np.ndarray  # [M]
    obs: np.ndarray  # [M, T]
    action: np.ndarray  # [M, T]
    next_obs: np.ndarray  # [M, T]
    reward: np.ndarray  # [M, T]
    terminated: np.ndarray  # [M, T] bool
    truncated: np.ndarray  # [M, T] bool: the horizon cut an episode that had not ended
    mask: np.ndarray  # [M, T]

    @property
    def length(self):
        """Live steps of every path, [M]."""
        return self.mask.sum(axis=1).astype(int)


def problem(horizon=3):
    """Two live states and a terminal one, three actions; episodes last one step or up to `horizon`.

    Every live state and action has few successors, so the number of paths stays small (40 at
    horizon 3), and no two (state, action, next state) share a reward, so a path can be recognised
    from what was observed.
    """
    transition = np.zeros((3, 3, 3))
    transition[0, 0] = [0.0, 0.7, 0.3]
    transition[0, 1] = [1.0, 0.0, 0.0]
    transition[0, 2] = [0.0, 1.0, 0.0]
    transition[1, 0] = [1.0, 0.0, 0.0]
    transition[1, 1] = [0.0, 0.6, 0.4]
    transition[1, 2] = [0.0, 1.0, 0.0]
    transition[2, :, 2] = 1.0
    reward = np.round(np.random.default_rng(0).normal(size=(3, 3, 3)), 3)
    reward[2] = 0.0
    logits = np.array([[0.3, -0.2, 0.5], [-0.4, 0.6, 0.1], [0.0, 0.0, 0.0]])
    initial, terminal = np.array([1.0, 0.0, 0.0]), np.array([False, False, True])
    return Problem(transition, reward, initial, terminal, logits, horizon)


def random_problem(seed, *, num_actions=2, horizon=3, num_successors=1, splits=3, ends=True):
    """Four states, the last one terminal if `ends`, and generic numbers everywhere.

    Every state and action leads to `num_successors` states, and `splits` of them to one more, so
    that the number of paths is a matter of choice. Episodes start in either of two states.
    """
    random = np.random.default_rng(seed)
    shape = (4, num_actions, 4)
    likely = random.permuted(np.arange(4) * np.ones(shape), axis=-1) < num_successors
    # A walk around the live states, so that all of them are visited and the end is reached.
    for state in range(3):
        likely[state, state % num_actions] = np.arange(4) == state + 1
    split = random.choice(3 * num_actions, splits, replace=False)
    likely[split // num_actions, split % num_actions, random.integers(4, size=splits)] = True
    transition = likely * random.uniform(0.2, 1.0, shape)
    transition /= transition.sum(axis=-1, keepdims=True)
    initial = np.array([0.6, 0.4, 0.0, 0.0])
    terminal = np.arange(4) == (3 if ends else 4)
    reward = random.normal(size=shape)
    logits = random.normal(size=shape[:2])
    return Problem(transition, reward, initial, terminal, logits, horizon)


def softmax(logits):
    """Row-wise softmax, [..., A], analytic in complex logits."""
    weight = np.exp(logits - np.max(np.real(logits), axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def enumerate_paths(problem):
    """Walks the tree of all episodes: they end on a terminal state or at the horizon."""
    policy = softmax(problem.logits)
    num_states, num_actions = problem.logits.shape
    finished = []

    def walk(probability, steps, state):
        if problem.terminal[state] or len(steps) == problem.horizon:
            finished.append((probability, steps))
            return
        for action, following in itertools.product(range(num_actions), range(num_states)):
            chance = policy[state, action] * problem.transition[state, action, following]
            if chance > 0:
                walk(probability * chance, [*steps, (state, action, following)], following)

    for state in np.flatnonzero(problem.initial):
        walk(problem.initial[state], [], int(state))

    shape = (len(finished), problem.horizon)
    indices, mask, ended = np.zeros((3, *shape), np.int32), np.zeros(shape), np.zeros(shape, bool)
    for row, (_, steps) in enumerate(finished):
        indices[:, row, : len(steps)] = np.transpose(steps)
        mask[row, : len(steps)] = 1.0
        ended[row, len(steps) - 1] = True
    obs, action, next_obs = indices
    return Paths(
        probability=np.array([probability for probability, _ in finished]),
        obs=obs,
        action=action,
        next_obs=next_obs,
        reward=problem.reward[obs, action, next_obs] * mask,
        terminated=ended & problem.terminal[next_obs],
        truncated=ended & ~problem.terminal[next_obs],
        mask=mask,
    )


def scores(problem, paths):
    """grad log pi(a_t|s_t) of the softmax policy, zero after the end, [M, T, S, A]."""
    policy = softmax(problem.logits)
    num_states, num_actions = policy.shape
    in_state = np.eye(num_states)[paths.obs] * paths.mask[..., None]  # [M, T, S]
    chosen = np.eye(num_actions)[paths.action]  # [M, T, A]
    return in_state[..., None] * (chosen - policy[paths.obs])[..., None, :]


def discounted_return(paths, discount):
    """R = sum_t gamma^t r_t of every path, [M]."""
    return paths.reward @ discount ** np.arange(paths.reward.shape[1])


def gradient_of_mean(problem, paths, payoff):
    """Gradient in the logits of sum_m p_m(logits) payoff_m by complex step, [S, A].

    The environment's factors do not depend on the logits, so p_m(logits) is p_m times the ratio of
    the action probabilities.
    """
    return complex_step(lambda logits: mean(problem, paths, payoff, logits), problem.logits)


def mean(problem, paths, payoff, logits):
    """sum_m p_m(logits) payoff_m, analytic in complex logits."""
    before = softmax(problem.logits)[paths.obs, paths.action]  # [M, T]
    ratio = np.where(paths.mask > 0, softmax(logits)[paths.obs, paths.action] / before, 1.0)
    return np.sum(paths.probability * ratio.prod(axis=1) * payoff)


def exact_gradient(problem, paths, discount):
    """grad J_gamma, [S, A], from the enumeration."""
    return gradient_of_mean(problem, paths, discounted_return(paths, discount))


def values(problem, discount, logits=None):
    """V_t(s) with T - t steps to go by backward induction, zero in terminal states, [T + 1, S]."""
    policy = softmax(problem.logits if logits is None else logits)
    value = np.zeros((problem.horizon + 1, len(problem.initial)), policy.dtype)
    for t in reversed(range(problem.horizon)):
        future = problem.reward + discount * value[t + 1]  # [S, A, S]
        value[t] = np.einsum("sa,sak,sak->s", policy, problem.transition, future)
        value[t, problem.terminal] = 0.0
    return value


def action_values(problem, discount, following):
    """Q_t(s, a) from V_{t+1} `following` [..., S], zero in terminal states, [..., S, A]."""
    future = problem.reward + discount * following[..., None, None, :]
    q = np.einsum("sak,...sak->...sa", problem.transition, future)
    return np.where(problem.terminal[:, None], 0.0, q)


def under_policy(problem, logits=None):
    """Moves between live states [S, S] and expected rewards [S] of a step."""
    policy = softmax(problem.logits if logits is None else logits)
    live = ~problem.terminal
    move = np.einsum("sa,sak->sk", policy, problem.transition) * live[:, None] * live
    reward = np.einsum("sa,sak,sak->s", policy, problem.transition, problem.reward) * live
    return move, reward


def sum_of_powers(matrix, doublings=25):
    """I + M + M^2 + ... up to 2^25 terms: (I + M)(I + M^2)(I + M^4)..."""
    total = np.eye(len(matrix))
    for _ in range(doublings):
        total = total + matrix @ total
        matrix = matrix @ matrix
    return total


def endless_values(problem, discount, logits=None):
    """V(s) without a horizon, for complex logits too, [S]."""
    move, reward = under_policy(problem, logits)
    return sum_of_powers(discount * move) @ reward


def stationary(problem, logits=None, doublings=12):
    """The law of the state after thousands of lazy steps, for complex logits too, [S]."""
    move, _ = under_policy(problem, logits)
    lazy = (np.eye(len(move)) + move) / 2
    for _ in range(doublings):
        lazy = lazy @ lazy
    return problem.initial @ lazy


def exact_gradient_by_induction(problem, discount):
    """grad J_gamma, [S, A], without any enumeration: a second opinion on the first."""
    return complex_step(
        lambda logits: problem.initial @ values(problem, discount, logits)[0], problem.logits
    )


def complex_step(function, x):
    """Derivative of an analytic function of an array, `[*out, *x]`, exact to rounding."""

    def partial(index):
        shifted = x.astype(complex)
        shifted[index] += 1j * COMPLEX_STEP
        return np.imag(function(shifted)) / COMPLEX_STEP

    columns = np.stack([partial(index) for index in np.ndindex(*x.shape)], axis=-1)
    return columns.reshape(columns.shape[:-1] + x.shape)


def difference(function, x, step=1e-3):
    """Derivative of a real function of a vector, `[*out, D]`: central, of order four."""

    def partial(shift):
        near, far = (function(x + k * shift) - function(x - k * shift) for k in (1, 2))
        return (8 * near - far) / (12 * step)

    return np.stack([partial(shift) for shift in step * np.eye(len(x))], axis=-1)
