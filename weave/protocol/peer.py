"""Who is on the other end of a connection: the kernel's word, asked for before a byte is read (unix(7))."""

import socket
import struct

from msgspec import Struct

_UCRED = struct.Struct("=iII")  # linux/socket.h: struct ucred


class Peer(Struct, frozen=True):
    """The process that called connect(2), as it was then."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """SO_PEERCRED."""
        return cls(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
