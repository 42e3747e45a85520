"""Socket activation: systemd listens, and hands the socket to us (sd_listen_fds(3))."""

import os
import socket
from pathlib import Path

from weave.config.schema import ConfigError
from weave.protocol.peer import refuse_descriptors
from weave.supervisor.sockets.client_socket import ClientSocket

_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START


class ActivatedSocket(ClientSocket):
    """Its file, mode and group are systemd's, which keeps listening when we close it."""

    def __init__(self) -> None:
        """Raises ConfigError unless there is exactly one, and it is a listening stream socket of AF_UNIX."""
        count = os.environ.pop("LISTEN_FDS")
        for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        if count != "1":
            raise ConfigError(f"LISTEN_FDS is {count}; the socket unit must have one ListenStream=")
        os.set_inheritable(_LISTEN_FDS_START, False)
        given = socket.socket(fileno=_LISTEN_FDS_START)
        listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if (given.family, given.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listening:
            raise ConfigError("the socket unit must have a ListenStream= that is a path")
        refuse_descriptors(given)
        super().__init__(Path(given.getsockname()), given)

    @staticmethod
    def is_available() -> bool:
        """Whether systemd has passed sockets to this process."""
        return os.environ.get("LISTEN_PID") == str(os.getpid()) and "LISTEN_FDS" in os.environ
