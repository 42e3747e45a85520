"""accept(2) on the socket from the supervisor, and on each socket that replaces it."""

import asyncio
import socket

from weave import log
from weave.broker.front.clients import Clients
from weave.protocol.waiting import readable

_ACCEPT_PAUSE_SECONDS = 0.1


class Listener:
    """Hands accepted connections to `clients`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._replacements: asyncio.Queue[socket.socket] = asyncio.Queue()

    def replace(self, sock: socket.socket) -> None:
        """Accept on `sock` from now on, and close the previous socket. Takes ownership of `sock`."""
        sock.setblocking(False)
        self._replacements.put_nowait(sock)

    async def run(self, sock: socket.socket) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                accepting = group.create_task(self._accept_on(sock))
                replacement = await self._replacements.get()
                accepting.cancel()
                await asyncio.wait([accepting])
                sock.close()
                sock = replacement

    async def _accept_on(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                await readable(listening.fileno())
            except OSError as error:  # out of descriptors: waiting clients stay in the backlog
                log.write("broker", "accept_failed", detail=error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
            else:
                self._clients.accept(sock)
                await asyncio.sleep(0)  # let the other connections run
