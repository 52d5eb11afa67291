"""Monte-Carlo audit of any `GradientFn`: its mean, variance, bias and cost, with intervals."""

from pgjax.audit.bias import BiasTest
from pgjax.audit.comparison import Comparison, compare
from pgjax.audit.decomposition import Decomposition, variance_decomposition
from pgjax.audit.intervals import Estimate
from pgjax.audit.measure import Audit, audit, auditor, mean_squared_error, summarise
from pgjax.audit.replicates import Blocks, Sums

__all__ = [
    "Audit",
    "BiasTest",
    "Blocks",
    "Comparison",
    "Decomposition",
    "Estimate",
    "Sums",
    "audit",
    "auditor",
    "compare",
    "mean_squared_error",
    "summarise",
    "variance_decomposition",
]
