"""Peak memory of one update against rows, horizon and depth, each in a fresh process.

Measured are the trajectory itself, what XLA says the compiled program needs for its temporaries,
the trajectory among them, and the most memory that the process used during the update, beyond what
it used before. What a batch needs beyond its trajectory should not grow with the network's depth.

    python -m benchmarks.memory               # all of it
    python -m benchmarks.memory --smoke       # tiny, to see that it runs; writes nothing
"""

import re
import resource
import sys
from pathlib import Path

from benchmarks import kept, processes
from benchmarks.training import Setting

AXES = {
    "num_rows": [256, 1024, 4096, 16384, 65536],
    "horizon": [32, 128, 512, 2048],
    "depth": [1, 2, 4, 8],
}
LARGE = [Setting(num_rows=2**20, horizon=8), Setting(num_rows=8, horizon=2**20)]
ROUNDS = 3


def settings(smoke: bool) -> list[Setting]:
    """Every setting once."""
    if smoke:
        return [Setting(num_rows=4, horizon=8, width=8)]
    bases = [Setting(), Setting(rows="segments", learner="actor-critic")]
    along = [
        base._replace(**{axis: point})
        for base in bases
        for axis, points in AXES.items()
        for point in points
    ]
    return list(dict.fromkeys(along + LARGE))


def measure(smoke: bool) -> list[kept.Row]:
    """Bytes of every setting."""
    rows = []
    for setting in settings(smoke):
        print(setting, flush=True)
        found = [processes.call(update, *setting) for _ in range(1 if smoke else ROUNDS)]
        trajectory, temporary, peaks = zip(*found, strict=True)
        measured = {
            "trajectory_bytes": trajectory[:1],
            "temporary_bytes": temporary[:1],
            "peak_bytes": peaks,
            "peak_over_trajectory": [peak / trajectory[0] for peak in peaks],
        }
        rows.append(kept.row(setting._asdict(), measured))
    return rows


def update(*setting: str | int | bool) -> tuple[int, int, int]:
    """Bytes of a trajectory, of temporaries on all devices, and of the peak beyond before."""
    import jax

    from benchmarks import training

    what = Setting(*setting)  # pyright: ignore[reportArgumentType]
    mesh = training.mesh(what.num_rows)
    program = training.step(what, mesh).compile()
    temporary = training.temporary_bytes(program.compiled) * (mesh.size if mesh else 1)
    before = _restart_peak()
    jax.block_until_ready(program())
    return training.trajectory_bytes(what), temporary, _peak() - before


def _restart_peak() -> int:
    """Bytes in use now; if the system can do so, the peak is counted anew from here on."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return sum(_stat(device, "bytes_in_use") for device in jax.local_devices())
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> int:
    """Bytes at the peak: of the devices if they report it, otherwise of the process."""
    import jax

    if jax.local_devices()[0].memory_stats():
        return sum(_stat(device, "peak_bytes_in_use") for device in jax.local_devices())
    try:
        return _status("VmHWM")
    except OSError:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def _stat(device, name: str) -> int:
    return (device.memory_stats() or {})[name]


def _status(name: str) -> int:
    """A number of bytes from what Linux says of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status does not tell {name}")
    return 1024 * int(found[1])


if __name__ == "__main__":
    kept.run("memory", measure, sys.argv[1:])
