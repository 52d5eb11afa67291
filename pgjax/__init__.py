"""pgjax: the score-function gradient laboratory for JAX."""

__version__ = "0.1.0"
