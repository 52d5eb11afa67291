"""Where metrics go besides their JSON lines: TensorBoard, Weights & Biases and trackio.

Each is a package of its own, imported when it is asked for. A *series* is the metrics of one seed
of a run, or of one configuration and seed of a sweep, told from the others by what its rows say:
`seed=3`, or `learning_rate=0.01,seed=3`.

The JSON lines remain the truth. A run that goes on after a stop sends again what its records
already hold, and every logger ends up with each step once, whatever it had lost to a kill; only
trackio on a network file system has some twice.
"""

from pgjax.lab.loggers.opening import LOGGERS, Backend, Rows, check, opened
from pgjax.lab.loggers.series import Logger, Series, label

__all__ = ["LOGGERS", "Backend", "Logger", "Rows", "Series", "check", "label", "opened"]
