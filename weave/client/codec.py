"""Version 2 from the client's side, without any input or output: bytes and descriptors in, answers out."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from weave.protocol import SYSTEM_SOCKET_PATH
from weave.protocol.channel import ChannelViolation, check_sealed_memfd, close_all
from weave.protocol.client_messages import (
    ClientMessage,
    Done,
    Error,
    Event,
    Image,
    Models,
    Preview,
    StatusReport,
    decode_event,
    encode,
)
from weave.protocol.errors import UNDECODABLE, FrameError
from weave.protocol.frames import FrameReader, Header, Kind, pack_frame

# What ends a request that went well.
Last = TypeVar("Last", Done, StatusReport, Models)

# Of one read from the daemon.
READ_BYTES = 1024 * 1024
MAX_DESCRIPTORS = 16


class NotRunning(Exception):
    """No daemon answers; the message says where it was looked for."""


class ProtocolError(Exception):
    """The other side does not speak version 2; the connection is closed."""


class WeaveError(Exception):
    """The daemon refused or failed a request. `error` has the code and, for a bound, the field and its limits."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error
        self.code = error.code


class Answer(NamedTuple):
    """One event of one request. An image or preview has its bytes in `data`, or a sealed memfd in `memfd`,
    which is the caller's to close."""

    request: int
    event: Event
    data: bytes = b""
    memfd: int | None = None


def default_socket_path() -> Path:
    """`$WEAVE_SOCKET`, else the user's daemon, else the system's."""
    if "WEAVE_SOCKET" in os.environ:
        return Path(os.environ["WEAVE_SOCKET"])
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    own = Path(runtime) / "weave" / "weave.sock"
    return SYSTEM_SOCKET_PATH if SYSTEM_SOCKET_PATH.exists() and not own.exists() else own


def request_frame(request: int, message: ClientMessage) -> bytes:
    """A whole frame, ready to send."""
    return pack_frame(Kind.CONTROL, request, encode(message))


class Decoder:
    """Takes what came over the socket in any pieces."""

    def __init__(self) -> None:
        self._frames = FrameReader(from_client=False)
        self._descriptors: deque[int] = deque()
        self._announced: Answer | None = None

    def feed(self, data: bytes, descriptors: list[int]) -> Iterator[Answer]:
        """The answers that are complete by now. Raises ProtocolError."""
        self._frames.feed(data)
        self._descriptors += descriptors
        try:
            while (frame := self._frames.next_frame()) is not None:
                answer = self._answer(*frame)
                if answer is not None:
                    yield answer
        except (FrameError, ChannelViolation, *UNDECODABLE) as error:
            self.close()
            raise ProtocolError(str(error)) from None

    def close(self) -> None:
        """Close descriptors that nobody took."""
        close_all(list(self._descriptors))
        self._descriptors.clear()

    def _answer(self, header: Header, payload: bytes) -> Answer | None:
        if header.version != 2:
            raise ChannelViolation("the answer is in version 1")
        if self._announced is not None:
            announced, self._announced = self._announced, None
            if header.kind != Kind.IMAGE or header.request != announced.request:
                raise ChannelViolation("an image was announced, and something else came")
            assert isinstance(announced.event, Image | Preview)
            if header.length != announced.event.size:
                raise ChannelViolation(f"{header.length} bytes of image; {announced.event.size} were announced")
            return announced._replace(data=payload)
        if header.kind == Kind.IMAGE:
            raise ChannelViolation("an image came that was not announced")
        answer = Answer(header.request, decode_event(payload))
        if isinstance(answer.event, Image) and answer.event.deliver == "fd":
            if not self._descriptors:
                raise ChannelViolation("an image came without its memfd")
            check_sealed_memfd(self._descriptors[0], answer.event.size)
            return answer._replace(memfd=self._descriptors.popleft())
        if isinstance(answer.event, Image | Preview):
            self._announced = answer
            return None
        return answer
