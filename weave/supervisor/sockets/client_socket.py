"""What the supervisor needs of each kind of socket."""

import asyncio
import socket
from pathlib import Path


class ClientSocket:
    """`socket` accepts clients; where `attached`, it is the connection to the only client. The supervisor owns it and
    never reads from it: the broker does."""

    attached = False

    def __init__(self, path: Path, opened: socket.socket) -> None:
        self.path = path
        self.socket = opened

    async def ended(self) -> None:
        """Returns when there can be no more clients. A socket that accepts never gets there."""
        await asyncio.Event().wait()

    def restore(self) -> bool:
        """Make the socket reachable at its path again if it is not. Returns whether `socket` has been replaced."""
        return False

    def close(self) -> None:
        """Stop serving on it. The file of another program's socket stays."""
        self.socket.close()
