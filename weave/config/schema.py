"""The config file as frozen structs, one for each table. The defaults suit a desktop with one user."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from weave.protocol.parameters import StepCache

Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=86400)]
Bound: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]
# How quantised weights are held: quantised, as in the file (`kept`), or converted to the dtype when the model is loaded
# (`full`); the images are the same. `fp8_matmul` is as `kept`, but GPUs that can multiply in fp8 do so, and the images
# differ slightly.
Form: TypeAlias = Literal["kept", "full", "fp8_matmul"]
Sha256: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ConfigError(Exception):
    """The config cannot be used. The message is for its owner: the file, the field, and how to fix it."""


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class DeviceConfig(_Table, frozen=True, kw_only=True):
    """Where models run: on `device`, or on each of `devices` with its own worker (config/devices.py); on auto if
    neither is set. `threads` is for each worker on the CPU; 0 means one per core, divided between these workers.
    `memory_bytes` is how much of each device's memory the daemon may use; 0 means all that is free."""

    device: Annotated[str, Meta(pattern=r"\A(auto|cpu|cuda(:[0-9]{1,4})?)\Z")] | None = None
    devices: (
        Annotated[
            tuple[Annotated[str, Meta(pattern=r"\A(cpu|cuda:(0|[1-9][0-9]{0,3}))\Z")], ...],
            Meta(min_length=1, max_length=16),
        ]
        | None
    ) = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0


class Limits(_Table, frozen=True, kw_only=True):
    """Limits are per UID where the name or comment says so, not per connection: a client can open many."""

    # "Per UID" means per principal (broker/admission/principal.py). In system mode the last quarter of `connections`
    # and `queue` is reserved for the first connection and the first job of a known UID.
    connections: Count = 512
    connections_per_uid: Count = 64
    queue: Count = 256
    queue_per_uid: Count = 32
    # A token bucket for each UID: a burst of `burst_per_uid` generate, load_model and unload requests, then this rate.
    requests_per_second: Annotated[float, Meta(gt=0, le=10_000)] = 10.0
    burst_per_uid: Count = 40
    # From a frame's first byte to its last, so that a client cannot keep an incomplete frame open.
    frame_seconds: Seconds = 10.0
    # What a UID's clients have not read yet; each image is also a descriptor that the broker keeps open. When the
    # totals are exceeded, a connection of the UID with the most unread data is dropped.
    outgoing_bytes: Annotated[int, Meta(ge=1024 * 1024, le=2**34)] = 256 * 1024 * 1024
    outgoing_images: Count = 256
    outgoing_bytes_total: Annotated[int, Meta(ge=1024 * 1024, le=2**36)] = 1024 * 1024 * 1024
    outgoing_images_total: Count = 1024
    # Images that a UID's clients have announced, until their jobs are over; each is also a descriptor that the broker
    # keeps open. A request whose images do not fit is refused. They must all arrive within `upload_seconds`.
    incoming_bytes: Annotated[int, Meta(ge=1024 * 1024, le=2**34)] = 256 * 1024 * 1024
    incoming_images: Count = 128
    incoming_bytes_total: Annotated[int, Meta(ge=1024 * 1024, le=2**36)] = 1024 * 1024 * 1024
    incoming_images_total: Count = 512
    upload_seconds: Seconds = 60.0
    # Images sent as descriptors to a UID's clients since the daemon's start. The clients may still keep them in memory.
    # Further images are sent inline.
    delivered_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 1024 * 1024 * 1024
    # Longer than other users' longest jobs take, or a waiting job would time out: docs/architecture.md, "Fair turns".
    queued_seconds: Seconds = 7200.0
    start_seconds: Seconds = 60.0
    load_seconds: Seconds = 600.0
    job_seconds: Seconds = 600.0
    # A worker that is idle for this long is stopped, which frees all of its memory. Not in attached mode.
    idle_unload_seconds: Seconds = 300.0
    # A zygote that no worker has needed for this long is ended too: the next one waits for its imports. 0: never.
    idle_zygote_seconds: Annotated[float, Meta(ge=0, le=86400)] = 900.0
    # From a version 1 request's arrival to its reply, including queue and loading. Those clients time out after 120 s;
    # before that they get an error.
    v1_seconds: Seconds = 118.0


class SystemConfig(_Table, frozen=True, kw_only=True):
    """System mode: who may connect besides root, and who the children run as if root starts the daemon. Users and
    groups are names, or numbers as text."""

    allowed_users: tuple[str, ...] = ()
    allowed_groups: tuple[str, ...] = ("weave",)
    # 0660: the kernel refuses users outside the group, before our own check. 0666: our check decides alone, as needed
    # for allowed_users who are not in the group.
    socket_group: str = "weave"
    socket_mode: Literal["0660", "0666"] = "0660"
    broker_user: str = "weave"
    worker_user: str = "weave-gpu"
    # Send images as descriptors (deliver = "fd") to clients that ask for it, up to limits.delivered_bytes each. That
    # memory is charged to the daemon until the client closes them. If false, images are sent inline.
    deliver_fds: bool = False
    # A worker serves one UID; the next UID gets a new worker. So a worker that one user's job has compromised never
    # sees another user's prompt.
    isolate_users: bool = True
    # Serve only if AppArmor or SELinux confines each process in its own profile or domain (weave/sandbox/mac.py).
    require_mac: bool = False


