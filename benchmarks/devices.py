"""All devices; to be imported before gymnax, whose import uses JAX, to make each core a device."""

from pgjax.lab import machine

DEVICES = machine.devices()
ACCELERATED = DEVICES[0].platform != "cpu"
"""Whether they are GPUs or TPUs, which take far larger batches."""
