"""Frames of the client protocol: a header of 16 bytes before every payload, in both directions and both versions.

magic `WEVE` · version u16 · kind u16 · length u32 · request u32 (reserved in version 1), big-endian (docs/protocol.md)
"""

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from weave.protocol.errors import FrameError
from weave.protocol.inputs import MAX_INPUT_PIXELS

MAGIC = b"WEVE"
SUPPORTED_VERSIONS = (1, 2)
MAX_CONTROL_BYTES = 64 * 1024
MAX_IMAGE_BYTES = 0xFFFF_FFFF
MAX_INPUT_BYTES = 3 * MAX_INPUT_PIXELS
MAX_VERSION_1_BYTES = 10 * 1024 * 1024
# No longer version 1 request is valid: 60 bytes of fields and three prompts of 2048. Of a longer one only the length
# matters, so no more than this is kept in memory.
MAX_VERSION_1_REQUEST_BYTES = 60 + 3 * 2048

_HEADER = struct.Struct(">4sHHII")
HEADER_BYTES = _HEADER.size


class Kind(enum.IntEnum):
    """The type of a payload."""

    GENERATE = 0x0001  # version 1
    RESPONSE = 0x0002  # version 1
    ERROR = 0x00FF  # version 1
    CONTROL = 0x0010  # version 2: a JSON message
    IMAGE = 0x0011  # version 2: bytes of an image, announced by the control message before it


# Takes the next piece of a client's image.
Write: TypeAlias = Callable[[memoryview], None]


class Header(NamedTuple):
    """A checked header. `length` counts the payload's bytes; `request` is the client's own number, 0 in version 1."""

    version: int
    kind: Kind
    length: int
    request: int


# By version and sender: the valid kinds, and the largest payload of each in bytes.
_KINDS = {
    (1, "client"): {Kind.GENERATE: MAX_VERSION_1_BYTES},
    (1, "daemon"): {Kind.RESPONSE: MAX_VERSION_1_BYTES, Kind.ERROR: MAX_VERSION_1_BYTES},
    (2, "client"): {Kind.CONTROL: MAX_CONTROL_BYTES, Kind.IMAGE: MAX_INPUT_BYTES},
    (2, "daemon"): {Kind.CONTROL: MAX_CONTROL_BYTES, Kind.IMAGE: MAX_IMAGE_BYTES},
}
# The largest payload of an unknown kind or version that is skipped.
_UNKNOWN = {2: MAX_CONTROL_BYTES}


def pack_header(kind: Kind, request: int, length: int, *, version: int = 2) -> bytes:
    """The header of a payload of `length` bytes."""
    return _HEADER.pack(MAGIC, version, kind, length, request)


def pack_frame(kind: Kind, request: int, payload: bytes, *, version: int = 2) -> bytes:
    """A whole frame."""
    return pack_header(kind, request, len(payload), version=version) + payload


def parse_header(data: bytes, *, from_client: bool) -> Header:
    """Check the 16 bytes `data`. Raises FrameError."""
    magic, version, kind, length, request = _HEADER.unpack(data)
    spoken = version if version in SUPPORTED_VERSIONS else None
    kinds = _KINDS.get((version, "client" if from_client else "daemon"), {})
    limit = kinds[Kind(kind)] if kind in kinds else _UNKNOWN.get(version, MAX_VERSION_1_BYTES)

    def refused(message: str, field: str, value: int | None = None, *, in_step: bool = True) -> FrameError:
        skip = length if in_step and 1 <= length <= limit else None
        return FrameError(message, field=field, value=value, version=spoken, skip=skip)

    if magic != MAGIC:
        raise refused(f"bad magic 0x{magic.hex()}; every frame starts with WEVE", "magic", in_step=False)
    if spoken is None:
        supported = ", ".join(str(known) for known in SUPPORTED_VERSIONS)
        raise refused(f"unsupported version {version}; supported: {supported}", "version", version)
    if kind not in kinds:
        expected = ", ".join(f"0x{known:04x}" for known in kinds)
        raise refused(f"unknown kind 0x{kind:04x}; expected {expected}", "kind", kind)
    if not 1 <= length <= limit:
        raise refused(f"length is {length}; it must be from 1 to {limit}", "length", length)
    if version == 1 and request:
        raise refused(f"reserved is {request}; it must be 0", "reserved", request)
    return Header(version, Kind(kind), length, request)


def no_image_expected(header: Header) -> Write:
    """Raises FrameError: no request has announced this image."""
    text = f"no image is expected for request {header.request}"
    raise FrameError(text, field="request", value=header.request, version=2, skip=header.length)


class FrameReader:
    """Takes bytes in pieces of any size and returns frames. It holds at most one frame and what was fed after it, and
    nothing of a frame whose header was refused, or of an image that a client sends."""

    def __init__(self, *, from_client: bool, open_image: Callable[[Header], Write] = no_image_expected) -> None:
        """`open_image` returns what takes the payload of a client's image, or raises FrameError."""
        self._from_client = from_client
        self._open_image = open_image
        self._write: Write | None = None
        self._bytes = bytearray()
        self._header: Header | None = None
        self._payload = bytearray()
        self._missing = 0
        self._skipping = 0

    @property
    def begun(self) -> bool:
        """Whether part of a frame has arrived."""
        return self._header is not None or bool(self._bytes)

    @property
    def header(self) -> Header | None:
        """The header of the frame whose payload is incomplete."""
        return self._header

    @property
    def skipping(self) -> bool:
        """Whether the rest of a refused frame has yet to arrive."""
        return self._skipping > 0

    @property
    def held(self) -> int:
        """The number of bytes held."""
        return len(self._bytes) + len(self._payload)

    def feed(self, data: bytes) -> None:
        """Add bytes from the socket. Call next_frame() until it returns None before feeding more."""
        self._bytes += data
        self._skip(0)

    def next_frame(self) -> tuple[Header, bytes] | None:
        """The next frame, once it is complete. The payload of a version 1 request that is too long to be valid is cut
        off at MAX_VERSION_1_REQUEST_BYTES; that of a client's image is empty. Raises FrameError; if it has a `skip`,
        the next frame can still be read."""
        if self._header is None:
            if len(self._bytes) < HEADER_BYTES:
                return None
            header_bytes = bytes(self._bytes[:HEADER_BYTES])
            del self._bytes[:HEADER_BYTES]
            try:
                header = parse_header(header_bytes, from_client=self._from_client)
                if self._from_client and header.kind == Kind.IMAGE:
                    self._write = self._open_image(header)
                self._header = header
            except FrameError as error:
                self._skip(error.skip or 0)
                raise
            self._missing = self._header.length
        header = self._header
        kept = header.length if header.kind != Kind.GENERATE else min(header.length, MAX_VERSION_1_REQUEST_BYTES)
        arrived = min(self._missing, len(self._bytes))
        if self._write is not None:
            with memoryview(self._bytes) as data, data[:arrived] as piece:
                self._write(piece)
        else:
            self._payload += self._bytes[: min(arrived, kept - len(self._payload))]
        del self._bytes[:arrived]
        self._missing -= arrived
        if self._missing:
            return None
        payload = bytes(self._payload)
        self._payload.clear()
        self._header = self._write = None
        return header, payload

    def _skip(self, more: int) -> None:
        self._skipping += more
        arrived = min(self._skipping, len(self._bytes))
        del self._bytes[:arrived]
        self._skipping -= arrived
