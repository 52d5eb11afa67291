"""The exact mean and trace of every estimator in numpy: all batches of all trajectories."""

import functools
import itertools

import numpy as np

from pgjax.estimators import FORMS, Hyper

from .. import enumeration
from ..formulas import form_of
from .cases import Case


def weights_of(choice, hyper, form, mask, value):
    """Psi of all batches at once; everything is `[B, K, T]`."""
    others = form.shape[1] - 1
    live = mask * form
    count = mask.sum(axis=(1, 2), keepdims=True)
    match choice.baseline:
        case "none":
            baseline = 0.0
        case "constant":
            baseline = hyper.constant
        case "value":
            baseline = 0.0 if choice.form in ("td_residual", "gae") else value
        case "batch_mean":
            baseline = form.mean(axis=1, keepdims=True)
        case "leave_one_out":
            baseline = (form.sum(axis=1, keepdims=True) - form) / others
        case "leave_one_out_live":
            number = mask.sum(axis=1, keepdims=True) - mask
            baseline = (live.sum(axis=1, keepdims=True) - live) / np.maximum(number, 1)
        case "time_mean":
            rows, lengths = live.sum(axis=2, keepdims=True), mask.sum(axis=2, keepdims=True)
            total = rows.sum(axis=1, keepdims=True) - rows
            baseline = total / (lengths.sum(axis=1, keepdims=True) - lengths)
        case "standardise":
            centred = form - live.sum(axis=(1, 2), keepdims=True) / count
            spread = np.sqrt(np.sum(mask * centred**2, axis=(1, 2), keepdims=True) / count)
            same = spread < 1e-9
            baseline = form - np.where(same, 0.0, centred / np.where(same, 1.0, spread))
        case _:
            raise NotImplementedError(f"write the baseline {choice.baseline!r} once more here")
    psi = mask * (form - baseline)
    if choice.state_weighting == "discounted" and choice.form != "total_return":
        psi = psi * float(hyper.discount) ** np.arange(form.shape[2])
    return psi


class Witness:
    """Mean, trace and bias of every estimator, from all batches of a case."""

    def __init__(self, case: Case, hyper: Hyper, value):
        self.hyper, self.paths = hyper, case.paths()
        self.scores = case.scores(self.paths)
        t = np.arange(case.horizon)
        self.value = value[t, self.paths.obs], value[t + 1, self.paths.next_obs]
        payoff = enumeration.discounted_return(self.paths, float(hyper.discount))
        table = enumeration.gradient_of_mean(case.problem, self.paths, payoff)
        self.truth = np.einsum("sa,sad->d", table, case.slopes())

    @functools.cached_property
    def forms(self):
        """Every form at every step of every path; the total return after the end, too."""
        forms = {form: np.zeros(self.paths.reward.shape) for form in FORMS}
        columns = (self.paths.reward, *self.value, self.paths.terminated)
        for (form, table), (m, length) in itertools.product(
            forms.items(), enumerate(self.paths.length)
        ):
            steps = form_of(form, self.hyper, *(column[m, :length] for column in columns))
            table[m, :length] = steps
            if form == "total_return":
                table[m] = steps[0]
        return forms

    def moments(self, choice, num_episodes):
        """Mean `[D]`, trace and bias `[D]`."""
        every = np.arange(len(self.paths.probability))
        rows = np.stack(np.meshgrid(*[every] * num_episodes), axis=-1).reshape(-1, num_episodes)
        chance = self.paths.probability[rows].prod(axis=1)
        form, mask = self.forms[choice.form][rows], self.paths.mask[rows]
        psi = weights_of(choice, self.hyper, form, mask, self.value[0][rows])
        episodes = range(num_episodes)
        parts = [np.einsum("bt,btd->bd", psi[:, k], self.scores[rows[:, k]]) for k in episodes]
        gradient = sum(parts) / num_episodes
        mean = chance @ gradient
        trace = chance @ np.sum((gradient - mean) ** 2, axis=1)
        return mean, trace, mean - self.truth


def wrong_values(horizon, seed=0):
    """Wrong everywhere, at the horizon and in the terminal state too, `[T + 1, S]`."""
    return np.random.default_rng([7, seed]).normal(size=(horizon + 1, 4))
