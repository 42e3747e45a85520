"""One client's connection: it reads bytes, passes checked frames to the dispatcher, and writes replies and images."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from weave.broker.admission.audit import Audit
from weave.broker.admission.limits import Admission, Share, Unread
from weave.broker.admission.principal import Requester
from weave.broker.front.dispatch import Dispatcher
from weave.broker.front.outgoing import Outgoing
from weave.broker.front.reply import Version1Reply, Version2Reply
from weave.broker.front.session import Session
from weave.broker.schedule.job import Reply
from weave.protocol import version1
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Error, decode_op
from weave.protocol.errors import FrameError, RequestError
from weave.protocol.frames import FrameReader, Header, Kind
from weave.protocol.metrics import Metrics
from weave.protocol.waiting import readable

_READ_BYTES = 64 * 1024


class Disconnected(Exception):
    """The client disconnected or was dropped: nothing more is read from it."""


class Connection:
    """Implements Sink for its replies (reply.py) and Counted for the limits (limits.py)."""

    def __init__(
        self,
        sock: socket.socket,
        requester: Requester,
        share: Share,
        dispatcher: Dispatcher,
        admission: Admission,
        audit: Audit,
        metrics: Metrics,
    ) -> None:
        """`share` belongs to the requester's principal, the others to the broker."""
        self.session = Session(requester, self._refuse)
        self.share = share
        self.sock = sock
        self._outgoing = Outgoing(sock, share.unread)
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._admission = admission
        self._audit = audit
        self._frames = FrameReader(from_client=True, open_image=self.session.uploads.open)
        # The version to answer in before the first valid header: version 1 is the simpler one to parse.
        self._version = 1
        self._open = True
        # By the broker; the client had not disconnected.
        self.dropped = False
        self._serving: asyncio.Task[None] | None = None
        share.connections.add(self)

    async def serve(self) -> None:
        """Read requests and write answers until the client disconnects or is dropped."""
        self._serving = asyncio.current_task()
        writing = asyncio.create_task(self._outgoing.write())
        writing.add_done_callback(self._on_write_failed)
        try:
            await self._read_requests()
        except Disconnected:
            pass
        except asyncio.CancelledError:  # by _end()
            if self._open:
                raise
        finally:
            self._open = False
            self._outgoing.write_off()  # before any await: a closed connection must not count as unread
            writing.cancel()
            try:
                await asyncio.gather(writing, return_exceptions=True)
            finally:
                self._close()

    async def _read_requests(self) -> None:
        """Returns after a header that hides where the next frame starts. Raises Disconnected."""
        while self._open:
            try:
                header, payload = await self._next_frame()
            except FrameError as error:
                async with self.share.turn:
                    self._refuse_frame(error)
                    await asyncio.sleep(0)  # let the other connections run
                if error.skip is None:
                    self.dropped = True
                    await self.flush(seconds=1.0)
                    return
                await self._skip_refused()
                continue
            self._version = header.version
            async with self.share.turn:
                self._handle(header, payload)
                await asyncio.sleep(0)

    def write(self, data: bytes, memfd: int | None = None, *, size: int = 0, inline: bool = False) -> None:
        """Queue `data` and the `size` bytes of `memfd`. Takes ownership of `memfd`."""
        if not self._open:
            close_all([memfd] if memfd is not None else [])
            return
        self._outgoing.add(data, memfd, size, inline=inline)
        self._admission.check_unread(self.share)

    def may_deliver(self, size: int) -> bool:
        """Whether an image of `size` bytes may be sent as a descriptor. If so, it counts from now on."""
        return self._admission.may_deliver(self.session.requester.principal, size)

    def count_error(self, error: Error) -> None:
        """Count an error for the metrics."""
        errors = self._metrics.errors
        errors[error.code] = errors.get(error.code, 0) + 1

    @property
    def unread(self) -> Unread:
        """What the client has not read yet."""
        return self._outgoing.unread

    async def flush(self, *, seconds: float) -> None:
        """Wait until the client has been sent everything, for at most `seconds`."""
        if self._open:
            await self._outgoing.flush(seconds=seconds)

    def drop(self, reason: str) -> None:
        """End the connection; what the client has not read is lost."""
        if self._open:
            self.dropped = True
            self._metrics.clients_dropped += 1
            self._audit.write("client_dropped", self.session.requester.peer, reason=reason)
            self._end()

    def _handle(self, header: Header, payload: bytes) -> None:
        if header.version == 1:
            self._handle_version_1(header, payload)
        elif header.kind == Kind.IMAGE:
            self.session.uploads.complete(header)
        else:
            self._handle_version_2(header, payload)

    def _handle_version_1(self, header: Header, payload: bytes) -> None:
        reply = Version1Reply(self, version1.request_id(payload))
        try:
            self._dispatcher.handle(self.session, reply, version1.decode_request(payload, header.length))
        except RequestError as error:
            self._refuse(reply, error)

    def _handle_version_2(self, header: Header, payload: bytes) -> None:
        reply = Version2Reply(self, header.request)
        try:
            self.session.check_unused(header.request)
            self.session.uploads.forget(header.request)
            self._dispatcher.handle(self.session, reply, decode_op(payload))
        except RequestError as error:
            self._refuse(reply, error)
            self.session.uploads.discard(header.request)

    def _refuse(self, reply: Reply, error: RequestError) -> None:
        code, field = error.code.value, error.field
        self._audit.write("request_refused", self.session.requester.peer, code=code, field=field, request=reply.request)
        reply.send(Error.from_exception(error))

    def _refuse_frame(self, error: FrameError) -> None:
        """Answer in the header's version, if it is supported, else in the one used last."""
        self._audit.write("frame_refused", self.session.requester.peer, reason=error.message)
        version = error.version or self._version
        reply: Reply = Version2Reply(self, 0) if version == 2 else Version1Reply(self, version1.NO_REQUEST)
        reply.send(Error.from_exception(error))

    def _on_write_failed(self, writing: "asyncio.Task[None]") -> None:
        if writing.cancelled():
            return
        error = writing.exception()
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            self._end()  # the client disconnected before it had read its answers
        else:
            self.drop(f"cannot be written to: {error}")

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        self._outgoing.write_off()
        # Not shutdown(2): the seccomp filter refuses it, since it would also work on the listening socket.
        if self._serving is not None and self._serving is not asyncio.current_task():
            self._serving.cancel()

    async def _next_frame(self) -> tuple[Header, bytes]:
        """Waiting for a frame has no limit; a frame that has begun must be complete within frame_seconds."""
        if not self._frames.begun:
            await self._read()
        async with self._frame_deadline():
            while (frame := self._frames.next_frame()) is None:
                await self._read_more()
            return frame

    async def _skip_refused(self) -> None:
        """Discard the rest of a frame whose header was refused, under the same deadline."""
        async with self._frame_deadline():
            while self._frames.skipping:
                await self._read_more()

    @contextlib.asynccontextmanager
    async def _frame_deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._admission.limits.frame_seconds):
                yield
        except TimeoutError:
            self.drop("a frame was not complete in time")
            raise Disconnected from None

    async def _read_more(self) -> None:
        """Read more of a frame. A user may always have more to send, on many connections: these take turns."""
        async with self.share.turn:
            await asyncio.sleep(0)
        await self._read()

    async def _read(self) -> None:
        """Without room for ancillary data the kernel discards a client's descriptors; MSG_CTRUNC reports them."""
        while True:
            try:
                data, _, flags, _ = self.sock.recvmsg(_READ_BYTES)
                break
            except BlockingIOError:
                await readable(self.sock.fileno())
            except OSError:
                raise Disconnected from None
        if flags & socket.MSG_CTRUNC:
            self.drop("sent a descriptor")
        if not data or not self._open:
            raise Disconnected
        self._frames.feed(data)

    def _close(self) -> None:
        self._open = False
        self.session.uploads.close()
        self._outgoing.close()
        self.sock.close()
