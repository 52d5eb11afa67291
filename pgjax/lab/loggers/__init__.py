"""Where metrics go beside their JSON lines: TensorBoard, Weights & Biases and trackio.

Each is a package of its own, imported when it is asked for. A *series* is one curve, a seed of a
run or a configuration and a seed of a sweep, told from the others by what its rows say:
`seed=3`, or `learning_rate=0.01,seed=3`.

The JSON lines stay the truth. A run that goes on after a stop sends what its records hold already
once more, and every logger ends with each step once, whatever a kill had taken from it.
"""

from pgjax.lab.loggers.opening import LOGGERS, Backend, Rows, check, opened
from pgjax.lab.loggers.series import Logger, Series, label

__all__ = ["LOGGERS", "Backend", "Logger", "Rows", "Series", "check", "label", "opened"]
