"""Version 2 control messages: a client's requests (`op`) and the daemon's answers (`event`).

JSON, at most 64 KiB, validated by msgspec: a wrong type is an error, never ignored. The daemon refuses unknown ops and
fields; a client skips unknown events and fields, and accepts any name where this daemon has a list of names
(docs/protocol.md, "How the protocol grows").
"""

import re
from typing import Annotated, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from weave.protocol.bounds import Bounds
from weave.protocol.embeddings import EmbeddingOffers
from weave.protocol.errors import UNDECODABLE, ErrorCode, FrameError, RequestError
from weave.protocol.inputs import ControlOffers
from weave.protocol.loras import LoraOffers
from weave.protocol.metrics import Metrics
from weave.protocol.parameters import Defaults, Delivery, ImageFormat, RequestedParameters
from weave.protocol.text import ModelId, Name, Title


class _Op(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, tag_field="op"):
    """Fields at their defaults are not sent, so that an older daemon does not refuse one that it does not know."""


class LoadModel(_Op, frozen=True, kw_only=True, tag="load_model"):
    """Load `model`, so that the next image starts without a wait. Answered by done."""

    model: str


class Generate(RequestedParameters, _Op, frozen=True, kw_only=True, tag="generate"):
    """Generate images. Answered by queued, loading, progress, preview and image events, then by one done or error."""


class Unload(_Op, frozen=True, kw_only=True, tag="unload"):
    """End the worker after its running job, which frees all of its memory. Answered by done."""


class Status(_Op, frozen=True, kw_only=True, tag="status"):
    """Answered by status."""


class ListModels(_Op, frozen=True, kw_only=True, tag="list_models"):
    """Answered by models."""


class Cancel(_Op, frozen=True, kw_only=True, tag="cancel"):
    """Cancel a job: by its `request` number on this connection, or by `job` from any connection of the same user.

    Answered by done; the job itself ends with the error `cancelled`.
    """

    request: int | None = None
    job: int | None = None


ClientMessage: TypeAlias = LoadModel | Generate | Unload | Status | ListModels | Cancel


class _Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    pass


class Queued(_Event, frozen=True, kw_only=True, tag="queued"):
    """The job was accepted; `position` jobs start before it. Sent again when that number changes."""

    job: int
    position: int


class Loading(_Event, frozen=True, kw_only=True, tag="loading"):
    """The job waits for its model to load. Sent again with `plan`, the memory plan, once the worker has chosen it
    (docs/operations.md, "Memory")."""

    model: ModelId
    plan: Name | None = None


class Progress(_Event, frozen=True, kw_only=True, tag="progress"):
    """`step` (from 1) of `steps` is done for image number `image` (from 0)."""

    image: int
    step: int
    steps: int


class Preview(_Event, frozen=True, kw_only=True, tag="preview"):
    """An unfinished image, a PNG of `size` bytes, follows in an image frame."""

    image: int
    step: int
    width: int
    height: int
    size: int


class Image(_Event, frozen=True, kw_only=True, tag="image"):
    """A finished image of `size` bytes follows in an image frame (inline) or came as a memfd with this frame (fd).

    Raw images are RGB pixels, 8 bits a channel, in rows from top to bottom without padding.
    """

    image: int
    seed: int
    format: ImageFormat
    deliver: Delivery
    width: int
    height: int
    channels: int
    size: int


class Timings(Struct, frozen=True, kw_only=True):
    """Seconds that a job spent in the queue, loading its model and generating."""

    queued: float = 0.0
    loading: float = 0.0
    generating: float = 0.0


class EncoderTokens(Struct, frozen=True, kw_only=True):
    """How many tokens of a prompt one text encoder used, with those for start and end, and how many were cut off.
    `encoder` is the encoder's folder in the model: text_encoder, text_encoder_2, ..."""

    encoder: Name
    used: Annotated[int, Meta(ge=0, le=2**20)]
    cut: Annotated[int, Meta(ge=0, le=2**20)]


EachEncoder: TypeAlias = Annotated[tuple[EncoderTokens, ...], Meta(max_length=8)]


class Tokens(Struct, frozen=True, kw_only=True):
    """For each text encoder that encoded the prompt or the negative prompt."""

    prompt: EachEncoder = ()
    negative_prompt: EachEncoder = ()


class Done(_Event, frozen=True, kw_only=True, tag="done"):
    """The request is finished. After generate: the model, the first image's seed, the timings and the tokens.
    `fallback` is the memory plan of the second attempt, if the job ran out of memory."""

    model: ModelId | None = None
    seed: int | None = None
    timings: Timings | None = None
    tokens: Tokens | None = None
    fallback: Name | None = None


