"""All devices; imported before gymnax, which uses JAX when it is imported, makes each core one."""

from pgjax.lab import machine

DEVICES = machine.devices()
ACCELERATED = DEVICES[0].platform != "cpu"
"""Whether they are GPUs or TPUs, which take far larger batches."""
