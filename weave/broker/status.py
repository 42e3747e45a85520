"""What status tells one user: all of its own, and of the others what it needs to know how long it will wait."""

from typing import NamedTuple

from msgspec import UNSET

from weave import __version__
from weave.broker.gpu import Gpu
from weave.broker.slot import WorkerState
from weave.config.parts import BrokerConfig
from weave.protocol.client_messages import JobStatus, StatusReport
from weave.protocol.features import features
from weave.protocol.metrics import Metrics


class Standing(NamedTuple):
    """What there is to tell. `connections` are the UIDs of those that are open; `sandbox` holds the broker and the
    supervisor."""

    config: BrokerConfig
    uptime: float
    sandbox: dict[str, tuple[str, ...]]
    gpu: Gpu
    connections: list[int]
    metrics: Metrics


def report_to(uid: int, daemon: Standing) -> StatusReport:
    """In system mode root is told everything. Others are told of a worker that serves another user only whether it is
    busy, and of the daemon's sums nothing: 0."""
    everything = daemon.config.mode != "system" or uid == 0
    gpu = daemon.gpu
    worker = gpu.slot.worker if everything else gpu.worker_for(uid)
    memory = worker.memory if worker else None
    metrics = daemon.metrics if everything else Metrics()
    return StatusReport(
        version=__version__,
        features=features(deliver_fds=daemon.config.deliver_fds),
        uptime=daemon.uptime,
        mode=daemon.config.mode,
        worker=_state(uid, gpu, everything=everything),
        model=worker.model if worker else None,
        device=worker.device if worker else None,
        dtype=worker.dtype if worker else None,
        memory_used=memory.used if memory else None,
        memory_total=memory.total if memory else None,
        queue_length=len(gpu.queue),
        queue_limit=daemon.config.limits.queue,
        connections=len(daemon.connections) if everything else daemon.connections.count(uid),
        jobs=tuple(
            JobStatus(job=job.user_number, model=job.model.id, state=job.state, position=max(job.position, 0))
            for job in gpu.jobs()
            if job.uid == uid and job.state != "over"
        ),
        sandbox=daemon.sandbox | {"worker": gpu.slot.layers if worker else ()},
        worker_restarts=metrics.workers_lost,
        images_made=metrics.images,
        metrics=metrics,
        libraries_lack=gpu.slot.libraries_lack or UNSET,
    )


def _state(uid: int, gpu: Gpu, *, everything: bool) -> WorkerState:
    """The worker of nobody in particular, or of this user, as it is. Of another user's only whether it is busy."""
    is_anothers = gpu.running.uid != uid if gpu.running is not None else gpu.worker_for(uid) is None
    if everything or not is_anothers:
        return gpu.slot.state
    return "running" if gpu.running is not None else "none"
