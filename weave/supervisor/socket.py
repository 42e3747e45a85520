"""Where clients come from: a socket of our own, or the one connection to whoever started us."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import stat
from pathlib import Path
from typing import TypeAlias

from weave.config import ConfigError
from weave.protocol.peer import Peer
from weave.protocol.waiting import readable

BACKLOG = 128
_LOCK_NAME = "weave.lock"
_CONNECT_SECONDS = 5.0
_STANDARD_INPUT = 0


def default_socket_path() -> Path:
    """`$XDG_RUNTIME_DIR/weave/weave.sock`. Raises ConfigError where there is no such folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        raise ConfigError(f"{runtime} does not exist; set XDG_RUNTIME_DIR to a folder of your own with mode 0700")
    return Path(runtime) / "weave" / "weave.sock"


class ListeningSocket:
    """The bound socket, in a folder of ours, and the lock that makes this daemon the only one on it."""

    attached = False

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the folder is not ours alone or another daemon has the socket."""
        self.path = path
        self._lock = _lock_folder(path.parent)
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode must be right from the first moment: fchmod after bind would leave a gap.
        previous = os.umask(0o177)
        try:
            self.socket.bind(str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        finally:
            os.umask(previous)
        self.socket.listen(BACKLOG)
        self._identity = _identity(path)

    async def ended(self) -> None:
        """Never: clients may always come."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """Stop listening; the file goes if it is still ours."""
        self.socket.close()
        if _identity(self.path) == self._identity:
            self.path.unlink()
        os.close(self._lock)


class AttachedSocket:
    """A connection to the socket of the program that started us: our one client, and our reason to be there."""

    attached = True

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where nobody listens, or another user does: that one is not sent a byte."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_CONNECT_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        # On the side that connects this tells who called listen(2): unix(7).
        listener = Peer.of(self.socket)
        if listener.uid != os.geteuid():
            self.socket.close()
            raise ConfigError(f"{path}: the listener's UID is {listener.uid}; it must be ours, {os.geteuid()}")

    async def ended(self) -> None:
        """Returns when the connection or our standard input has ended. Nothing is read: that is the broker's."""
        with select.epoll() as hang_ups:
            hang_ups.register(self.socket, select.EPOLLRDHUP)
            # Of /dev/null or a file there is no end to wait for.
            with contextlib.suppress(PermissionError):
                hang_ups.register(_STANDARD_INPUT, select.EPOLLRDHUP)
            await readable(hang_ups.fileno())

    def close(self) -> None:
        """The path is not ours, and stays."""
        self.socket.close()


Entrance: TypeAlias = ListeningSocket | AttachedSocket


def _lock_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or mode != 0o700:
        os.close(descriptor)
        raise ConfigError(
            f"{folder}: owner {found.st_uid}, mode {mode:04o}; it must be ours with mode 0700: chmod 0700 {folder}"
        )
    lock = os.open(_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=descriptor)
    os.close(descriptor)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(f"{folder}: another weave-compute is running here") from None
    return lock


def _remove_stale(path: Path) -> None:
    """We hold the lock, so no daemon of ours listens on what is there; anything but a socket is not ours to remove."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"{path}: exists and is not a socket of ours; remove it")
    path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
