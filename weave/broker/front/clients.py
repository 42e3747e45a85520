"""All connections: who may connect, and what is cleaned up after a connection."""

import asyncio
import contextlib
import socket

from weave.broker.admission.access import is_allowed
from weave.broker.admission.audit import Audit
from weave.broker.admission.limits import Admission
from weave.broker.admission.principal import Requester, principal_of
from weave.broker.front.connection import Connection
from weave.broker.front.dispatch import Dispatcher
from weave.config.child_configs import Access
from weave.protocol.client_messages import Error, encode
from weave.protocol.errors import RequestError
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer


class Clients:
    """`last_was_dropped`: the broker ended the connection that ended last, and not its client."""

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
        """The UID of each open connection."""
        return tuple(connection.session.requester.uid for connection in self._connections)

    def accept(self, sock: socket.socket) -> None:
        """Takes ownership of `sock`. A peer that is not allowed is sent no byte, and none of its bytes is read."""
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
        connection = Connection(sock, requester, share, self._dispatcher, self._admission, self._audit, self._metrics)
        self._metrics.connections += 1
        self._connections[connection] = asyncio.create_task(self._serve(connection))

    async def serve_one(self, sock: socket.socket) -> None:
        """Attached mode: returns when the one client has disconnected."""
        self.accept(sock)
        await asyncio.gather(*self._connections.values())

    def reconfigure(self, access: Access) -> None:
        """Drop the connections of users who are no longer allowed."""
        self._access = access
        for connection in self._connections:
            if not is_allowed(access, connection.session.requester.peer, connection.sock):
                connection.drop("its user is no longer allowed")

    def fail_uploads(self, error: RequestError) -> None:
        """End all requests whose images are still arriving."""
        for connection in self._connections:
            connection.session.uploads.fail_all(error)

    async def flush(self, *, seconds: float) -> None:
        """Wait until every client has been sent everything, for at most `seconds`."""
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
    """Send the error, if the socket's buffer takes it, and close without waiting."""
    with contextlib.suppress(OSError):
        sock.send(pack_frame(Kind.CONTROL, 0, encode(error)), socket.MSG_NOSIGNAL)
    sock.close()
