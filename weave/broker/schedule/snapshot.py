"""The devices and jobs at one moment, as plain values: all that `status` is built from."""

from typing import Literal, TypeAlias

from msgspec import Struct

from weave.broker.admission.principal import Served
from weave.protocol.worker_messages import Memory, PlanName

WorkerState: TypeAlias = Literal["none", "starting", "loading", "idle", "running", "stopping"]
JobState: TypeAlias = Literal["queued", "loading", "running"]


class WorkerSnapshot(Struct, frozen=True, kw_only=True):
    """A worker. device, dtype and memory are None until its model is loaded, plan until it is chosen; `layers` are
    those of its sandbox."""

    model: str
    serves: Served
    device: str | None
    dtype: str | None
    memory: Memory | None
    plan: PlanName | None
    layers: tuple[str, ...]


class SlotSnapshot(Struct, frozen=True, kw_only=True):
    """One device, by its name in the config. `runs_for` is the UID whose job runs on it. `problem` says why it is out
    of service, for another `retry_seconds`; both are None while it works."""

    device: str
    problem: str | None
    retry_seconds: float | None
    state: WorkerState
    runs_for: int | None
    worker: WorkerSnapshot | None


class JobSnapshot(Struct, frozen=True, kw_only=True):
    """One job, under the number that its user sees; `position` is the number of jobs before it."""

    uid: int
    user_number: int
    model: str
    state: JobState
    position: int


class ScheduleSnapshot(Struct, frozen=True, kw_only=True):
    """`jobs`: the running jobs, then the queued ones in the order in which they are expected to start. `waiting` counts
    the queued ones. `libraries_lack`: no worker can start."""

    slots: tuple[SlotSnapshot, ...]
    jobs: tuple[JobSnapshot, ...]
    waiting: int
    libraries_lack: bool = False
