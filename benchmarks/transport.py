"""What the way through the broker costs: the real, locked-down broker between a client and a worker that does nothing
but copy a ready image. Version 1, version 2 inline and version 2 by descriptor take turns, so that whatever else the
machine does hits them all."""

import asyncio
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prctl

from tests.support.daemon import wait_for
from tests.support.wire import generate_1, receive_1
from weave.client.codec import Decoder
from weave.config.families import FAMILIES
from weave.config.parts import Access, BrokerConfig
from weave.config.schema import Limits
from weave.protocol.channel import Channel, close_all, received_descriptors, sealed_memfd, socket_pair
from weave.protocol.client_messages import Done, Error, Generate, ModelOffer, encode
from weave.protocol.control_messages import StartWorker
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.worker_messages import Finished, Load, Loaded, Made, Memory, Run, ToWorker
from weave.supervisor.broker import Broker
from weave.supervisor.socket import ListeningSocket

SIDES = {64: 150, 1024: 60}
IN_FLIGHT, REQUESTS = 32, 640
MEMORY = Memory(0, 0)


def measure() -> dict[str, float]:
    path = Path(tempfile.mkdtemp(prefix="weave-bench-")) / "run" / "weave.sock"
    server = os.fork()
    if server == 0:
        try:
            asyncio.run(serve(path))
        finally:
            os._exit(1)
    try:
        wait_for(lambda: connect(path))
        return round_trips(path) | in_flight(path)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def round_trips(path: Path) -> dict[str, float]:
    figures = {}
    ways = {"v1": Version1(path), "v2 inline": Version2(path, "inline"), "v2 memfd": Version2(path, "fd")}
    for side, rounds in SIDES.items():
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                way.send(1, side)
                assert way.receive()[1] == side * side * 3
                times[name].append(time.perf_counter() - started)
        for name in ways:
            median = statistics.median(times[name])
            figures[f"{name}, {side}x{side} raw, ms"] = median * 1000
            figures[f"{name}, {side}x{side} raw, MB/s"] = side * side * 3 / median / 1e6
    return figures


def in_flight(path: Path) -> dict[str, float]:
    figures = {}
    for name, way in {
        "v1": Version1(path),
        "v2 inline": Version2(path, "inline"),
        "v2 memfd": Version2(path, "fd"),
    }.items():
        started: dict[int, float] = {}
        times = []
        for number in range(1, REQUESTS + 1):
            started[number] = time.perf_counter()
            way.send(number, 64)
            if len(started) == IN_FLIGHT:
                times.append(time.perf_counter() - started.pop(way.receive()[0]))
        while started:
            times.append(time.perf_counter() - started.pop(way.receive()[0]))
        figures[f"{name}, {IN_FLIGHT} in flight, p99 ms"] = statistics.quantiles(times, n=100)[98] * 1000
    return figures


class Version1:
    """A client that does as little as can be done."""

    def __init__(self, path: Path) -> None:
        self._socket = connect(path)

    def send(self, number: int, side: int) -> None:
        self._socket.sendall(generate_1(request_id=number.to_bytes(8, "big"), width=side, height=side))

    def receive(self) -> tuple[int, int]:
        """The request's number and the bytes of its image."""
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
            prompt="x", model="m", width=side, height=side, steps=2, seed=1, format="raw", deliver=self._deliver
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
    try:
        connection.connect(str(path))
    except ConnectionRefusedError:  # bound, and not listening yet
        raise FileNotFoundError from None
    return connection


async def serve(path: Path) -> None:
    """The supervisor's part, but for what starts a worker."""
    family = FAMILIES["sdxl"]
    model = ModelOffer(
        id="m", family="sdxl", title="", bounds=family.bounds, defaults=family.defaults, schedulers=family.schedulers
    )
    limits = Limits(
        queue=100, queue_per_uid=100, requests_per_second=10_000, burst_per_uid=100_000, delivered_bytes=2**40
    )
    config = BrokerConfig(
        mode="user",
        models=(model,),
        default_model="m",
        limits=limits,
        access=Access(uids=(os.getuid(),)),
        audit_prompts=False,
        deliver_fds=True,
    )
    listening = ListeningSocket(path)
    broker = Broker(config, listening.socket.fileno(), attached=False, account=None)
    await broker.lock_down((), seconds=20, bounding_set_empty=bool(prctl.cap_effective.setpcap))
    while True:
        request = await broker.next_request()
        if isinstance(request, StartWorker):
            ours, theirs = socket_pair()
            run_in_thread(lambda ours=ours: work(Channel(ours, ToWorker)))
            broker.worker_started(request.worker, (), theirs.detach())


def work(channel: Channel[ToWorker]) -> None:
    ready = {side: os.urandom(side * side * 3) for side in SIDES}
    while True:
        message, _ = channel.receive()
        if isinstance(message, Load):
            channel.send(Loaded(device="none", dtype="none", memory=MEMORY))
        elif isinstance(message, Run):
            image = ready[message.parameters.width]
            memfd = sealed_memfd("image", image)
            channel.send(Made(job=message.job, image=0, size=len(image)), (memfd,))
            close_all([memfd])
            channel.send(Finished(job=message.job, memory=MEMORY))


def run_in_thread(action: Callable[[], None]) -> None:
    threading.Thread(target=action, daemon=True).start()


if __name__ == "__main__":
    for figure, value in measure().items():
        print(f"{figure:40} {value:10.3f}")
