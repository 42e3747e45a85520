"""Frames of the client protocol: one header of 16 bytes before every payload, both ways.

magic `WEVE` · version u16 · kind u16 · length u32 · request u32, big-endian (docs/protocol.md)
"""

import enum
import struct
from typing import NamedTuple

from weave.protocol.errors import FrameError

MAGIC = b"WEVE"
VERSION = 2
SUPPORTED_VERSIONS = (VERSION,)
MAX_CONTROL_BYTES = 64 * 1024
MAX_IMAGE_BYTES = 0xFFFF_FFFF

_HEADER = struct.Struct(">4sHHII")
HEADER_BYTES = _HEADER.size


class Kind(enum.IntEnum):
    """What a version 2 payload is."""

    CONTROL = 0x0010  # a JSON message
    IMAGE = 0x0011  # bytes of an image, announced by the control message before it


class Header(NamedTuple):
    """A checked header. `length` counts the payload's bytes; `request` is the client's own number."""

    version: int
    kind: Kind
    length: int
    request: int


def pack_header(kind: Kind, request: int, length: int) -> bytes:
    """The 16 bytes that go before a payload of `length` bytes."""
    return _HEADER.pack(MAGIC, VERSION, kind, length, request)


def pack_frame(kind: Kind, request: int, payload: bytes) -> bytes:
    """A whole frame."""
    return pack_header(kind, request, len(payload)) + payload


def parse_header(data: bytes, *, from_client: bool) -> Header:
    """Check the 16 bytes `data`; only the daemon sends images, so a client's frame is a control message.

    Raises FrameError: after a bad header nobody can say where the next one starts.
    """
    magic, version, kind, length, request = _HEADER.unpack(data)
    if magic != MAGIC:
        raise FrameError(f"bad magic 0x{magic.hex()}; every frame starts with WEVE", field="magic")
    if version not in SUPPORTED_VERSIONS:
        supported = ", ".join(str(known) for known in SUPPORTED_VERSIONS)
        raise FrameError(f"unsupported version {version}; supported: {supported}", field="version", value=version)
    if kind != Kind.CONTROL and (from_client or kind != Kind.IMAGE):
        raise FrameError(f"unknown kind 0x{kind:04x}; expected 0x{Kind.CONTROL:04x}", field="kind", value=kind)
    limit = MAX_CONTROL_BYTES if kind == Kind.CONTROL else MAX_IMAGE_BYTES
    if not 1 <= length <= limit:
        raise FrameError(f"length is {length}; it must be from 1 to {limit}", field="length", value=length)
    return Header(version, Kind(kind), length, request)
