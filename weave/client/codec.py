"""The client side of version 2, without I/O: turns bytes and descriptors into answers."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct

from weave.protocol import SYSTEM_SOCKET_PATH
from weave.protocol.bounds import MAX_SEED
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
from weave.protocol.errors import UNDECODABLE, ErrorCode, FrameError
from weave.protocol.frames import MAX_CONTROL_BYTES, FrameReader, Header, Kind, pack_frame, pack_header
from weave.protocol.inputs import InputImage

# The last event of a request that succeeded.
Last = TypeVar("Last", Done, StatusReport, Models)

# The most that is read from the socket at a time.
READ_BYTES = 1024 * 1024
MAX_DESCRIPTORS = 16
# The most that is kept of previews of one request that have not been taken.
_MAX_PREVIEW_BYTES = 16 * 1024 * 1024
_KNOWN_CODES = {code.value: code for code in ErrorCode}


class NotRunning(Exception):
    """No daemon answers; the message names the socket."""


class ProtocolError(Exception):
    """The other side does not speak version 2. The connection is closed."""


class WeaveError(Exception):
    """The daemon refused or failed a request. For a bound, `error` has the field and its limits. A `code` that only a
    newer daemon has is a plain string."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error
        self.code: ErrorCode | str = _KNOWN_CODES.get(error.code, error.code)


class InvalidRequest(ValueError):
    """The request cannot be sent. The message names the field; nothing was sent."""


class Answer(NamedTuple):
    """One event of one request. The bytes of an image or preview are in `data`, or in the sealed `memfd`, which the
    caller owns."""

    request: int
    event: Event
    data: bytes = b""
    memfd: int | None = None


def default_socket_path() -> Path:
    """`$WEAVE_SOCKET`, else the socket of the user's daemon, else that of the system's."""
    if given := os.environ.get("WEAVE_SOCKET"):
        return Path(given)
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    own = Path(runtime) / "weave" / "weave.sock"
    # Unlike Path.exists(), this also works for a folder that the user may not search.
    return SYSTEM_SOCKET_PATH if os.path.exists(SYSTEM_SOCKET_PATH) and not os.path.exists(own) else own


class OutgoingImage(Protocol):
    """An image that goes with a request, in pieces."""

    size: InputImage
    pieces: Callable[[], Iterator[bytes | memoryview]]


def request_frames(
    request: int, message: ClientMessage, images: Sequence[OutgoingImage] = ()
) -> Iterator[Iterator[bytes | memoryview]]:
    """The request's frame, then those of its images, each in pieces. A frame that has begun must be sent to its end;
    the others can be left out if the request has failed. Raises InvalidRequest before the first one."""
    frame = request_frame(request, message)
    return chain([iter([frame])], (_image_frame(request, image) for image in images))


def _image_frame(request: int, image: OutgoingImage) -> Iterator[bytes | memoryview]:
    yield pack_header(Kind.IMAGE, request, image.size.size)
    yield from image.pieces()


def request_frame(request: int, message: ClientMessage) -> bytes:
    """A complete frame. Raises InvalidRequest."""
    for field in message.__struct_fields__:
        _check_sendable(field, getattr(message, field))
    payload = encode(message)
    if len(payload) > MAX_CONTROL_BYTES:
        raise InvalidRequest(f"the request has {len(payload)} bytes; it must have at most {MAX_CONTROL_BYTES}")
    return pack_frame(Kind.CONTROL, request, payload)


def _check_sendable(field: str, value: object) -> None:
    """JSON has no NaN or infinities: msgspec writes null, which would mean the model's default."""
    if isinstance(value, tuple):
        for item in value:
            _check_sendable(field, item)
    if isinstance(value, Struct):
        for inner in value.__struct_fields__:
            _check_sendable(f"{field}: {inner}", getattr(value, inner))
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{field} is {value}; it must be a finite number")
    if isinstance(value, int) and not -(2**63) <= value <= MAX_SEED:
        raise InvalidRequest(f"{field} is {hex(value)[:40]}; it must fit 64 bits")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{field} is not valid Unicode") from None