class Error(_Event, frozen=True, kw_only=True, tag="error"):
    """The request failed. `field`, `value`, `min` and `max` describe the bound; `retry_after` is in seconds. `code` is
    an ErrorCode, or a code that only a newer daemon has."""

    code: Name
    message: str
    field: str | None = None
    value: int | float | str | None = None
    min: int | float | None = None
    max: int | float | None = None
    retry_after: float | None = None

    @classmethod
    def from_exception(cls, error: RequestError | FrameError) -> "Error":
        """The only place where an exception becomes an event."""
        if isinstance(error, FrameError):
            return cls(code=ErrorCode.INVALID_FRAME, message=error.message, field=error.field, value=error.value)
        return cls(
            code=error.code,
            message=error.message,
            field=error.field,
            value=error.value,
            min=error.minimum,
            max=error.maximum,
            retry_after=error.retry_after,
        )


class JobStatus(Struct, frozen=True, kw_only=True):
    """One of the requesting user's own jobs. `state` is queued, loading or running."""

    job: int
    model: ModelId
    state: Name
    position: int


class DeviceStatus(Struct, frozen=True, kw_only=True):
    """One device, by its name in the config. `state` is that of its worker, as in StatusReport, or failed: `problem`
    says why, and it is tried again in `retry_seconds`. The other fields describe a loaded model; memory is in bytes."""

    device: Name
    state: Name
    model: ModelId | None = None
    dtype: Name | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    problem: Title | None = None
    retry_seconds: float | None = None


class StatusReport(_Event, frozen=True, kw_only=True, tag="status", omit_defaults=False):
    """The daemon's state. Memory is in bytes, uptime in seconds; `jobs` has only the requesting user's own. `worker` is
    none, starting, loading, idle, running or stopping. It and the fields from `model` to `memory_total` describe one of
    the `devices`; older daemons name none of those. `features`: see features.py; older daemons name none.
    `libraries_lack` is left out unless it is true: no model can run, and the log says why. `plan` is the worker's
    memory plan, once there is one."""

    version: Name
    features: tuple[Name, ...] = ()
    uptime: float
    mode: Name
    worker: Name
    model: ModelId | None
    device: Name | None
    dtype: Name | None
    memory_used: int | None
    memory_total: int | None
    queue_length: int
    queue_limit: int
    connections: int
    jobs: tuple[JobStatus, ...]
    sandbox: dict[Name, tuple[Name, ...]]
    worker_restarts: int
    images_made: int
    metrics: Metrics
    devices: tuple[DeviceStatus, ...] = ()
    libraries_lack: bool | UnsetType = UNSET
    plan: Name | UnsetType = UNSET


class ModelOffer(Struct, frozen=True, kw_only=True):
    """What the broker and its clients know of a model: no path, no file. `v1_id` is its number in version 1, where 0
    stands for the default model. `tasks` is what it can do; older daemons name none, and generate images from text.
    `caches` are its step caches, besides none."""

    id: ModelId
    family: Name
    title: Title
    tasks: tuple[Name, ...] = ()
    bounds: Bounds
    defaults: Defaults
    schedulers: tuple[Name, ...]
    caches: tuple[Name, ...] = ()
    v1_id: int | None = None


class Models(_Event, frozen=True, kw_only=True, tag="models", omit_defaults=False):
    """The models on offer; a request that names none gets the `loaded` one, else the `default`. `loras`, `embeddings`
    and `controls`: those on offer for the families of the models, and perhaps others; older daemons have none."""

    models: tuple[ModelOffer, ...]
    default: ModelId | None
    loaded: ModelId | None
    loras: LoraOffers = ()
    embeddings: EmbeddingOffers = ()
    controls: ControlOffers = ()


class _Kind(Struct):
    event: str


Event: TypeAlias = Queued | Loading | Progress | Preview | Image | Done | Error | StatusReport | Models

_op_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_kind_decoder: msgspec.json.Decoder[_Kind] = msgspec.json.Decoder(_Kind)
_KNOWN_EVENTS = frozenset(kind.__struct_config__.tag for kind in get_args(Event))
_encoder = msgspec.json.Encoder()
# The field of the message itself, before one inside it.
_FIELD_IN_ERROR = re.compile(r".*at `\$\.([a-z_0-9]+)|(?:field|unknown field|unknown) `([a-z_0-9]+)`")


def decode_op(payload: bytes) -> ClientMessage:
    """Raises RequestError (invalid_request), with the field where msgspec names one."""
    try:
        return _op_decoder.decode(payload)
    except msgspec.ValidationError as error:
        found = _FIELD_IN_ERROR.search(str(error))
        field = next(filter(None, found.groups()), None) if found else None
        raise RequestError(ErrorCode.INVALID_REQUEST, str(error)[:200], field=field) from None
    except UNDECODABLE as error:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"not a JSON message: {error}"[:200]) from None


def decode_event(payload: bytes) -> Event | None:
    """Decode an event in the client; None for one that only a newer daemon has. Raises one of UNDECODABLE."""
    if _kind_decoder.decode(payload).event not in _KNOWN_EVENTS:
        return None
    return _event_decoder.decode(payload)


def encode(message: ClientMessage | Event) -> bytes:
    """The payload of a control frame."""
    return _encoder.encode(message)
