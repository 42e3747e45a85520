"""What `status` shows a user: all of its own data, and of others only what affects its waiting time."""

from msgspec import UNSET, Struct

from weave import __version__
from weave.broker.schedule.snapshot import ScheduleSnapshot, SlotSnapshot, WorkerState
from weave.config.child_configs import BrokerConfig
from weave.protocol.client_messages import JobStatus, StatusReport
from weave.protocol.features import features
from weave.protocol.metrics import Metrics


class DaemonSnapshot(Struct, frozen=True, kw_only=True):
    """The daemon at one moment. `connections` has the UID of each open one; `sandbox` the layers of the broker and the
    supervisor."""

    config: BrokerConfig
    uptime: float
    sandbox: dict[str, tuple[str, ...]]
    schedule: ScheduleSnapshot
    connections: tuple[int, ...]
    metrics: Metrics


def report_to(uid: int, daemon: DaemonSnapshot) -> StatusReport:
    """In system mode root sees everything. Other users see only whether another user's worker is busy, and 0 for the
    daemon's totals."""
    everything = daemon.config.mode != "system" or uid == 0
    schedule = daemon.schedule
    slot = schedule.slots[0]  # StatusReport describes one worker
    worker = slot.worker if slot.worker is not None and (everything or slot.worker.serves.includes(uid)) else None
    memory = worker.memory if worker else None
    metrics = daemon.metrics if everything else Metrics()
    return StatusReport(
        version=__version__,
        features=features(deliver_fds=daemon.config.deliver_fds),
        uptime=daemon.uptime,
        mode=daemon.config.mode,
        worker=slot.state if everything else _state_for(uid, slot),
        model=worker.model if worker else None,
        device=worker.device if worker else None,
        dtype=worker.dtype if worker else None,
        memory_used=memory.used if memory else None,
        memory_total=memory.total if memory else None,
        queue_length=schedule.waiting,
        queue_limit=daemon.config.limits.queue,
        connections=len(daemon.connections) if everything else daemon.connections.count(uid),
        jobs=tuple(
            JobStatus(job=job.user_number, model=job.model, state=job.state, position=job.position)
            for job in schedule.jobs
            if job.uid == uid
        ),
        sandbox=daemon.sandbox | {"worker": worker.layers if worker else ()},
        worker_restarts=metrics.workers_lost,
        images_made=metrics.images,
        metrics=metrics,
        libraries_lack=schedule.libraries_lack or UNSET,
        plan=(worker.plan if worker else None) or UNSET,
    )


def _state_for(uid: int, slot: SlotSnapshot) -> WorkerState:
    """The full state if the slot works or waits for this user, else only whether it is busy."""
    if slot.runs_for is not None:
        return slot.state if slot.runs_for == uid else "running"
    return slot.state if slot.worker is not None and slot.worker.serves.includes(uid) else "none"
