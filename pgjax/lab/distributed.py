"""One training by many processes: how they find each other, agree, and end together.

Every process runs the same program on the devices of all of them. The leader alone writes and
prints. A process that is alone may call all of these functions; they then wait for nobody.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np

from pgjax import checks
from pgjax.lab import machine
from pgjax.lab.refusals import RefusalError

LOST = 1
"""Exit status of a process that lost the others."""

LOST_LINE = "another process of the job was lost; continue with --resume in all of them"

LOOPBACK_HINT = (
    "on several hosts, the name of each must resolve to an address that the others reach, "
    "not to 127.0.0.1"
)

MESSAGE = 4096
"""Bytes of a message between processes; shorter ones are padded."""

Result = TypeVar("Result")


class Job(NamedTuple):
    """Which processes belong together; all None leaves it to JAX to find out from the cluster."""

    coordinator: str | None = None  # host:port of process 0
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 60  # seconds


@contextlib.contextmanager
def joined(job: Job) -> Iterator[None]:
    """Joins the processes of a job, and leaves them at the end.

    Must come before anything uses JAX. If a process of the job is lost, this one ends, within the
    job's timeout, with one line and the status `LOST`. What JAX's own libraries print is kept
    back, unless they end the process for a reason of their own.

    Raises:
      ValueError: an impossible job, or one that is not found or joined in time.
    """
    _check(job)
    machine.prepare()
    explicit = job.coordinator is not None
    if explicit:
        why = f"process {job.process_id} of {job.num_processes} could not join the others at "
        why += f"{job.coordinator} within {job.timeout} seconds"
    else:
        why = "no job of Slurm, Open MPI, Kubernetes or Cloud TPU was found and joined; "
        why += "without one, give --coordinator HOST:PORT --num-processes N --process-id I"
    last_words = [f"distributed: {why}"]
    _abort_cleanly(_keep_back(), last_words)
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.num_processes,
            job.process_id,
            cluster_detection_method="deactivate" if explicit else None,
            initialization_timeout=job.timeout,
            heartbeat_timeout_seconds=job.timeout,
            shutdown_timeout_seconds=job.timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{last_words[-1]} ({_first_line(error)})") from error
    last_words.append(LOST_LINE)
    _check_devices()
    try:
        yield
    except RefusalError:
        jax.distributed.shutdown()
        raise
    except Exception as error:
        _give_up(error)
    jax.distributed.shutdown()


def is_leader() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def quiet_unless_leader() -> Iterator[None]:
    """Leaves printing and warning to the leader."""
    if is_leader():
        yield
        return
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere):
            yield


def together(function: Callable[[], Result]) -> Result:
    """What `function` returns, on each process, if none of them refuses.

    Raises:
      RefusalError: on every process, with the message of the first one that refuses.
    """
    if jax.process_count() == 1:
        return function()
    result, problem = None, ""
    try:
        result = function()
    except (ValueError, OSError) as error:
        problem = " ".join(str(error).split()) or repr(error)
    for told in _told(problem):
        if told:
            raise RefusalError(told)
    return result  # type: ignore[return-value]


def from_leader(function: Callable[[], Result]) -> Result:
    """What `function` returns to the leader, which alone calls it: something that JSON can hold.

    Raises:
      RefusalError: on every process, if the leader refuses.
    """
    if jax.process_count() == 1:
        return function()
    said = together(lambda: json.dumps(function()) if is_leader() else "")
    return json.loads(_told(said)[0])


def check_same(what: str) -> None:
    """Refuses processes that were started with different settings, all of which `what` holds.

    Raises:
      ValueError: on every process.
    """
    if jax.process_count() > 1 and len(set(_told(hashlib.sha256(what.encode()).hexdigest()))) > 1:
        raise ValueError("distributed: all processes must be started with the same settings")


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def wait_for_all() -> None:
    """Waits until every process has come here, for `WAIT` seconds at most."""
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp

    everyone = set(range(jax.process_count()))
    wait = ocp.multihost.get_barrier_sync_fn(processes=everyone)
    wait(key=f"pgjax-{next(_barriers)}", timeout_ms=10**3 * WAIT)


WAIT = 3600
"""Seconds that processes wait for each other to compile or to write, at most."""

_barriers = itertools.count()


def _check(job: Job) -> None:
    given: dict[str, Any] = {name: x for name, x in job._asdict().items() if name != "timeout"}
    checks.at_least("timeout", job.timeout, 1)
    missing = [name for name, x in given.items() if x is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ValueError(f"{missing[0]}=None must be given: it goes with {', '.join(given)}")
    checks.at_least("num_processes", given["num_processes"], 1)
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ValueError(
            f"process_id={job.process_id!r} must be from 0 to {given['num_processes'] - 1}"
        )
    if not re.fullmatch(r".+:\d{1,5}", str(job.coordinator)):
        raise ValueError(f"coordinator={job.coordinator!r} must be host:port")


def _check_devices() -> None:
    nums = [len(jax.local_devices(process_index=x)) for x in range(jax.process_count())]
    if len(set(nums)) > 1:
        raise ValueError(f"processes must have equally many devices, and have {nums}")


def _told(text: str) -> list[str]:
    """What every process says, by process."""
    from jax.experimental import multihost_utils

    content = text.encode()[:MESSAGE]
    padded = np.frombuffer(content.ljust(MESSAGE, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def _keep_back() -> Any:
    """Moves what is written past Python into a file of its own, which is returned."""
    said = tempfile.TemporaryFile()
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        stream.flush()
        if stream.fileno() == number:
            setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1))
        os.dup2(said.fileno(), number)
    return said


def _abort_cleanly(said: Any, last_words: list[str]) -> None:
    """Prints the last of `last_words` if JAX's libraries abort this process because of others."""
    screen = os.dup(sys.stderr.fileno())

    # Called by a thread of theirs: all that Python can still do is to write and to leave.
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        text = os.pread(said.fileno(), 2**20, 0)
        if b"oordination" not in text:
            os.write(screen, text)
        os.write(screen, f"pgjax: error: {last_words[-1]}\n".encode())
        os._exit(LOST)

    _kept.append(aborted)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), aborted)


_kept: list[Any] = []
"""What C calls must not be garbage-collected."""


def _give_up(error: Exception) -> NoReturn:
    """Ends this process for an error of its own; the others then find that they have lost it."""
    if isinstance(error, jax.errors.JaxRuntimeError) or re.match(r"[A-Z_]+: ", str(error)):
        print(f"pgjax: error: {LOST_LINE} ({_why_lost(error)})", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(LOST)


def _why_lost(error: Exception) -> str:
    """What JAX says, and what to do where CPUs looked for each other on the wrong host."""
    hint = f"; {LOOPBACK_HINT}" if re.search(r"remote=\[127\.", str(error)) else ""
    return _first_line(error) + hint


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
