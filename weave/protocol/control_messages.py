"""What the supervisor says to its children and they to it. Descriptors travel beside the messages."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from weave.protocol.metrics import Count, Metrics

# A child's words end up in the supervisor's own lines, in the audit and in status: so they come from closed sets.
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
    "the worker is gone",
]

# The broker's exit status when, attached, it has dropped its one client. sysexits.h: EX_PROTOCOL
CLIENT_DROPPED_STATUS = 76


class _Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    pass


class LockedDown(_Message, frozen=True, kw_only=True, tag="locked_down"):
    """A broker or worker is past lock_down(). Comes with its seccomp listener, through which the supervisor
    hears of every refused system call. `layers` is what the child says is in force; what counts is what the
    supervisor then reads in /proc itself."""

    layers: Layers


# Broker and supervisor


class StartWorker(_Message, frozen=True, kw_only=True, tag="start_worker"):
    """The broker needs a worker for `model`. Answered by WorkerStarted or WorkerEnded with the same `worker`."""

    worker: Count
    model: str


class StopWorker(_Message, frozen=True, kw_only=True, tag="stop_worker"):
    """End that worker: SIGKILL, so that a worker that hangs in native code goes too. Answered by WorkerEnded."""

    worker: Count
    reason: StopReason


class Alive(_Message, frozen=True, kw_only=True, tag="alive"):
    """The answer to Ping, and what there is to count."""

    metrics: Metrics
    connections: Count
    queue_length: Count


FromBroker: TypeAlias = LockedDown | StartWorker | StopWorker | Alive


class Attested(_Message, frozen=True, kw_only=True, tag="attested"):
    """The supervisor has seen for itself that the broker is locked in: it may serve. What each of the two is
    held by is for status."""

    supervisor: tuple[str, ...]
    broker: tuple[str, ...]


class Ping(_Message, frozen=True, kw_only=True, tag="ping"):
    """A broker that does not answer with Alive hangs, and is killed. `libraries_lack` is for status."""

    libraries_lack: bool = False


class NewSocket(_Message, frozen=True, kw_only=True, tag="new_socket"):
    """A socket to accept clients on comes along, in the place of the one whose path somebody removed."""


class WorkerStarted(_Message, frozen=True, kw_only=True, tag="worker_started"):
    """The worker is attested. Its channel comes along."""

    worker: int
    layers: tuple[str, ...]


class WorkerEnded(_Message, frozen=True, kw_only=True, tag="worker_ended"):
    """The worker is gone, and all of its memory with it. `cause` is for the log and for status. `libraries_lack`: it
    could not be started, see LibrariesLack."""

    worker: int
    cause: str
    libraries_lack: bool = False


class NewConfig(_Message, frozen=True, kw_only=True, tag="new_config"):
    """A sealed memfd with the receiver's own part of the new config comes along (SIGHUP)."""


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Tell the clients that the daemon is stopping, then exit."""


ToBroker: TypeAlias = Attested | Ping | NewSocket | WorkerStarted | WorkerEnded | NewConfig | Stop


# Zygote and supervisor


class ForkWorker(_Message, frozen=True, kw_only=True, tag="fork_worker"):
    """Fork a worker for `model`. Two descriptors come along: its channel to the broker, its channel to the
    supervisor. Answered by Forked, and by Exited when it is gone. `record`: it sends Recording before its device's
    start. That alone lets no call through: the supervisor's answer does, and only in record mode."""

    worker: int
    model: str
    record: bool


ToZygote: TypeAlias = ForkWorker | NewConfig


class Imported(_Message, frozen=True, kw_only=True, tag="imported"):
    """torch and diffusers are imported: workers can be forked."""


class LibrariesLack(_Message, frozen=True, kw_only=True, tag="libraries_lack"):
    """Comes instead of Imported: torch, or another library, lacks what the daemon needs of it; the zygote's own line in
    the log says what. It forks nothing, and ends with its channel."""


class Forked(_Message, frozen=True, kw_only=True, tag="forked"):
    """The worker runs; its pidfd comes along."""

    worker: int
    pid: int


class Exited(_Message, frozen=True, kw_only=True, tag="exited"):
    """The worker is reaped. `status` is an exit status, or minus the number of the signal that ended it."""

    worker: int
    pid: int
    status: int


FromZygote: TypeAlias = Imported | LibrariesLack | Forked | Exited


# Worker and supervisor: this is all that the worker ever says to it.


class Recording(_Message, frozen=True, kw_only=True, tag="recording"):
    """In record mode a worker sends this before its device's start, with its seccomp listener; LockedDown then comes
    without one."""


FromWorkerStart: TypeAlias = LockedDown
FromRecordedStart: TypeAlias = Recording | LockedDown
