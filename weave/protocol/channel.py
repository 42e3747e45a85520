"""A channel between two of our processes: msgpack messages and descriptors over a SOCK_SEQPACKET socketpair.

SOCK_SEQPACKET keeps message boundaries, so there is no framing to get wrong (unix(7)), and reports when the other side
closes, so no process outlives the one it serves.
"""

import array
import fcntl
import os
import socket
from typing import Any, Generic, TypeVar

import msgspec

from weave.protocol.errors import UNDECODABLE
from weave.protocol.peer import refuse_descriptors

MAX_MESSAGE_BYTES = 256 * 1024
# In one message, unless the channel's owner expects more.
MAX_DESCRIPTORS = 2

ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

Incoming = TypeVar("Incoming")


class ChannelClosed(Exception):
    """The other side closed its end, or exited."""


class ChannelViolation(Exception):
    """The other side sent an unknown or malformed message, or unexpected descriptors."""


class Channel(Generic[Incoming]):
    """One end. `incoming` is the union of messages that this end accepts; everything else is a violation."""

    def __init__(self, sock: socket.socket, incoming: Any, *, descriptors: int = MAX_DESCRIPTORS) -> None:
        """A message may carry at most that many `descriptors`."""
        self._sock = sock
        self._descriptors = descriptors
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    def from_fd(cls, fd: int, incoming: Any, *, descriptors: int = MAX_DESCRIPTORS) -> "Channel[Incoming]":
        """Takes ownership of the inherited descriptor `fd`."""
        return cls(socket.socket(fileno=fd), incoming, descriptors=descriptors)

    def fileno(self) -> int:
        """For selectors and event loops."""
        return self._sock.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """On a non-blocking channel send and receive raise BlockingIOError."""
        self._sock.setblocking(blocking)

    def send(self, message: msgspec.Struct, descriptors: tuple[int, ...] = ()) -> None:
        """Send one message. The caller keeps the descriptors. Raises ChannelClosed, BlockingIOError."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._sock.sendmsg([self._encoder.encode(message)], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None

    def receive(self) -> tuple[Incoming, list[int]]:
        """One message and its descriptors, which the caller owns.

        Raises ChannelClosed, ChannelViolation (with every descriptor closed), BlockingIOError.
        """
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(self._descriptors * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise ChannelClosed from None
        descriptors = received_descriptors(ancillary)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(descriptors)
            raise ChannelViolation("a message was too long, or had too many descriptors")
        if not data:
            close_all(descriptors)
            raise ChannelClosed
        try:
            return self._decoder.decode(data), descriptors
        except UNDECODABLE as error:
            close_all(descriptors)
            # The decoder's message may quote the sender, and this ends up in the receiver's own log lines.
            raise ChannelViolation(f"not a message of this channel: {type(error).__name__}") from None

    def refuse_descriptors(self) -> None:
        """Have the kernel refuse them from now on, if it can (peer.refuse_descriptors)."""
        refuse_descriptors(self._sock)

    def close(self) -> None:
        """The other side gets ChannelClosed."""
        self._sock.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends for a Channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def received_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in recvmsg's ancillary data."""
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def close_all(descriptors: list[int]) -> None:
    """Close each of them."""
    for descriptor in descriptors:
        os.close(descriptor)


def sealed_memfd(name: str, data: bytes | memoryview) -> int:
    """A memfd with `data` that no process can change (memfd_create(2)). The caller owns the descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, ALL_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class MemfdWriter:
    """A memfd that is written piece by piece, and then sealed. It has one owner: seal() or close()."""

    def __init__(self, name: str) -> None:
        """Raises OSError."""
        self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size = 0

    def write(self, data: memoryview) -> None:
        """Append `data`. Raises OSError."""
        while data:
            # pwrite(2) works on files alone, so the broker's filter can allow it for any descriptor.
            written = os.pwrite(self._descriptor, data, self._size)
            self._size += written
            data = data[written:]

    def seal(self) -> int:
        """The descriptor, which the caller owns; no process can change the memfd any more."""
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, ALL_SEALS)
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Discard what was written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_sealed_memfd(descriptor: int, size: int) -> None:
    """Raise ChannelViolation unless `descriptor` is a memfd with every seal and exactly `size` bytes."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: not a memfd at all
        raise ChannelViolation("a descriptor is not a memfd") from None
    if seals & ALL_SEALS != ALL_SEALS:
        raise ChannelViolation("a memfd is not sealed")
    if _size(descriptor) != size:
        raise ChannelViolation("a memfd does not have the announced size")


def read_sealed_memfd(descriptor: int) -> bytes:
    """All bytes of a sealed memfd. Closes `descriptor`. Raises ChannelViolation."""
    try:
        size = _size(descriptor)
        check_sealed_memfd(descriptor, size)
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _size(descriptor: int) -> int:
    # Not fstat: glibc 2.33 and later make it newfstatat, which also takes paths, so the broker's filter refuses it.
    return os.lseek(descriptor, 0, os.SEEK_END)
