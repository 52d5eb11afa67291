"""The estimators that can be named, in the groups that tests go over."""

import itertools

from pgjax.estimators import BASELINES, FORMS, STATE_WEIGHTINGS, Estimator, estimator

BOOTSTRAPPING = ("td_residual", "n_step", "gae")
COUPLED = ("batch_mean", "leave_one_out", "leave_one_out_live", "time_mean", "standardise")


def _accepted():
    for names in itertools.product(FORMS, BASELINES, STATE_WEIGHTINGS):
        try:
            yield estimator(*names)
        except ValueError:
            continue


ACCEPTED: list[Estimator] = list(_accepted())
UNCOUPLED_ONES = [choice for choice in ACCEPTED if choice.baseline not in COUPLED]
COUPLED_ONES = [choice for choice in ACCEPTED if choice.baseline in COUPLED]
