"""One client's connection: bytes in, checked frames out to the requests; events and images back."""

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from weave import log
from weave.broker.job import Job
from weave.broker.peer import Peer
from weave.config.schema import Limits
from weave.protocol.channel import close_all
from weave.protocol.client_messages import ClientMessage, Error, Event, Image, Preview, decode_op, encode
from weave.protocol.errors import ErrorCode, FrameError, RequestError
from weave.protocol.frames import HEADER_BYTES, Header, Kind, pack_frame, pack_header, parse_header
from weave.protocol.waiting import readable, writable

_READ_BYTES = 64 * 1024
_SENDFILE_BYTES = 8 * 1024 * 1024


class ClientGone(Exception):
    """Nothing more can be read from the client, or must be."""


class _Outgoing(Struct):
    """`data`, with the descriptor that goes along; or `size` bytes of `memfd` itself, where data is empty."""

    data: bytes
    size: int
    memfd: int | None = None
    sent: int = 0


class Connection:
    """`jobs` are those in flight, by the client's own request number."""

    def __init__(self, sock: socket.socket, peer: Peer, limits: Limits) -> None:
        self.peer = peer
        self.jobs: dict[int, Job] = {}
        self._sock = sock
        self._limits = limits
        self._incoming = bytearray()
        self._outgoing: deque[_Outgoing] = deque()
        self._outgoing_bytes = 0
        self._more_outgoing = asyncio.Event()
        self._open = True

    async def serve(self, handle: Callable[["Connection", int, ClientMessage], None]) -> None:
        """Read requests until the client is gone or must go; write what there is to say meanwhile."""
        writing = asyncio.create_task(self._write())
        try:
            while True:
                header, payload = await self._next_frame()
                self._handle(header, payload, handle)
        except ClientGone:
            pass
        except FrameError as error:
            log.write("broker", "frame_refused", peer=self.peer, reason=error.message)
            self.send(0, Error.from_exception(error))
            await self.flush(seconds=1.0)
        finally:
            self._open = False
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._close()

    def send(self, request: int, event: Event, memfd: int | None = None) -> None:
        """Queue an event. An image's bytes come in `memfd`, which is ours from here on."""
        if not self._open:
            close_all([memfd] if memfd is not None else [])
            return
        frame = pack_frame(Kind.CONTROL, request, encode(event))
        if memfd is None:
            self._queue(_Outgoing(frame, len(frame)))
        elif isinstance(event, Image) and event.deliver == "fd":
            self._queue(_Outgoing(frame, len(frame), memfd))
        elif isinstance(event, Image | Preview):
            frame += pack_header(Kind.IMAGE, request, event.size)
            self._queue(_Outgoing(frame, len(frame)))
            self._queue(_Outgoing(b"", event.size, memfd))

    def refuse(self, error: Error) -> None:
        """Say why, as far as it fits, and close: this connection is one too many to wait for."""
        with contextlib.suppress(OSError):
            self._sock.send(pack_frame(Kind.CONTROL, 0, encode(error)), socket.MSG_NOSIGNAL)
        self._close()

    async def flush(self, *, seconds: float) -> None:
        """Wait until the client has been sent everything, or does not read."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._outgoing and self._open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def drop(self, reason: str) -> None:
        """End the connection; whatever the client has not read is lost."""
        if self._open:
            log.write("broker", "client_dropped", peer=self.peer, reason=reason)
            self._open = False
            # The reader wakes up at the end of the stream, and cleans up.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _handle(
        self, header: Header, payload: bytes, handle: Callable[["Connection", int, ClientMessage], None]
    ) -> None:
        try:
            if header.request in self.jobs:
                raise RequestError(
                    ErrorCode.INVALID_REQUEST,
                    f"request {header.request} is in flight already",
                    field="request",
                    value=header.request,
                )
            handle(self, header.request, decode_op(payload))
        except RequestError as error:
            log.write(
                "broker",
                "request_refused",
                peer=self.peer,
                code=error.code.value,
                field=error.field,
                request=header.request,
            )
            self.send(header.request, Error.from_exception(error))

    async def _next_frame(self) -> tuple[Header, bytes]:
        """A frame may be long in coming, but once begun it must be finished within frame_seconds."""
        if not self._incoming:
            await self._read()
        try:
            async with asyncio.timeout(self._limits.frame_seconds):
                header = parse_header(await self._take(HEADER_BYTES), from_client=True)
                return header, await self._take(header.length)
        except TimeoutError:
            self.drop("a frame was begun and not finished in time")
            raise ClientGone from None

    async def _take(self, size: int) -> bytes:
        while len(self._incoming) < size:
            await self._read()
        taken = bytes(self._incoming[:size])
        del self._incoming[:size]
        return taken

    async def _read(self) -> None:
        """With no room for ancillary data a client's descriptors never get in; MSG_CTRUNC tells of them."""
        while True:
            try:
                data, _, flags, _ = self._sock.recvmsg(_READ_BYTES)
                break
            except BlockingIOError:
                await readable(self._sock.fileno())
            except OSError:
                raise ClientGone from None
        if flags & socket.MSG_CTRUNC:
            self.drop("sent a descriptor")
        if not data or not self._open:
            raise ClientGone
        self._incoming += data

    def _queue(self, item: _Outgoing) -> None:
        self._outgoing.append(item)
        self._outgoing_bytes += item.size
        self._more_outgoing.set()
        if self._outgoing_bytes > self._limits.outgoing_bytes:
            self.drop(f"left more than {self._limits.outgoing_bytes} bytes unread")

    async def _write(self) -> None:
        while True:
            while self._outgoing:
                await self._write_item(self._outgoing[0])
                item = self._outgoing.popleft()
                self._outgoing_bytes -= item.size
                close_all([item.memfd] if item.memfd is not None else [])
            self._more_outgoing.clear()
            await self._more_outgoing.wait()

    async def _write_item(self, item: _Outgoing) -> None:
        while item.sent < item.size:
            try:
                item.sent += self._write_some(item)
            except BlockingIOError:
                await writable(self._sock.fileno())
            except OSError:  # the client is gone: the reader sees it too
                await asyncio.Event().wait()

    def _write_some(self, item: _Outgoing) -> int:
        """Image bytes go from the memfd to the socket inside the kernel, never through this process."""
        if not item.data and item.memfd is not None:
            return os.sendfile(self._sock.fileno(), item.memfd, item.sent, min(item.size - item.sent, _SENDFILE_BYTES))
        descriptors = [item.memfd] if item.memfd is not None and item.sent == 0 else []
        return socket.send_fds(self._sock, [item.data[item.sent :]], descriptors, socket.MSG_NOSIGNAL)

    def _close(self) -> None:
        self._open = False
        for item in self._outgoing:
            close_all([item.memfd] if item.memfd is not None else [])
        self._outgoing.clear()
        self._sock.close()
