"""`python -m pgjax`."""

from pgjax.lab.cli import run

run()
