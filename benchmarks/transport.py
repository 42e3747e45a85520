"""The cost of the daemon's transport: the real daemon, with a worker that only copies a ready image.

Version 1, version 2 inline and version 2 by descriptor alternate, so that the machine's load affects all of them.
"""

import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any, Protocol

from tests.support.builds import build
from tests.support.daemon import DEMO_MODEL, Daemon
from tests.support.seams import replaced
from tests.support.wire import generate_1, receive_1
from weave.client.codec import Decoder
from weave.protocol.channel import close_all, received_descriptors
from weave.protocol.client_messages import Done, Error, Generate, encode
from weave.protocol.frames import Kind, pack_frame

SIDES = {64: 150, 1024: 60}
IN_FLIGHT, REQUESTS = 32, 640
CONFIG = f"""
[limits]
queue = 100
queue_per_uid = 100
requests_per_second = 10000.0
burst_per_uid = 100000
delivered_bytes = 17179869184
[models.shapes]
path = "{DEMO_MODEL}"
family = "sd1"
bounds = {{ width = {{ min = 64, max = 1024 }}, height = {{ min = 64, max = 1024 }} }}
"""
SEND_ZEROS = """
    run = generation.run
    size = run.parameters.width * run.parameters.height * 3
    ready = globals().setdefault("ready", {})
    _send(generation, Made(job=run.job, image=0, size=size), ready.setdefault(size, bytes(size)))
    return Tokens()
"""


def measure(share: float) -> dict[str, float]:
    """`share` is the fraction of the usual rounds."""
    ready_image = replaced("gpu_worker/generation.py", "generate", SEND_ZEROS)
    daemon = Daemon(CONFIG, command=build((ready_image,))).wait_until_serving()
    try:
        with daemon.client() as client:
            client.load_model("shapes")
        return round_trips(daemon.socket, share) | in_flight(daemon.socket, share)
    finally:
        daemon.stop()


class Transport(Protocol):
    """One way to send a request and receive its image."""

    def send(self, number: int, side: int) -> None: ...

    def receive(self) -> tuple[int, int]:
        """The request's number and the bytes of its image."""


def transports(path: Path) -> dict[str, Transport]:
    return {"v1": Version1(path), "v2 inline": Version2(path, "inline"), "v2 memfd": Version2(path, "fd")}


def round_trips(path: Path, share: float) -> dict[str, float]:
    figures = {}
    ways = transports(path)
    for side, rounds in SIDES.items():
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(max(2, round(rounds * share))):
            for name, way in ways.items():
                started = time.perf_counter()
                way.send(1, side)
                assert way.receive()[1] == side * side * 3
                times[name].append(time.perf_counter() - started)
        first = statistics.median(times["v1"])
        for name in ways:
            median = statistics.median(times[name])
            figures[f"{name}, {side}x{side} raw, ms"] = median * 1000
            figures[f"{name}, {side}x{side} raw, MB/s"] = side * side * 3 / median / 1e6
            figures[f"{name}, {side}x{side} raw, ratio to v1"] = median / first
    return figures


def in_flight(path: Path, share: float) -> dict[str, float]:
    figures = {}
    for name, way in transports(path).items():
        started: dict[int, float] = {}
        times = []
        for number in range(1, max(IN_FLIGHT, round(REQUESTS * share)) + 1):
            started[number] = time.perf_counter()
            way.send(number, 64)
            if len(started) == IN_FLIGHT:
                times.append(time.perf_counter() - started.pop(way.receive()[0]))
        while started:
            times.append(time.perf_counter() - started.pop(way.receive()[0]))
        figures[f"{name}, {IN_FLIGHT} in flight, p99 ms"] = statistics.quantiles(times, n=100)[98] * 1000
    return figures


class Version1:
    """The smallest possible client."""

    def __init__(self, path: Path) -> None:
        self._socket = connect(path)

    def send(self, number: int, side: int) -> None:
        self._socket.sendall(generate_1(request_id=number.to_bytes(8, "big"), width=side, height=side))

    def receive(self) -> tuple[int, int]:
        reply: Any = receive_1(self._socket)
        return int.from_bytes(reply.request_id, "big"), len(reply.pixels)


class Version2:
    def __init__(self, path: Path, deliver: Any) -> None:
        self._socket = connect(path)
        self._decoder = Decoder()
        self._deliver = deliver
        self._images: dict[int, int] = {}
        self._finished: list[tuple[int, int]] = []

    def send(self, number: int, side: int) -> None:
        wanted = Generate(
            prompt="x", model="shapes", width=side, height=side, steps=2, seed=1, format="raw", deliver=self._deliver
        )
        self._socket.sendall(pack_frame(Kind.CONTROL, number, encode(wanted)))

    def receive(self) -> tuple[int, int]:
        while not self._finished:
            data, ancillary, _, _ = self._socket.recvmsg(1024 * 1024, socket.CMSG_SPACE(64))
            for answer in self._decoder.feed(data, received_descriptors(ancillary)):
                assert not isinstance(answer.event, Error), answer
                if answer.memfd is not None:
                    self._images[answer.request] = len(os.pread(answer.memfd, 2**30, 0))
                    close_all([answer.memfd])
                elif answer.data:
                    self._images[answer.request] = len(answer.data)
                elif isinstance(answer.event, Done):
                    self._finished.append((answer.request, self._images.pop(answer.request)))
        return self._finished.pop(0)


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection
