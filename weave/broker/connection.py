"""One client's connection: bytes in, checked frames out to the requests; replies and images back."""

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from weave.broker.audit import Audit
from weave.broker.job import Job
from weave.broker.reply import Reply, Version1Reply, Version2Reply
from weave.config.schema import Limits
from weave.protocol import version1
from weave.protocol.channel import close_all
from weave.protocol.client_messages import ClientMessage, Error, decode_op, encode
from weave.protocol.errors import ErrorCode, FrameError, RequestError
from weave.protocol.frames import FrameReader, Header, Kind, pack_frame
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer
from weave.protocol.waiting import readable, writable

_READ_BYTES = 64 * 1024
_SENDFILE_BYTES = 8 * 1024 * 1024

# Raises RequestError.
Handle: TypeAlias = Callable[[Reply, ClientMessage | version1.Request], None]


class ClientGone(Exception):
    """Nothing more can be read from the client, or must be."""


class _Outgoing(Struct):
    """`data`, then the `size` bytes of `memfd`: themselves where inline, else as the descriptor, which goes along."""

    data: bytes
    memfd: int | None
    size: int
    inline: bool
    sent: int = 0

    @property
    def end(self) -> int:
        return len(self.data) + (self.size if self.inline else 0)


class Connection:
    """`jobs` are those in flight; `metrics` are the broker's."""

    def __init__(self, sock: socket.socket, peer: Peer, limits: Limits, audit: Audit, metrics: Metrics) -> None:
        self.peer = peer
        self.jobs: set[Job] = set()
        self._sock = sock
        self._limits = limits
        self._audit = audit
        self.metrics = metrics
        self._frames = FrameReader(from_client=True)
        # A client that has not been understood yet is told so in version 1, which is the simplest to read.
        self._version = 1
        self._outgoing: deque[_Outgoing] = deque()
        self._outgoing_bytes = 0
        self._more_outgoing = asyncio.Event()
        self._open = True

    async def serve(self, handle: Handle) -> None:
        """Read requests until the client is gone or must go; write what there is to say meanwhile."""
        writing = asyncio.create_task(self._write())
        try:
            while True:
                header, payload = await self._next_frame()
                self._version = header.version
                self._handle(header, payload, handle)
                await asyncio.sleep(0)  # the other connections get their turn
        except ClientGone:
            pass
        except FrameError as error:
            self._audit.write("frame_refused", self.peer, reason=error.message)
            version = error.version or self._version
            reply = Version2Reply(self, 0) if version == 2 else Version1Reply(self, version1.NO_REQUEST)
            reply.send(Error.from_exception(error))
            await self.flush(seconds=1.0)
        finally:
            self._open = False
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._close()

    def write(self, data: bytes, memfd: int | None = None, *, size: int = 0, inline: bool = False) -> None:
        """Queue `data` and the `memfd` of `size` bytes, which is ours from here on."""
        if not self._open:
            close_all([memfd] if memfd is not None else [])
            return
        self._outgoing.append(_Outgoing(data, memfd, size, inline))
        self._outgoing_bytes += len(data) + size
        self._more_outgoing.set()
        if self._outgoing_bytes > self._limits.outgoing_bytes:
            self.drop(f"left more than {self._limits.outgoing_bytes} bytes unread")

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
            self.metrics.clients_dropped += 1
            self._audit.write("client_dropped", self.peer, reason=reason)
            self._open = False
            # The reader wakes up at the end of the stream, and cleans up.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _handle(self, header: Header, payload: bytes, handle: Handle) -> None:
        reply: Reply
        if header.version == 1:
            reply = Version1Reply(self, version1.request_id(payload))
        else:
            reply = Version2Reply(self, header.request)
        try:
            if header.version == 1:
                handle(reply, version1.decode_request(payload, header.length))
            else:
                self._check_unused(header.request)
                handle(reply, decode_op(payload))
        except RequestError as error:
            code, field = error.code.value, error.field
            self._audit.write("request_refused", self.peer, code=code, field=field, request=reply.request)
            reply.send(Error.from_exception(error))

    def _check_unused(self, request: int) -> None:
        if any(job.reply.request == request for job in self.jobs):
            raise RequestError(
                ErrorCode.INVALID_REQUEST, f"request {request} is in flight already", field="request", value=request
            )

    async def _next_frame(self) -> tuple[Header, bytes]:
        """A frame may be long in coming, but once begun it must be finished within frame_seconds."""
        if not self._frames.begun:
            await self._read()
        try:
            async with asyncio.timeout(self._limits.frame_seconds):
                while (frame := self._frames.next_frame()) is None:
                    await self._read()
                return frame
        except TimeoutError:
            self.drop("a frame was begun and not finished in time")
            raise ClientGone from None

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
        self._frames.feed(data)

    async def _write(self) -> None:
        while True:
            while self._outgoing:
                await self._write_item(self._outgoing[0])
                item = self._outgoing.popleft()
                self._outgoing_bytes -= len(item.data) + item.size
                close_all([item.memfd] if item.memfd is not None else [])
            self._more_outgoing.clear()
            await self._more_outgoing.wait()

    async def _write_item(self, item: _Outgoing) -> None:
        while item.sent < item.end:
            try:
                item.sent += self._write_some(item)
            except BlockingIOError:
                await writable(self._sock.fileno())
            except OSError:  # the client is gone: the reader sees it too
                await asyncio.Event().wait()

    def _write_some(self, item: _Outgoing) -> int:
        """Image bytes go from the memfd to the socket inside the kernel, never through this process."""
        offset = item.sent - len(item.data)
        if offset >= 0 and item.memfd is not None:
            return os.sendfile(self._sock.fileno(), item.memfd, offset, min(item.size - offset, _SENDFILE_BYTES))
        descriptors = [item.memfd] if item.memfd is not None and not item.inline and item.sent == 0 else []
        return socket.send_fds(self._sock, [item.data[item.sent :]], descriptors, socket.MSG_NOSIGNAL)

    def _close(self) -> None:
        self._open = False
        for item in self._outgoing:
            close_all([item.memfd] if item.memfd is not None else [])
        self._outgoing.clear()
        self._sock.close()
