"""The client protocol at the level of frames, over any stream socket."""

import json
import socket
import struct
from typing import Any

from weave.protocol import version1
from weave.protocol.frames import Header, Kind, pack_frame, parse_header

PROMPT = b"a red circle on a blue background"
DEFAULTS = {"request_id": b"REQUEST1", "model": 0, "width": 64, "height": 64, "steps": 2, "cfg_scale": 3.0, "seed": 1}


def generate_1(*, data: bytes = PROMPT, slices: list[tuple[int, int]] | None = None, **changed: Any) -> bytes:
    """A version 1 request. Each slice is (offset, length); the default is all of the data."""
    fields = (DEFAULTS | changed).values()
    flat = [number for pair in slices or [(0, len(data))] * 3 for number in pair]
    payload = struct.pack(">8sIIIIfQ6I", *fields, *flat) + data
    return pack_frame(Kind.GENERATE, 0, payload, version=1)


def receive_1(connection: socket.socket) -> version1.Reply:
    header, payload = receive_frame(connection)
    return version1.decode_reply(header.kind, payload)


def send_2(connection: socket.socket, message: dict[str, Any], request: int = 7) -> None:
    connection.sendall(pack_frame(Kind.CONTROL, request, json.dumps(message).encode()))


def receive_2(connection: socket.socket) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(receive_frame(connection)[1])
    return event


def receive_frame(connection: socket.socket) -> tuple[Header, bytes]:
    header = parse_header(exactly(connection, 16), from_client=False)
    return header, exactly(connection, header.length)


def exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "closed"
        data += more
    return bytes(data)
