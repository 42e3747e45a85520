"""What broker and GPU worker say to each other, and no one else.

A worker holds one model for its whole life, so nothing here names a model. Each side treats the other as hostile:
a message that its state machine does not expect ends the worker.
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from weave.protocol.bounds import Parameters
from weave.protocol.client_messages import ImageFormat, Tokens
from weave.protocol.tasks import Task
from weave.protocol.text import Device, Dtype

Reason: TypeAlias = Literal["cancelled", "out_of_memory", "refused", "scheduler", "libraries", "internal"]
# The folders of a model's text encoders.
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Of what a worker says for the log, in characters.
MAX_DETAIL = 1000
# status tells them, and a reader of JSON may have doubles, or integers with a sign.
Bytes: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]


class _Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    pass


class Load(_Message, frozen=True, kw_only=True, tag="load"):
    """Read the model's files and put it on the device. Answered by Loaded or Failed."""


class Run(_Message, frozen=True, kw_only=True, tag="run"):
    """Draw the images of one job. Answered by Progress, Preview and Image, then Finished or Failed.

    A preview is sent after every `preview_every` steps; 0 sends none.
    """

    job: int
    parameters: Parameters
    format: ImageFormat
    preview_every: int

    @classmethod
    def of(cls, job: int, task: Task) -> "Run":
        """What the worker is asked for `task`, as job number `job`."""
        return cls(job=job, parameters=task.parameters, format=task.format, preview_every=task.preview_every)


class CancelRun(_Message, frozen=True, kw_only=True, tag="cancel"):
    """Stop the running job at its next step. Answered by Failed; ignored if that job is over already."""

    job: int


ToWorker: TypeAlias = Load | Run | CancelRun


class Memory(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes on the device that holds the model."""

    used: Bytes
    total: Bytes


class Loaded(_Message, frozen=True, kw_only=True, tag="loaded"):
    """The model is on `device`, its weights as `dtype`."""

    device: Device
    dtype: Dtype
    memory: Memory


class Progressed(_Message, frozen=True, kw_only=True, tag="progress"):
    """`step` (from 1) of image number `image` (from 0) is done."""

    job: int
    image: int
    step: int


class Previewed(_Message, frozen=True, kw_only=True, tag="preview"):
    """A sealed memfd with a PNG of `size` bytes comes along."""

    job: int
    image: int
    step: int
    width: int
    height: int
    size: int


class Made(_Message, frozen=True, kw_only=True, tag="image"):
    """A sealed memfd with `size` bytes of image number `image` comes along: PNG, or width * height * 3 raw."""

    job: int
    image: int
    size: int


class Finished(_Message, frozen=True, kw_only=True, tag="finished"):
    """All images of the job have been sent; `tokens` says what was used of its prompts."""

    job: int
    memory: Memory
    tokens: Tokens = Tokens()


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """The job, or the loading of the model (job 0), ended without a result; the worker lives on.

    `detail` is for the log, never for a client: it may hold a path.
    """

    job: int
    reason: Reason
    detail: Annotated[str, Meta(max_length=MAX_DETAIL)]


FromWorker: TypeAlias = Loaded | Progressed | Previewed | Made | Finished | Failed
