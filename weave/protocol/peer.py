"""Who is on the other end of a connection: the kernel's word, asked for before a byte is read (unix(7))."""

import array
import socket
import struct

from msgspec import Struct

_UCRED = struct.Struct("=iII")  # linux/socket.h: struct ucred
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_SO_PASSRIGHTS = 83
# Python's getsockopt has no room for more: 256 groups.
_MOST_BYTES = 1024


class Peer(Struct, frozen=True):
    """The process that called connect(2), as it was then."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """SO_PEERCRED."""
        return cls(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def refuse_descriptors(sock: socket.socket) -> bool:
    """SO_PASSRIGHTS off, for `sock` and whatever it accepts: who sends a descriptor gets EPERM, and nothing arrives.

    A descriptor need not even be received to do harm: that of a TCP socket that lingers, dropped with the message that
    it came in, makes close(2) wait as long as its sender likes. False on a kernel before Linux 6.16, which cannot.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def supplementary_groups(connection: socket.socket) -> tuple[int, ...] | None:
    """SO_PEERGROUPS: the peer's groups beside Peer.gid. None where the kernel can't tell (ENOPROTOOPT, before
    Linux 4.13) or they are more than 256 (ERANGE)."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError:
        return None
    return tuple(array.array("I", data))
