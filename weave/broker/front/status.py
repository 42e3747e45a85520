"""What `status` shows a user: all of its own data, and of others only what affects its waiting time."""

from msgspec import UNSET, Struct, structs

from weave import __version__
from weave.broker.schedule.snapshot import ScheduleSnapshot, SlotSnapshot, WorkerState
from weave.config.child_configs import BrokerConfig
from weave.protocol.client_messages import DeviceStatus, JobStatus, StatusReport
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
    slots = [slot if everything else _as_seen_by(uid, slot) for slot in schedule.slots]
    slot = next((slot for slot in slots if slot.worker is not None), slots[0])  # the older fields describe this one
    worker = slot.worker
    memory = worker.memory if worker else None
    metrics = daemon.metrics if everything else Metrics()
    return StatusReport(
        version=__version__,
        features=features(deliver_fds=daemon.config.deliver_fds),
        uptime=daemon.uptime,
        mode=daemon.config.mode,
        worker=slot.state,
        model=worker.model if worker else None,
        device=_device_of(slot) if worker and worker.device else None,
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
        devices=tuple(map(_device_status, slots)),
        libraries_lack=schedule.libraries_lack or UNSET,
        plan=(worker.plan if worker else None) or UNSET,
    )


def _device_status(slot: SlotSnapshot) -> DeviceStatus:
    worker = slot.worker
    memory = worker.memory if worker else None
    failed = slot.problem is not None and slot.state == "none"
    return DeviceStatus(
        device=_device_of(slot),
        state="failed" if failed else slot.state,
        model=worker.model if worker else None,
        dtype=worker.dtype if worker else None,
        memory_used=memory.used if memory else None,
        memory_total=memory.total if memory else None,
        problem=(slot.problem or None) if failed else None,
        retry_seconds=slot.retry_seconds if failed else None,
    )


def _device_of(slot: SlotSnapshot) -> str:
    """The slot's name in the config, or for auto and cuda the device that the worker reports."""
    left_open = slot.device in ("auto", "cuda")
    return (slot.worker.device if left_open and slot.worker else None) or slot.device


def _as_seen_by(uid: int, slot: SlotSnapshot) -> SlotSnapshot:
    """The slot without another user's activity."""
    worker = slot.worker if slot.worker is not None and slot.worker.serves.includes(uid) else None
    problem = "" if slot.problem is not None else None
    return structs.replace(slot, state=_state_for(uid, slot), worker=worker, problem=problem)


def _state_for(uid: int, slot: SlotSnapshot) -> WorkerState:
    """The full state if the slot works or waits for this user, else only whether it is busy."""
    if slot.runs_for is not None:
        return slot.state if slot.runs_for == uid else "running"
    return slot.state if slot.worker is not None and slot.worker.serves.includes(uid) else "none"
