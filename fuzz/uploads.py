"""The target `uploads`: one client's bytes into the broker's real Connection, up to the jobs that would be queued."""

import asyncio
import json
import os
import socket
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias, cast

from fuzz.fds import no_descriptor_left
from fuzz.reading import Reader, pieces
from weave.broker.admission.audit import Audit
from weave.broker.admission.limits import Admission
from weave.broker.admission.principal import Principal, Requester, principal_of
from weave.broker.front.connection import Connection
from weave.broker.front.dispatch import Dispatcher
from weave.broker.schedule.job import GenerateJob, Job
from weave.broker.schedule.scheduler import Scheduler
from weave.config.child_configs import Access, BrokerConfig
from weave.config.schema import Limits
from weave.models.families import FAMILIES
from weave.protocol.channel import ChannelViolation, check_sealed_memfd
from weave.protocol.client_messages import Done, ModelOffer
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.inputs import inputs_of
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer

# The images of each job, in the order in which the jobs were queued.
Jobs: TypeAlias = list[list[bytes]]
_FAMILY = FAMILIES["sd1"]
_MAX_FRAMES = 60
_CONFIG = BrokerConfig(
    mode="user",
    models=(
        ModelOffer(
            id="shapes",
            family="sd1",
            title="",
            tasks=_FAMILY.tasks,
            bounds=_FAMILY.bounds,
            defaults=_FAMILY.defaults,
            schedulers=_FAMILY.schedulers,
        ),
    ),
    default_model="shapes",
    loras=(),
    embeddings=(),
    limits=Limits(burst_per_uid=1000, incoming_images=6),
    access=Access((os.getuid(),)),
    audit_prompts=False,
    deliver_fds=True,
)


def uploads(data: bytes) -> None:
    """How the stream is split makes no difference. Each job has the images that its request announced, each from one
    frame, and no frame is used twice; at the end nothing is held or counted."""
    reader = Reader(data)
    size = 1 + reader.byte()
    stream = _stream(reader)
    whole = queued([stream])
    assert queued(pieces(stream, max(size, len(stream) // 200))) == whole
    frames = [set(image) for images in whole for image in images]
    assert all(len(values) == 1 for values in frames)
    used = [value for (value,) in frames]
    assert len(used) == len(set(used))


def queued(stream: Iterable[bytes]) -> Jobs:
    """The jobs of a client that sends these pieces and disconnects."""
    loop = _loop()
    with no_descriptor_left():
        return loop.run_until_complete(_serve(stream))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


class _Queue:
    def __len__(self) -> int:
        return 0

    def waiting(self, _: object) -> int:
        return 0


class _Scheduler:
    """Ends each job at once."""

    def __init__(self) -> None:
        self.queue = _Queue()
        self.done: Jobs = []

    def loaded_model(self, _: int) -> str:
        return "shapes"

    def jobs(self) -> list[Job]:
        return []

    def cancel(self, job: Job) -> None:
        raise AssertionError(f"job {job.number} is over")

    def unload(self, _: Peer) -> None:
        raise RequestError(ErrorCode.INVALID_REQUEST, "not here")

    def submit(self, job: Job, *, seconds: float | None) -> None:
        assert seconds is None or isinstance(job, GenerateJob)
        if isinstance(job, GenerateJob):
            announced = inputs_of(job.task.parameters)
            assert len(announced) == len(job.memfds)
            for image, memfd in zip(announced, job.memfds, strict=True):
                _check(memfd, image.size)
            if announced:
                self.done.append([os.pread(memfd, 1 << 20, 0) for memfd in job.memfds])
        job.finish(Done())


def _check(memfd: int, size: int) -> None:
    try:
        check_sealed_memfd(memfd, size)
    except ChannelViolation as error:
        raise AssertionError("a job has an invalid memfd") from error


class _Silent:
    def write(self, *_: Any, **__: Any) -> None:
        pass


def _no_status() -> Any:
    raise RequestError(ErrorCode.INTERNAL, "not here")


class Broker:
    """The broker's front, with real connections."""

    def __init__(self) -> None:
        self.admission = Admission(_CONFIG)
        self.scheduler = _Scheduler()
        self._metrics, self._audit = Metrics(), cast(Audit, _Silent())
        self._dispatcher = Dispatcher(
            _CONFIG, self.admission, cast(Scheduler, self.scheduler), self._audit, self._metrics, _no_status
        )

    def connect(self, principal: Principal) -> tuple[Connection, socket.socket]:
        """A client's connection, and the client's end of it."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        requester, share = Requester(Peer.of(ours), principal), self.admission.enter(principal)
        shared = (self._dispatcher, self.admission, self._audit, self._metrics)
        return Connection(ours, requester, share, *shared), theirs


async def _serve(stream: Iterable[bytes]) -> Jobs:
    loop, broker = asyncio.get_running_loop(), Broker()
    connection, theirs = broker.connect(principal_of(_CONFIG.access, os.getuid()))
    serving = asyncio.create_task(connection.serve())
    reading = asyncio.create_task(_discard(theirs))
    try:
        for piece in stream:
            await loop.sock_sendall(theirs, piece)
            await asyncio.sleep(0)
    except (BrokenPipeError, ConnectionResetError):
        pass  # after a header that hides where the next frame starts
    theirs.shutdown(socket.SHUT_WR)
    await serving
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    theirs.close()
    assert not broker.admission._incoming, "images still count"
    return broker.scheduler.done


async def _discard(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        pass


def _stream(reader: Reader) -> bytes:
    """Frames of a client that is mostly honest. Each image frame is filled with a number of its own."""
    stream = bytearray()
    expected: dict[int, list[int]] = {}
    for frame in range(1, _MAX_FRAMES):
        if not reader.more:
            break
        choice = reader.byte()
        kind, number = choice & 7, (choice >> 3) % 4
        if kind == 7:
            stream += reader.take(reader.byte())
        elif kind == 6:
            payload = reader.take(1 + reader.byte()) or b"x"
            stream += pack_frame(Kind.CONTROL, number, payload)
        elif kind == 5:
            stream += _control(number + 8, {"op": "cancel", "request": number})
        elif kind == 4:
            stream += pack_frame(Kind.IMAGE, number, bytes([frame]) * (1 + reader.byte()))
        elif kind >= 2:  # the next image of a request that has announced some
            sizes = expected.get(number) or [1]
            stream += pack_frame(Kind.IMAGE, number, bytes([frame]) * sizes.pop(0))
        else:
            message, expected[number] = _request(reader, with_mask=kind == 1)
            stream += _control(number, message)
    return bytes(stream)


def _request(reader: Reader, *, with_mask: bool) -> tuple[dict[str, Any], list[int]]:
    """A request, and the sizes of its images."""
    width, height, channels = 1 + reader.byte() % 16, 1 + reader.byte() % 16, 1 + 2 * (reader.byte() % 2)
    message = {"op": "generate", "prompt": "x", "width": 64, "height": 64}
    image = {"width": width, "height": height}
    message |= {"image": image | {"channels": channels}} | ({"mask": image | {"channels": 1}} if with_mask else {})
    return message, [width * height * channels, *([width * height] if with_mask else [])]


def _control(number: int, message: dict[str, Any]) -> bytes:
    return pack_frame(Kind.CONTROL, number, json.dumps(message).encode())
