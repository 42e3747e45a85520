"""Messages between the supervisor and its children. Descriptors are sent along with some of them."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from weave.protocol.metrics import Count, Metrics

# A child's words end up in the supervisor's log lines, in the audit and in status, so they come from closed sets.
Layer: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A(landlock-([0-9]{1,3}|recording)|no-capabilities|seccomp|seccomp-recording|no-new-privs)\Z"),
]
Layers: TypeAlias = Annotated[tuple[Layer, ...], Meta(max_length=8)]
StopReason: TypeAlias = Literal[
    "unload",
    "idle",
    "the config has changed",
    "another model is wanted",
    "another user is served",
    "the model could not be loaded",
    "the job took too long",
    "the worker broke the protocol",
    "the worker exited",
    "the device was tried",
]

# The broker's exit status when, attached, it has dropped its one client. sysexits.h: EX_PROTOCOL
CLIENT_DROPPED_STATUS = 76


class _Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    pass


class LockedDown(_Message, frozen=True, kw_only=True, tag="locked_down"):
    """A broker or worker has called lock_down(). Carries its seccomp listener, through which the supervisor sees every
    refused system call. `layers` is what the child claims is in force; the supervisor relies only on what it then reads
    in /proc itself."""

    layers: Layers


# Broker and supervisor


class StartWorker(_Message, frozen=True, kw_only=True, tag="start_worker"):
    """The broker needs a worker for `model` on `device`, which has none. Answered by WorkerStarted or WorkerEnded with
    the same `worker`."""

    worker: Count
    model: str
    device: str


class StopWorker(_Message, frozen=True, kw_only=True, tag="stop_worker"):
    """End that worker with SIGKILL, as it may hang in native code. Answered by WorkerEnded."""

    worker: Count
    reason: StopReason


class Alive(_Message, frozen=True, kw_only=True, tag="alive"):
    """The answer to Ping, with the broker's counters. `devices_failed`: how many devices are out of service."""

    metrics: Metrics
    connections: Count
    queue_length: Count
    devices_failed: Count = 0


FromBroker: TypeAlias = LockedDown | StartWorker | StopWorker | Alive


class Attested(_Message, frozen=True, kw_only=True, tag="attested"):
    """The supervisor has verified the broker's sandbox: the broker may serve. The layers of both are for status."""

    supervisor: tuple[str, ...]
    broker: tuple[str, ...]


class Ping(_Message, frozen=True, kw_only=True, tag="ping"):
    """A broker that does not answer with Alive in time is killed. `libraries_lack` is for status."""

    libraries_lack: bool = False


class NewSocket(_Message, frozen=True, kw_only=True, tag="new_socket"):
    """Carries a listening socket that replaces the one whose path was removed."""


class WorkerStarted(_Message, frozen=True, kw_only=True, tag="worker_started"):
    """The worker is attested. Carries its channel."""

    worker: int
    layers: tuple[str, ...]


class WorkerEnded(_Message, frozen=True, kw_only=True, tag="worker_ended"):
    """The worker exited, and all of its memory is free. `cause` is for the log and for status. `libraries_lack`: it
    could not be started; see LibrariesLack. `device_failed`: the worker had read nothing from a model or a client."""

    worker: int
    cause: str
    libraries_lack: bool = False
    device_failed: bool = False


class NewConfig(_Message, frozen=True, kw_only=True, tag="new_config"):
    """Carries a sealed memfd with the receiver's part of the new config (SIGHUP)."""


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Send every client the error shutting_down, then exit."""


ToBroker: TypeAlias = Attested | Ping | NewSocket | WorkerStarted | WorkerEnded | NewConfig | Stop


# Zygote and supervisor


class ForkWorker(_Message, frozen=True, kw_only=True, tag="fork_worker"):
    """Fork a worker for `model` on `device`. Carries two descriptors: the worker's channel to the broker and its
    channel to the supervisor. Answered by Forked, and by Exited when the worker exits. `record`: the worker sends
    Recording before it starts its device. That alone allows no call: the supervisor's answer does, and only in record
    mode."""

    worker: int
    model: str
    device: str
    record: bool


ToZygote: TypeAlias = ForkWorker | NewConfig


class Imported(_Message, frozen=True, kw_only=True, tag="imported"):
    """torch and diffusers are imported: workers can be forked."""


class LibrariesLack(_Message, frozen=True, kw_only=True, tag="libraries_lack"):
    """Sent instead of Imported: torch or another library lacks something that the daemon needs; the zygote's own log
    line says what. The zygote forks no worker, and exits when its channel closes."""


class Forked(_Message, frozen=True, kw_only=True, tag="forked"):
    """The worker runs. Carries its pidfd."""

    worker: int
    pid: int


class Exited(_Message, frozen=True, kw_only=True, tag="exited"):
    """The worker is reaped. `status` is its exit status, or minus the number of the signal that killed it."""

    worker: int
    pid: int
    status: int


FromZygote: TypeAlias = Imported | LibrariesLack | Forked | Exited


# Worker and supervisor: a worker sends it nothing else.


class Recording(_Message, frozen=True, kw_only=True, tag="recording"):
    """In record mode a worker sends this before it starts its device. Carries its seccomp listener; LockedDown then
    carries none."""


class DeviceFailed(_Message, frozen=True, kw_only=True, tag="device_failed"):
    """Sent instead of LockedDown: the device did not start; the worker's own log line says why. `gpus`: how many torch
    sees. The worker then exits."""

    gpus: Annotated[int, Meta(ge=0, le=1024)]


FromWorkerStart: TypeAlias = LockedDown | DeviceFailed
FromRecordedStart: TypeAlias = Recording | LockedDown | DeviceFailed
