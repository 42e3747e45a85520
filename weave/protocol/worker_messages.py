"""Messages between the broker and a GPU worker.

A worker holds one model for its whole life, so nothing here names a model. Each side treats the other as hostile:
a message that is not valid in the current state ends the worker.
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from weave.protocol.client_messages import Tokens
from weave.protocol.parameters import Parameters
from weave.protocol.text import Device, Dtype

Reason: TypeAlias = Literal[
    "cancelled",
    "out_of_memory",
    "refused",
    "bounds",
    "lora",
    "embedding",
    "control",
    "prompt",
    "scheduler",
    "libraries",
    "too_large",
    "internal",
]
# Where a model's weights are, and whether its VAE decodes in tiles (weave/models/plans.py).
PlanName: TypeAlias = Literal["card", "stages", "streamed", "card+tiled", "stages+tiled", "streamed+tiled"]
# The folders of text encoders in a model.
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Of the detail that a worker sends for the log, in characters.
MAX_DETAIL = 1000
# They are in `status`, and JSON readers may use doubles or signed integers.
Bytes: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]


class _Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    pass


class Load(_Message, frozen=True, kw_only=True, tag="load"):
    """Read the model's files and put it on the device. Answered by Planned and Loaded, or by Failed. `parameters` are
    those of the job that the model is loaded for; None: the model's defaults."""

    parameters: Parameters | None = None


class Run(_Message, frozen=True, kw_only=True, tag="run"):
    """Generate the images of one job. Answered by Progressed, Previewed and Made, then Finished or Failed; Restarted
    may come once in between. Carries the images of the request, in the order of inputs_of(), in sealed memfds.

    A preview is sent after every `preview_every` steps; 0 sends none.
    """

    job: int
    parameters: Parameters


class CancelRun(_Message, frozen=True, kw_only=True, tag="cancel"):
    """Stop the running job at its next step. Answered by Failed; ignored if that job has already ended."""

    job: int


ToWorker: TypeAlias = Load | Run | CancelRun


class Memory(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes on the device that holds the model."""

    used: Bytes
    total: Bytes


class TooLarge(Struct, frozen=True, forbid_unknown_fields=True):
    """A job that fits in no plan: the least bytes that it needs, the bytes available, and a width and height that would
    fit, 0 if none would."""

    needed: Bytes
    available: Bytes
    width: Annotated[int, Meta(ge=0, le=2**16)]
    height: Annotated[int, Meta(ge=0, le=2**16)]


class Planned(_Message, frozen=True, kw_only=True, tag="planned"):
    """The plan in which the model is being loaded."""

    plan: PlanName


class Loaded(_Message, frozen=True, kw_only=True, tag="loaded"):
    """The model is on `device`, its weights as `dtype`."""

    device: Device
    dtype: Dtype
    memory: Memory


class Progressed(_Message, frozen=True, kw_only=True, tag="progress"):
    """`step` (from 1) of `steps` is done for image number `image` (from 0). A task that starts from an image has fewer
    steps than it requests."""

    job: int
    image: int
    step: int
    steps: int


class Previewed(_Message, frozen=True, kw_only=True, tag="preview"):
    """Carries a sealed memfd with a PNG of `size` bytes."""

    job: int
    image: int
    step: int
    width: int
    height: int
    size: int


class Made(_Message, frozen=True, kw_only=True, tag="image"):
    """Carries a sealed memfd with image number `image`: a PNG of `size` bytes, or width * height * 3 of pixels."""

    job: int
    image: int
    size: int


class Restarted(_Message, frozen=True, kw_only=True, tag="restarted"):
    """The job ran out of memory. It starts again in another plan, with the first image that was not sent yet."""

    job: int
    plan: PlanName


class Finished(_Message, frozen=True, kw_only=True, tag="finished"):
    """All images of the job have been sent; `tokens` counts the tokens of its prompts, `plan` is the one that it ran
    in."""

    job: int
    memory: Memory
    plan: PlanName | None = None
    tokens: Tokens = Tokens()


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """The job, or loading the model (job 0), failed; the worker continues.

    `detail` is for the log, never for a client: it may have a path. `too_large` comes with that reason.
    """

    job: int
    reason: Reason
    detail: Annotated[str, Meta(max_length=MAX_DETAIL)]
    too_large: TooLarge | None = None


FromWorker: TypeAlias = Planned | Loaded | Restarted | Progressed | Previewed | Made | Finished | Failed
