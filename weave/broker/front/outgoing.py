"""What a client has not read yet: frames, and images, which sendfile(2) copies from their memfd to the socket."""

import asyncio
import os
import socket
from collections import deque

from msgspec import Struct

from weave.broker.admission.limits import Unread
from weave.protocol.channel import close_all
from weave.protocol.waiting import writable

_SENDFILE_BYTES = 8 * 1024 * 1024


class _Item(Struct):
    """`data`, then the `size` bytes of `memfd`: inline as bytes, else as a descriptor that is sent with `data`."""

    data: bytes
    memfd: int | None
    size: int
    inline: bool
    sent: int = 0

    @property
    def end(self) -> int:
        return len(self.data) + (self.size if self.inline else 0)

    @property
    def unread(self) -> Unread:
        return Unread(len(self.data) + self.size, int(self.memfd is not None))

    def close(self) -> None:
        close_all([self.memfd] if self.memfd is not None else [])


class Outgoing:
    """The queue of one connection. `unread` counts what it holds, `share_unread` what those of its principal hold."""

    def __init__(self, sock: socket.socket, share_unread: Unread) -> None:
        self.unread = Unread()
        self._share_unread = share_unread
        self._sock = sock
        self._items: deque[_Item] = deque()
        self._more = asyncio.Event()

    def add(self, data: bytes, memfd: int | None, size: int, *, inline: bool) -> None:
        """Append to the queue. Takes ownership of `memfd`."""
        item = _Item(data, memfd, size, inline)
        self._items.append(item)
        self._count(item.unread, 1)
        self._more.set()

    async def write(self) -> None:
        """Write the queue as fast as the client reads. Runs until cancelled. Raises OSError: EPIPE or ECONNRESET when
        the client has disconnected, ETOOMANYREFS or ENOMEM when the kernel cannot send."""
        while True:
            while self._items:
                await self._write_item(self._items[0])
                item = self._items.popleft()
                self._count(item.unread, -1)
                item.close()
            self._more.clear()
            await self._more.wait()

    async def flush(self, *, seconds: float) -> None:
        """Wait until everything is written, for at most `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._items and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def write_off(self) -> None:
        """Stop counting what the client will not read; it stays in memory until close()."""
        self._share_unread.add(self.unread, -1)
        self.unread, self._share_unread = Unread(), Unread()

    def close(self) -> None:
        """Discard what is not written yet."""
        self.write_off()
        for item in self._items:
            item.close()
        self._items.clear()

    def _count(self, unread: Unread, sign: int) -> None:
        self.unread.add(unread, sign)
        self._share_unread.add(unread, sign)

    async def _write_item(self, item: _Item) -> None:
        while item.sent < item.end:
            try:
                item.sent += self._write_some(item)
            except BlockingIOError:
                await writable(self._sock.fileno())

    def _write_some(self, item: _Item) -> int:
        offset = item.sent - len(item.data)
        if offset >= 0 and item.memfd is not None:
            return os.sendfile(self._sock.fileno(), item.memfd, offset, min(item.size - offset, _SENDFILE_BYTES))
        descriptors = [item.memfd] if item.memfd is not None and not item.inline and item.sent == 0 else []
        return socket.send_fds(self._sock, [item.data[item.sent :]], descriptors, socket.MSG_NOSIGNAL)
