"""What the devices are doing and who waits for them, as plain values: status is made from these alone."""

from typing import Literal, TypeAlias

from msgspec import Struct

from weave.broker.admission.principal import Served
from weave.protocol.worker_messages import Memory

WorkerState: TypeAlias = Literal["none", "starting", "loading", "idle", "running", "stopping"]
JobState: TypeAlias = Literal["queued", "loading", "running"]


class WorkerSnapshot(Struct, frozen=True, kw_only=True):
    """A worker. device, dtype and memory are None until its model is loaded; `layers` are what holds it."""

    model: str
    serves: Served
    device: str | None
    dtype: str | None
    memory: Memory | None
    layers: tuple[str, ...]


class SlotSnapshot(Struct, frozen=True, kw_only=True):
    """One device. `runs_for` is the UID whose job runs on it."""

    state: WorkerState
    runs_for: int | None
    worker: WorkerSnapshot | None


class JobSnapshot(Struct, frozen=True, kw_only=True):
    """One job, by the number that its user knows it by; `position` is the number of jobs before it."""

    uid: int
    user_number: int
    model: str
    state: JobState
    position: int


class ScheduleSnapshot(Struct, frozen=True, kw_only=True):
    """`jobs` are those that run, then those that wait, as they are expected to start; `waiting` counts the latter.
    `libraries_lack`: no worker can be started."""

    slots: tuple[SlotSnapshot, ...]
    jobs: tuple[JobSnapshot, ...]
    waiting: int
    libraries_lack: bool = False