class AuditConfig(_Table, frozen=True, kw_only=True):
    """`file` gets the audit's lines as well as standard error; SIGHUP reopens it. `prompts` logs prompts, which are
    private otherwise."""

    file: Annotated[str, Meta(pattern="^/")] | None = None
    prompts: bool = False


class MetricsConfig(_Table, frozen=True, kw_only=True):
    """`file`, if any, is rewritten every few seconds for node_exporter's textfile collector (*.prom)."""

    file: Annotated[str, Meta(pattern=r"^/.*\.prom$")] | None = None


class BoundsOverride(_Table, frozen=True, kw_only=True):
    """One model's bounds where they differ from its family's, as tables: width = { min = 64, max = 512 }."""

    width: dict[str, Bound] = {}
    height: dict[str, Bound] = {}
    steps: dict[str, Bound] = {}
    cfg_scale: dict[str, float] = {}
    images: dict[str, Bound] = {}
    pixels: dict[str, Bound] = {}
    # A message has at most 64 KiB.
    prompt_bytes: dict[str, Annotated[int, Meta(ge=0, le=65536)]] = {}
    prompt_characters: dict[str, Annotated[int, Meta(ge=0, le=65536)]] = {}
    inpainting_pixels: dict[str, Bound] = {}
    # MAX_REFERENCES, MAX_CONTROLS and MAX_INPUT_PIXELS in weave/protocol/inputs.py
    input_pixels: dict[str, Annotated[int, Meta(ge=0, le=64 * 1024 * 1024)]] = {}
    references: dict[str, Annotated[int, Meta(ge=0, le=4)]] = {}
    controls: dict[str, Annotated[int, Meta(ge=0, le=4)]] = {}
    control_start: dict[str, float] = {}
    control_end: dict[str, float] = {}
    batch: dict[str, Annotated[int, Meta(ge=0, le=64)]] = {}


class DefaultsOverride(_Table, frozen=True, kw_only=True):
    """One model's values for parameters that a client leaves out, where they differ from its family's."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    scheduler: str | None = None
    cache: StepCache | None = None


class ModelConfig(_Table, frozen=True, kw_only=True):
    """`path` is a folder in diffusers layout, or a .safetensors file. For a file, `layout` is a folder with configs and
    tokenizers to use instead of the published model's. `parts` are the files or folders of components,
    such as `vae`, which replace those of `path`.

    `sha256` pins files to a digest in hex: by their path inside the folder, for single files by `path` or `parts.NAME`.
    `weights` is how quantised weights are held. `v1_id` is the model's number in version 1 of the protocol.
    `references` says whether the model takes reference images, in families where only some do (in flux, FLUX.1
    Kontext). `memory` is its memory plan (weave/models/plans.py); "auto" picks the fastest that fits.
    """

    path: str
    family: str
    title: str = ""
    layout: str | None = None
    parts: dict[str, str] = {}
    weights: Form = "kept"
    v1_id: Annotated[int, Meta(ge=1, le=2**32 - 1)] | None = None
    references: bool | None = None
    memory: Literal["auto", "card", "stages", "streamed"] = "auto"
    bounds: BoundsOverride = BoundsOverride()
    defaults: DefaultsOverride = DefaultsOverride()
    sha256: dict[str, Sha256] = {}


class LoraConfig(_Table, frozen=True, kw_only=True):
    """A .safetensors file for the models of one family. `sha256` pins the file to a digest in hex."""

    path: str
    family: str
    title: str = ""
    max_weight: Annotated[float, Meta(gt=0, le=100)] = 2.0
    sha256: Sha256 | None = None


class EmbeddingConfig(_Table, frozen=True, kw_only=True):
    """A .safetensors file for the models of one family. `sha256` pins the file to a digest in hex."""

    path: str
    family: str
    title: str = ""
    sha256: Sha256 | None = None


class ControlConfig(_Table, frozen=True, kw_only=True):
    """A ControlNet for the models of one family: a folder in diffusers layout, or a .safetensors file. `sha256` pins
    files to a digest in hex: by their path inside the folder, a single file by `path`."""

    path: str
    family: str
    title: str = ""
    sha256: dict[str, Sha256] = {}


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Without [models] it has the demo model (weave/config/load.py)."""

    models: dict[str, ModelConfig] = {}
    default_model: str | None = None
    loras: dict[str, LoraConfig] = {}
    embeddings: dict[str, EmbeddingConfig] = {}
    controls: dict[str, ControlConfig] = {}
    device: DeviceConfig = field(default_factory=DeviceConfig)
    limits: Limits = field(default_factory=Limits)
    system: SystemConfig = field(default_factory=SystemConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
