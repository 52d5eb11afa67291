"""The chunks of a sweep as tasks of a Ray cluster: carried out by its workers, kept here.

A chunk that is lost with its worker or its node is carried out again elsewhere. A result is on disk
before it counts.
"""

import collections
import importlib
from typing import Any

from pgjax.lab.refusals import RefusalError
from pgjax.lab.sweep import chunk as chunks
from pgjax.lab.sweep import ray_worker
from pgjax.lab.sweep.chunk import Result
from pgjax.lab.sweep.plan import Chunk
from pgjax.lab.sweep.ray_cluster import Cluster
from pgjax.lab.sweep.run import Job, Launcher

RETRIES = 20
"""How often a chunk is begun again after its worker or its node was lost.

Often, as nodes may come and go; not for ever, as a chunk may be what brings its workers down.
"""

MOST_SUBMITTED = 1000
"""Tasks that Ray knows of at once."""

ASKED = 0.5
"""Seconds between questions whether to stop."""

GRACE = 5.0
"""Seconds that cancelled tasks have to clean up behind themselves."""


def launcher(cluster: Cluster) -> Launcher:
    """Carries out chunks as tasks of a cluster that is open.

    The launcher raises `RuntimeError` for a task that fails, with what it said, and for one that is
    lost too often, and `RefusalError` for one that its worker refuses; what is finished is kept.
    """
    ray = importlib.import_module("ray")
    told = ray_worker.given(cluster.need)
    # By default Ray ends a worker with a GPU after a task; kept, it has its program ready.
    task = ray.remote(max_calls=0)(ray_worker.carry_out).options(
        num_cpus=cluster.need.cpus, num_gpus=cluster.need.gpus, max_retries=RETRIES
    )

    def launch(job: Job) -> bool:
        waiting, pending = collections.deque(job.todo), {}

        def submit(chunk: Chunk) -> None:
            runs, width = job.plan.configs(chunk.runs), job.plan.programs[chunk.group].width
            pending[task.remote(runs, chunk.runs, width, told)] = chunk

        def collect(num: int, timeout: float) -> None:
            ready, _ = ray.wait(list(pending), num_returns=num, timeout=timeout)
            for reference in ready:
                _keep(job, pending.pop(reference), _result(ray, reference))

        try:
            while waiting or pending:
                if job.stopped():
                    if pending:
                        collect(len(pending), 0)
                    return not (waiting or pending)
                while waiting and len(pending) < MOST_SUBMITTED:
                    submit(waiting.popleft())
                collect(1, ASKED)
            return True
        finally:
            if pending:
                _cancel(ray, list(pending))

    return launch


def _keep(job: Job, chunk: Chunk, result: Result) -> None:
    chunks.write(job.where(chunk), result)
    job.observe(chunk, 0, result.curves)
    job.finish(result)


def _result(ray: Any, reference: Any) -> Result:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RefusalError):
            raise RefusalError(str(cause)) from error
        raise RuntimeError(f"a worker failed with {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a chunk could not be carried out: {error}") from error


def _cancel(ray: Any, references: list[Any]) -> None:
    """Ends tasks: asks them first, so that they leave nothing behind."""
    # Ray fails over a task that is cancelled as it ends.
    _, left = ray.wait(references, num_returns=len(references), timeout=0)
    for reference in left:
        ray.cancel(reference)
    if left:
        _, left = ray.wait(left, num_returns=len(left), timeout=GRACE)
    for reference in left:
        ray.cancel(reference, force=True)
