"""What this machine has for a program to use: devices and memory."""

import ctypes
import os
import sys
from pathlib import Path, PurePath
from typing import Any

import jax

from pgjax import backends

UNTOLD = -1
"""What JAX has for the number of CPU devices until it is told one."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""How glibc numbers them."""

LARGEST = (2**31 - 1, 2**25)
"""Thresholds to ask glibc for, in turn; older ones refuse more than 32 MiB."""

CONTROL_GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controller as in `/proc/self/cgroup` -> folder of its groups; in each of them the files of its
limit and of its use, and the entry of `memory.stat` for cached files. Version 2, then version 1."""

SHARE = 0.8
"""Share of the free memory that programs may take."""


def devices() -> list[Any]:
    """The devices of this process; on a CPU, one for each core, with XLA's flags set for them.

    If JAX has been used already, the devices are those that it has.
    """
    prepare()
    return jax.local_devices()


def prepare() -> None:
    """Makes every core a device and gives XLA its flags, before JAX is used; keeps freed memory.

    What the environment says of these stands. If JAX is in use already, devices and flags of this
    process stay as they are, and only processes that it starts have the flags.
    """
    _keep_memory()
    told = os.environ.get("XLA_FLAGS", "").strip()
    if not told or told.startswith("-"):  # otherwise it names a file of flags
        more = [flag for flag in backends.CPU_FLAGS if flag not in told.split()]
        # In front, because XLA takes the last of an option that is given twice.
        os.environ["XLA_FLAGS"] = " ".join([*more, told]).strip()
    counted = "--xla_force_host_platform_device_count" in told
    if not counted and getattr(jax.config, "jax_num_cpu_devices", None) == UNTOLD:
        try:
            jax.config.update("jax_num_cpu_devices", cores())
        except RuntimeError:
            pass  # JAX is in use already.


def _keep_memory() -> None:
    """Makes the C library keep freed memory, because the next update asks for as much again.

    Otherwise it goes back to the system, which clears every page anew. Only glibc can do so; what
    the environment tells it stands.
    """
    tuned = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Setting one threshold stops glibc from adapting both, so it is both or neither.
    if mallopt is not None and not tuned:
        if any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST):
            mallopt(M_TRIM_THRESHOLD, LARGEST[0])


def take(num: int | None = None) -> list[Any]:
    """As many devices of every process that takes part; None takes all.

    Raises:
      ValueError: there are fewer, or it is no number of devices.
    """
    found = [jax.local_devices(process_index=index) for index in range(jax.process_count())]
    fewest = min(map(len, found))
    if num is not None and not 1 <= num <= fewest:
        raise ValueError(f"devices={num!r} must be from 1 to {fewest}, the devices there are")
    return [device for own in found for device in own[:num]]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes that programs may take, over all devices of this process."""
    known = [device.memory_stats() for device in jax.local_devices()]
    if all(stats and "bytes_limit" in stats for stats in known):
        return int(SHARE * sum(stats["bytes_limit"] for stats in known if stats))
    return int(SHARE * min(_free(), _allowed()))


def describe() -> str:
    """The devices in words."""
    found = jax.local_devices()
    return f"{len(found)} x {found[0].device_kind} ({found[0].platform})"


def parse_bytes(text: str) -> int:
    """A number of bytes from text such as 500M, 8G or 1.5T (powers of 1000).

    Raises:
      ValueError: the text is no number of bytes.
    """
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number = text.strip().upper().removesuffix("B")
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        size = int(float(number.removesuffix(unit)) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"memory_limit={text!r} must be a number of bytes, as in 500M or 8G")
    return size


def format_bytes(size: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # what rounds to less than one of the next unit
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _free() -> float:
    """Free memory of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (free,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return 1024 * int(free)
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _allowed(root: Path = Path("/")) -> float:
    """Memory that the control groups of a container or a batch job leave to this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    left = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in CONTROL_GROUPS.keys() & controllers.split(","):
            folder, *names = CONTROL_GROUPS[controller]
            own = PurePath(path.strip("/"))
            # Whatever limits a group limits those within it.
            groups = (root / "sys/fs/cgroup" / folder / group for group in (own, *own.parents))
            left += [_left(group, *names) for group in groups]
    return min(left)


def _left(group: Path, limit: str, used: str, cached: str) -> float:
    """Memory that a control group has left, where it has a limit."""
    try:
        most = (group / limit).read_text().strip()
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that were read count as used, and are given up when they are needed.
        free = float(held.get(cached, 0)) - float((group / used).read_text())
        return float("inf") if most == "max" else float(most) + free
    except (OSError, ValueError):
        return float("inf")
