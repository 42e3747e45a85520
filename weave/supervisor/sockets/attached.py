"""Attached mode: we connect to the program that started us, and serve it alone."""

import contextlib
import os
import select
import socket
import time
from pathlib import Path

from weave import log
from weave.config.schema import ConfigError
from weave.protocol.peer import Peer, refuse_descriptors
from weave.protocol.waiting import readable
from weave.supervisor.sockets.client_socket import ClientSocket

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.01
_STANDARD_INPUT = 0


class AttachedSocket(ClientSocket):
    """The connection to our only client. The daemon exits with it."""

    attached = True

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if no process listens on `path`, or another user's does: it is not sent a byte."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_SECONDS)
        try:
            _connect(connection, path)
        except OSError as error:
            connection.close()
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        # On the connecting side these are the credentials of the process that called listen(2): unix(7).
        listener = Peer.of(connection)
        if listener.uid != os.geteuid():
            connection.close()
            raise ConfigError(f"{path}: the listener's UID is {listener.uid}; it must be ours, {os.geteuid()}")
        refuse_descriptors(connection)
        log.write("supervisor", "attached", peer=listener, exe=_executable(listener.pid))
        super().__init__(path, connection)

    async def ended(self) -> None:
        """Returns when the connection or our standard input has hung up. Neither is read."""
        with select.epoll() as hang_ups:
            hang_ups.register(self.socket, select.EPOLLRDHUP)
            # epoll(7) takes neither /dev/null nor a regular file, which have no end to wait for.
            with contextlib.suppress(PermissionError):
                hang_ups.register(_STANDARD_INPUT, select.EPOLLRDHUP)
            await readable(hang_ups.fileno())


def _connect(connection: socket.socket, path: Path) -> None:
    """connect(2), again while the listener's backlog is full: with a timeout set it then fails with EAGAIN instead of
    waiting (unix(7))."""
    end = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(0, f"the listener did not accept a connection in {_CONNECT_SECONDS:g} s") from None
            time.sleep(_RETRY_SECONDS)


def _executable(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
