"""The config file as frozen structs: one a table, each field with a default that suits one desktop."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=86400)]
Bound: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]


class ConfigError(Exception):
    """The config cannot be used; the message names the file, the field and what to do, and is for the owner."""


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class DeviceConfig(_Table, frozen=True, kw_only=True):
    """Where models run. `threads` is for the CPU; 0 means one a core."""

    device: Annotated[str, Meta(pattern=r"\A(auto|cpu|cuda(:[0-9]{1,4})?)\Z")] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0


class Limits(_Table, frozen=True, kw_only=True):
    """Per UID where its name or its comment says so: a client could open many connections."""

    # "Per UID" is per principal (broker/admission/principal.py). In system mode the last quarter of connections and of
    # queue is for the first of a known UID, so that no crowd locks anybody out.
    connections: Count = 512
    connections_per_uid: Count = 64
    queue: Count = 256
    queue_per_uid: Count = 32
    # A token bucket a UID: `burst_per_uid` generate, load_model and unload requests at once, then this many a second.
    requests_per_second: Annotated[float, Meta(gt=0, le=10_000)] = 10.0
    burst_per_uid: Count = 40
    # From a frame's first byte to its last, so that a client cannot hold a half frame open for ever.
    frame_seconds: Seconds = 10.0
    # What all clients of a UID have not read yet; each image is also a descriptor that the broker holds open. Beyond
    # the totals of all clients, whoever has left the most unread is dropped.
    outgoing_bytes: Annotated[int, Meta(ge=1024 * 1024, le=2**34)] = 256 * 1024 * 1024
    outgoing_images: Count = 256
    outgoing_bytes_total: Annotated[int, Meta(ge=1024 * 1024, le=2**36)] = 1024 * 1024 * 1024
    outgoing_images_total: Count = 1024
    # Images that went to clients of a UID as descriptors since the daemon's start, and so may still be held in memory.
    # Further ones are sent inline.
    delivered_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 1024 * 1024 * 1024
    # More than others' longest jobs can take, or they would end one that waits: docs/architecture.md, "Fair turns".
    queued_seconds: Seconds = 7200.0
    start_seconds: Seconds = 60.0
    load_seconds: Seconds = 600.0
    job_seconds: Seconds = 600.0
    # The worker ends when it had nothing to do for this long, and all of its memory comes back. Not in attached mode.
    idle_unload_seconds: Seconds = 300.0
    # From a version 1 request's arrival to its reply, queue and loading included. Those clients give up after 120 s:
    # what they still wait for is done, and what cannot be done in time they are told.
    v1_seconds: Seconds = 118.0


class SystemConfig(_Table, frozen=True, kw_only=True):
    """System mode: who may connect beside root, and who the daemon is when root starts it. All are names of
    users and groups, or their numbers as text."""

    allowed_users: tuple[str, ...] = ()
    allowed_groups: tuple[str, ...] = ("weave",)
    # The mode keeps out whoever is not in the group before any check of ours; 0666 leaves it to the check alone,
    # for allowed_users that are not in the group.
    socket_group: str = "weave"
    socket_mode: Literal["0660", "0666"] = "0660"
    broker_user: str = "weave"
    worker_user: str = "weave-gpu"
    # Images as descriptors (deliver = "fd") for clients that ask for them, up to limits.delivered_bytes each: memory
    # that counts as the daemon's until the client lets go. Else they get them inline.
    deliver_fds: bool = False
    # A worker serves one UID, and the next UID gets a new one: a worker that one user's job took over never sees
    # another user's prompt.
    isolate_users: bool = True
    # Serve only where AppArmor or SELinux holds each process in its own profile or domain (weave/sandbox/mac.py).
    require_mac: bool = False


class AuditConfig(_Table, frozen=True, kw_only=True):
    """`file` gets the audit's lines beside standard error; SIGHUP opens it anew. `prompts` puts what is asked for
    into the log, which is nobody's business otherwise."""

    file: Annotated[str, Meta(pattern="^/")] | None = None
    prompts: bool = False


class MetricsConfig(_Table, frozen=True, kw_only=True):
    """`file`, if any, is written anew every few seconds for node_exporter's textfile collector (*.prom)."""

    file: Annotated[str, Meta(pattern=r"^/.*\.prom$")] | None = None


class BoundsOverride(_Table, frozen=True, kw_only=True):
    """Bounds of one model that differ from its family's, as tables such as width = { min = 64, max = 512 }."""

    width: dict[str, Bound] = {}
    height: dict[str, Bound] = {}
    steps: dict[str, Bound] = {}
    cfg_scale: dict[str, float] = {}
    images: dict[str, Bound] = {}
    pixels: dict[str, Bound] = {}
    # A whole message has 64 KiB.
    prompt_bytes: dict[str, Annotated[int, Meta(ge=0, le=65536)]] = {}
    prompt_characters: dict[str, Annotated[int, Meta(ge=0, le=65536)]] = {}


class DefaultsOverride(_Table, frozen=True, kw_only=True):
    """Parameters of one model that a client may leave out, where they differ from its family's."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    scheduler: str | None = None


class ModelConfig(_Table, frozen=True, kw_only=True):
    """One model: a folder in diffusers layout, or one .safetensors file with a `layout` folder beside it.

    `sha256` pins files, by their path inside the folder, to a digest in hex. `v1_id` is the model's number in
    version 1 of the protocol.
    """

    path: str
    family: str
    title: str = ""
    layout: str | None = None
    v1_id: Annotated[int, Meta(ge=1, le=2**32 - 1)] | None = None
    bounds: BoundsOverride = BoundsOverride()
    defaults: DefaultsOverride = DefaultsOverride()
    sha256: dict[str, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]] = {}


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Without any [models] there is the demo model (weave/config/load.py)."""

    models: dict[str, ModelConfig] = {}
    default_model: str | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)
    limits: Limits = field(default_factory=Limits)
    system: SystemConfig = field(default_factory=SystemConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
