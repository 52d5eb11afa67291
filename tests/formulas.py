"""The weights of every estimator as plain loops over time, in numpy: formulas, once more."""

import numpy as np


def form_of(name, hyper, reward, value, next_value, terminated):
    """The form at every step of one episode of length L, all arguments [L], as a list."""
    length = len(reward)
    discount, lambda_ = float(hyper.discount), float(hyper.lambda_)

    def delta(t):
        future = 0.0 if terminated[t] else next_value[t]
        return reward[t] + discount * future - value[t]

    def n_step(t):
        end = min(t + int(hyper.n), length)
        total = sum(discount ** (k - t) * reward[k] for k in range(t, end))
        future = 0.0 if terminated[end - 1] else next_value[end - 1]
        return total + discount ** (end - t) * future

    at = {
        "total_return": lambda t: sum(discount**k * reward[k] for k in range(length)),
        "reward_to_go": lambda t: sum(discount ** (k - t) * reward[k] for k in range(t, length)),
        "td_residual": delta,
        "n_step": n_step,
        "gae": lambda t: sum((discount * lambda_) ** (k - t) * delta(k) for k in range(t, length)),
    }
    return [at[name](t) for t in range(length)]


def baseline_of(choice, hyper, form, length, value, i, t):
    """The baseline of step t of row i; `form` [K, T] is zero after the end of a row.

    A row that has ended still has its total return, and a return to go of zero.
    """
    others = [j for j in range(len(form)) if j != i]
    live_others = [j for j in others if t < length[j]]
    steps = [form[j, k] for j in others for k in range(length[j])]
    column = form[:, 0] if choice.form == "total_return" else form[:, t]
    match choice.baseline:
        case "none" | "standardise":
            return 0.0
        case "constant":
            return hyper.constant
        case "value":
            return 0.0 if choice.form in ("td_residual", "gae") else value[i, t]
        case "batch_mean":
            return np.mean(column)
        case "leave_one_out":
            return np.mean(column[others])
        case "leave_one_out_live":
            return np.mean(column[live_others]) if live_others else 0.0
        case "time_mean":
            return np.mean(steps)


def weights_of(choice, hyper, form, length, value):
    """Psi of a batch of K rows, [K, T]."""
    psi = np.zeros(form.shape)
    live = [(i, t) for i in range(len(form)) for t in range(length[i])]
    for i, t in live:
        psi[i, t] = form[i, t] - baseline_of(choice, hyper, form, length, value, i, t)
    if choice.baseline == "standardise":
        every = np.array([psi[step] for step in live])
        spread = every.std()
        for step in live:
            psi[step] = (psi[step] - every.mean()) / spread if spread > 1e-9 else 0.0
    if choice.state_weighting == "discounted" and choice.form != "total_return":
        psi *= float(hyper.discount) ** np.arange(form.shape[1])
    return psi
