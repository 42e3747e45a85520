"""All connections: who may have one, and what is left to do when one has ended."""

import asyncio
import contextlib
import socket

from weave.broker.admission.access import is_allowed
from weave.broker.admission.audit import Audit
from weave.broker.admission.limits import Admission
from weave.broker.admission.principal import Requester, principal_of
from weave.broker.front.connection import Connection
from weave.broker.front.dispatch import Dispatcher
from weave.broker.front.session import Session
from weave.config.child_configs import Access
from weave.protocol.client_messages import Error, encode
from weave.protocol.errors import RequestError
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer


class Clients:
    """`last_was_dropped`: the connection that ended last was ended by us, and not by its client."""

    def __init__(
        self, access: Access, admission: Admission, dispatcher: Dispatcher, audit: Audit, metrics: Metrics
    ) -> None:
        self.last_was_dropped = False
        self._access = access
        self._admission = admission
        self._dispatcher = dispatcher
        self._audit = audit
        self._metrics = metrics
        self._connections: dict[Connection, asyncio.Task[None]] = {}

    def uids(self) -> tuple[int, ...]:
        """Of each open connection."""
        return tuple(connection.session.requester.uid for connection in self._connections)

    def accept(self, sock: socket.socket) -> None:
        """Takes ownership of `sock`. A peer that is not allowed gets no byte, and none of its bytes is read."""
        sock.setblocking(False)
        peer = Peer.of(sock)
        if not is_allowed(self._access, peer, sock):
            sock.close()
            self._metrics.connections_refused += 1
            self._audit.stranger(peer)
            return
        principal = principal_of(self._access, peer.uid)
        try:
            share = self._admission.enter(principal)
        except RequestError as error:
            self._metrics.connections_refused += 1
            self._audit.write("connection_refused", peer, reason=error.message)
            _refuse(sock, Error.from_exception(error))
            return
        requester = Requester(peer, principal)
        connection = Connection(
            sock, Session(requester), share, self._dispatcher, self._admission, self._audit, self._metrics
        )
        self._metrics.connections += 1
        self._connections[connection] = asyncio.create_task(self._serve(connection))

    async def serve_one(self, sock: socket.socket) -> None:
        """Attached: returns when the one client is gone."""
        self.accept(sock)
        await asyncio.gather(*self._connections.values())

    def reconfigure(self, access: Access) -> None:
        """Drop those that are not allowed any more."""
        self._access = access
        for connection in self._connections:
            if not is_allowed(access, connection.session.requester.peer, connection.sock):
                connection.drop("its user is not allowed any more")

    async def flush(self, *, seconds: float) -> None:
        """Wait until all have been sent everything, or do not read."""
        await asyncio.gather(*(connection.flush(seconds=seconds) for connection in self._connections))

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            del self._connections[connection]
            self._admission.leave(connection)
            self.last_was_dropped = connection.dropped
            self._dispatcher.disconnected(connection.session, still_connected=self.uids())


def _refuse(sock: socket.socket, error: Error) -> None:
    """Say why, as far as it fits, and close: this connection is one too many to wait for."""
    with contextlib.suppress(OSError):
        sock.send(pack_frame(Kind.CONTROL, 0, encode(error)), socket.MSG_NOSIGNAL)
    sock.close()
