"""The errors of this daemon (docs/protocol.md, "Errors"). A newer one may have more."""

import enum
from typing import TypeAlias

import msgspec

# What msgspec raises for bytes that are not a message; the last two for invalid UTF-8 and for deep nesting.
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
    """One request cannot be served; its connection stays open.

    `message` is for the client: it never has a path or a traceback.
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
    """A frame's header is refused.

    `version` is the frame's own version, if it is supported. `skip` is the length of its payload: after that many
    bytes the next frame starts. None: the length cannot be trusted, so the connection is closed.
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
