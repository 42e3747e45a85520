"""The errors of this daemon (docs/protocol.md, "Errors"). A newer one may have more."""

import enum
from typing import TypeAlias

import msgspec

# What msgspec raises for bytes that are no message: the last two for text that is not UTF-8, and for deep nesting.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Number: TypeAlias = int | float


class ErrorCode(enum.StrEnum):
    """Why a request was refused or failed; the wire carries the value."""

    INVALID_FRAME = "invalid_frame"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_MODEL = "unknown_model"
    OUT_OF_BOUNDS = "out_of_bounds"
    NO_MODEL = "no_model"
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_FAILED = "worker_failed"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


class RequestError(Exception):
    """One request cannot be served; the connection it came on lives on.

    `message` is for the client: it never holds a path or a traceback.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        field: str | None = None,
        value: Number | str | None = None,
        minimum: Number | None = None,
        maximum: Number | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.value = value
        self.minimum = minimum
        self.maximum = maximum
        self.retry_after = retry_after


class FrameError(Exception):
    """A frame is refused for its header, and the client is told why.

    `version` is the one that the frame claims, where we speak it. `skip` is the payload's length where it can be
    believed: after so many bytes the next frame starts. None: nobody can say where, so the connection is closed.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: int | None = None,
        version: int | None = None,
        skip: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.version = version
        self.skip = skip
