"""Requests with images, frame by frame, and whether anything is left of them."""

import json
import socket
from typing import Any

from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT
from tests.support.wire import receive_frame, send_2
from weave.protocol.frames import Kind, pack_frame, pack_header

SIDE = 64
IMAGE, GREY = {"width": SIDE, "height": SIDE}, {"width": SIDE, "height": SIDE, "channels": 1}
SIZE, GREY_SIZE = SIDE * SIDE * 3, SIDE * SIDE
GENERATE = {"op": "generate", "model": "shapes", "prompt": PROMPT, "steps": 2, "seed": 1, "strength": 1.0}
WITH_IMAGE = GENERATE | {"image": IMAGE}
# As much as LIMITS allow one user.
LIMITS = "incoming_bytes = 1048576\nincoming_images = 4\nburst_per_uid = 10000"
BOTH = {"image": {"width": 512, "height": 512}, "mask": {"width": 512, "height": 512, "channels": 1}}
EVERYTHING = GENERATE | BOTH | {"width": SIDE, "height": SIDE}


def send_image(connection: socket.socket, data: bytes, request: int = 7) -> None:
    connection.sendall(pack_frame(Kind.IMAGE, request, data))


def begin_image(connection: socket.socket, size: int, request: int = 7, sent: int = 0) -> None:
    """A frame of `size` bytes, of which only `sent` are sent."""
    connection.sendall(pack_header(Kind.IMAGE, request, size) + bytes(sent))


def receive(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The next event, with its request's number. Images are skipped."""
    while True:
        header, payload = receive_frame(connection)
        if header.kind is Kind.CONTROL:
            return header.request, json.loads(payload)


def last_of(connection: socket.socket, request: int = 7) -> dict[str, Any]:
    """The last event of a request; those of others are skipped."""
    while True:
        number, event = receive(connection)
        if number == request and event["event"] in ("done", "error", "status"):
            return event


def image_of(connection: socket.socket, request: int = 7) -> bytes:
    """The first image frame of a request that succeeds."""
    image = b""
    while True:
        header, payload = receive_frame(connection)
        if header.request == request and header.kind is Kind.IMAGE:
            image = image or payload
        elif header.request == request and (event := json.loads(payload))["event"] in ("done", "error"):
            assert event["event"] == "done", event
            return image


def lives_on(connection: socket.socket) -> bool:
    """Whether the next answer is that to `status`."""
    send_2(connection, {"op": "status"}, 99)
    event: str = receive(connection)[1]["event"]
    return event == "status"


def inputs_of(daemon: Daemon, process: str = "broker") -> int:
    """How many of the clients' images a process holds."""
    return sum("weave-input" in link for link in descriptors_of(daemon.pid_of(process)))


def nothing_is_left(daemon: Daemon) -> bool:
    """Whether the broker holds no image, and counts none: with LIMITS one user can announce everything again."""
    wait_for(lambda: inputs_of(daemon) == 0)
    with daemon.connect() as connection:

        def has_room() -> bool:
            send_2(connection, EVERYTHING)
            send_2(connection, {"op": "cancel", "request": 7}, 8)
            answers = [receive(connection)[1] for _ in range(2)]
            return [answer.get("code") for answer in answers] == ["cancelled", None]

        return bool(wait_for(has_room, 20))  # a client that has just disconnected may still count
