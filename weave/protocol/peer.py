"""The peer of a connection, as the kernel reports it before a byte is read (unix(7))."""

import array
import socket
import struct

from msgspec import Struct

_UCRED = struct.Struct("=iII")  # linux/socket.h: struct ucred
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_SO_PASSRIGHTS = 83
# The most that Python's getsockopt takes: 256 groups.
_MOST_BYTES = 1024


class Peer(Struct, frozen=True):
    """The process that called connect(2), with its IDs at that time."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """SO_PEERCRED."""
        return cls(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def refuse_descriptors(sock: socket.socket) -> bool:
    """Turn SO_PASSRIGHTS off for `sock` and the connections that it accepts: who sends a descriptor gets EPERM.

    A descriptor need not even be received to do harm: when a message that carries a lingering TCP socket is dropped,
    close(2) blocks for as long as the sender likes. Returns False before Linux 6.16, which cannot refuse descriptors.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def supplementary_groups(connection: socket.socket) -> tuple[int, ...] | None:
    """The peer's groups besides Peer.gid (SO_PEERGROUPS). None before Linux 4.13 (ENOPROTOOPT), and for more than 256
    groups (ERANGE)."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError:
        return None
    return tuple(array.array("I", data))