class Inbox:
    """The answers that may still be taken, by request. All others are dropped, and their memfds closed."""

    def __init__(self) -> None:
        self._held: dict[int, deque[Answer]] = {}

    def expect(self, request: int) -> None:
        """Keep the answers to this request until they are taken."""
        self._held[request] = deque()

    def expects(self, request: int) -> bool:
        """Whether answers to this request are kept."""
        return request in self._held

    def has_failed(self, request: int) -> bool:
        """Whether an error for this request has arrived, or its answers are not expected."""
        answers = self._held.get(request)
        return answers is None or any(isinstance(answer.event, Error) for answer in answers)

    def put(self, answer: Answer) -> None:
        """Takes ownership of the answer's memfd. Of previews that are not taken, only the newest are kept."""
        answers = self._held.get(answer.request)
        if answers is None:
            _drop(answer)
            return
        answers.append(answer)
        if isinstance(answer.event, Preview):
            previews = [held for held in answers if isinstance(held.event, Preview)]
            excess = sum(len(held.data) for held in previews) - _MAX_PREVIEW_BYTES
            for oldest in previews[:-1]:
                if excess > 0:
                    answers.remove(oldest)
                    excess -= len(oldest.data)

    def take(self, request: int) -> Answer | None:
        """The oldest answer, or None. The caller owns its memfd."""
        answers = self._held.get(request)
        return answers.popleft() if answers else None

    def forget(self, request: int) -> None:
        """Drop all present and future answers to this request."""
        for answer in self._held.pop(request, ()):
            _drop(answer)

    def close(self) -> None:
        """Forget all requests."""
        for request in list(self._held):
            self.forget(request)

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __iter__(self) -> Iterator[Answer]:
        return chain.from_iterable(self._held.values())

    def __del__(self) -> None:
        self.close()


def _drop(answer: Answer) -> None:
    close_all([] if answer.memfd is None else [answer.memfd])


class Decoder:
    """Turns bytes from the socket, in pieces of any size, into answers."""

    def __init__(self) -> None:
        self._frames = FrameReader(from_client=False)
        self._descriptors: deque[int] = deque()
        self._announced: Answer | None = None

    def feed(self, data: bytes, descriptors: list[int]) -> Iterator[Answer]:
        """Add bytes and descriptors, and yield the complete answers. Owns `descriptors` once iterated. Raises
        ProtocolError."""
        self._frames.feed(data)
        self._descriptors += descriptors
        try:
            while (frame := self._frames.next_frame()) is not None:
                self._check_expected(frame[0])
                answer = self._answer(*frame)
                if answer is not None:
                    yield answer
            if self._frames.header is not None:
                self._check_expected(self._frames.header)  # before more of it is kept
            if len(self._descriptors) > (MAX_DESCRIPTORS if self._frames.begun else 0):
                raise ChannelViolation("a descriptor came without an image")
        except (FrameError, ChannelViolation, *UNDECODABLE) as error:
            self.close()
            raise ProtocolError(str(error)) from None

    def close(self) -> None:
        """Close all descriptors not taken, and discard a partial image."""
        close_all(list(self._descriptors))
        self._descriptors.clear()
        self._frames = FrameReader(from_client=False)
        self._announced = None

    def __del__(self) -> None:
        self.close()

    def _check_expected(self, header: Header) -> None:
        if header.version != 2:
            raise ChannelViolation("the answer is in version 1")
        announced = self._announced
        if announced is None:
            if header.kind == Kind.IMAGE:
                raise ChannelViolation("an image came without an announcement")
            return
        assert isinstance(announced.event, Image | Preview)
        if header.kind != Kind.IMAGE or header.request != announced.request:
            raise ChannelViolation("something else came in place of the announced image")
        if header.length != announced.event.size:
            raise ChannelViolation(f"an image of {header.length} bytes; {announced.event.size} were announced")

    def _answer(self, header: Header, payload: bytes) -> Answer | None:
        if self._announced is not None:
            announced, self._announced = self._announced, None
            return announced._replace(data=payload)
        if (event := decode_event(payload)) is None:
            return None
        answer = Answer(header.request, event)
        if isinstance(answer.event, Image) and answer.event.deliver == "fd":
            if not self._descriptors:
                raise ChannelViolation("an image came without its memfd")
            check_sealed_memfd(self._descriptors[0], answer.event.size)
            return answer._replace(memfd=self._descriptors.popleft())
        if isinstance(answer.event, Image | Preview):
            self._announced = answer
            return None
        return answer
