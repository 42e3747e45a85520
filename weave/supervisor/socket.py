"""Where clients come from: a socket of our own, one that systemd made for us, or the one connection to whoever
started us."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import stat
from pathlib import Path
from typing import TypeAlias

from weave import log
from weave.config import ConfigError
from weave.protocol.peer import Peer, refuse_descriptors
from weave.protocol.waiting import readable

# A client that does not wait is refused by the kernel when so many have not been accepted yet.
BACKLOG = 1024
_LOCK_NAME = "weave.lock"
_CONNECT_SECONDS = 5.0
_STANDARD_INPUT = 0
_FIRST_ACTIVATED = 3  # SD_LISTEN_FDS_START


def default_socket_path() -> Path:
    """`$XDG_RUNTIME_DIR/weave/weave.sock`. Raises ConfigError where there is no such folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        raise ConfigError(f"{runtime} does not exist; set XDG_RUNTIME_DIR to a folder of your own with mode 0700")
    return Path(runtime) / "weave" / "weave.sock"


class _Listener:
    """What clients connect to."""

    attached = False

    async def ended(self) -> None:
        """Never: clients may always come."""
        await asyncio.Event().wait()


class ListeningSocket(_Listener):
    """The bound socket, in a folder of ours, and the lock that makes this daemon the only one on it."""

    def __init__(self, path: Path, *, mode: int = 0o600, group: int | None = None) -> None:
        """`group` is for system mode, where others may look into the folder. Raises ConfigError where the folder
        is not ours or another daemon has the socket."""
        self.path = path
        self._mode = mode
        self._group = group
        self._lock = _lock_folder(path.parent, private=group is None)
        self._bind()

    def restore(self) -> bool:
        """Where somebody has removed the socket's file, bind anew: nobody could connect any more. Returns whether
        `socket` is another one now. Raises ConfigError."""
        if _identity(self.path) == self._identity:
            return False
        if _identity(self.path.parent / _LOCK_NAME) != _file(os.fstat(self._lock)):
            lock = _lock_folder(self.path.parent, private=self._group is None)
            os.close(self._lock)
            self._lock = lock
        self.socket.close()
        self._bind()
        return True

    def _bind(self) -> None:
        _remove_stale(self.path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Nobody may connect before owner and mode are right.
        previous = os.umask(0o777)
        try:
            self.socket.bind(str(self.path))
            if self._group is not None:
                os.chown(self.path, -1, self._group)
            os.chmod(self.path, self._mode)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}") from None
        finally:
            os.umask(previous)
        refuse_descriptors(self.socket)
        self.socket.listen(BACKLOG)
        self._identity = _identity(self.path)

    def close(self) -> None:
        """Stop listening; the file goes if it is still ours."""
        self.socket.close()
        if _identity(self.path) == self._identity:
            self.path.unlink()
        os.close(self._lock)


class ActivatedSocket(_Listener):
    """A socket that systemd listens on and hands to us (sd_listen_fds(3)). Its file, mode and group are systemd's."""

    def __init__(self) -> None:
        """Raises ConfigError unless there is exactly one, and it is a listening stream socket of AF_UNIX."""
        count = os.environ.pop("LISTEN_FDS")
        for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        if count != "1":
            raise ConfigError(f"LISTEN_FDS is {count}; the socket unit must have one ListenStream=")
        os.set_inheritable(_FIRST_ACTIVATED, False)
        self.socket = socket.socket(fileno=_FIRST_ACTIVATED)
        listening = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if (self.socket.family, self.socket.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listening:
            raise ConfigError("the socket unit must have a ListenStream= that is a path")
        refuse_descriptors(self.socket)
        self.path = Path(self.socket.getsockname())

    @staticmethod
    def is_there() -> bool:
        """Whether systemd has handed us sockets."""
        return os.environ.get("LISTEN_PID") == str(os.getpid()) and "LISTEN_FDS" in os.environ

    def restore(self) -> bool:
        """The file is not ours to make."""
        return False

    def close(self) -> None:
        """systemd keeps listening."""
        self.socket.close()


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
        refuse_descriptors(self.socket)
        log.write("supervisor", "attached", peer=listener, exe=_executable(listener.pid))

    async def ended(self) -> None:
        """Returns when the connection or our standard input has ended. Nothing is read: that is the broker's."""
        with select.epoll() as hang_ups:
            hang_ups.register(self.socket, select.EPOLLRDHUP)
            # Of /dev/null or a file there is no end to wait for.
            with contextlib.suppress(PermissionError):
                hang_ups.register(_STANDARD_INPUT, select.EPOLLRDHUP)
            await readable(hang_ups.fileno())

    def restore(self) -> bool:
        """A connection needs no path."""
        return False

    def close(self) -> None:
        """The path is not ours, and stays."""
        self.socket.close()


Entrance: TypeAlias = ListeningSocket | ActivatedSocket | AttachedSocket


def _lock_folder(folder: Path, *, private: bool) -> int:
    wanted = 0o700 if private else 0o755
    try:
        folder.mkdir(mode=wanted, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        mend = f"install -d -o {os.geteuid()} -m {wanted:04o} {folder}"
        raise ConfigError(f"{folder}: {error.strerror}; make it with: {mend}") from None
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or mode & ~wanted:
        os.close(descriptor)
        mend = f"chown {os.geteuid()} {folder} && chmod {wanted:04o} {folder}"
        raise ConfigError(
            f"{folder}: owner {found.st_uid}, mode {mode:04o}; it must be ours with mode {wanted:04o}: {mend}"
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
    return _file(found)


def _file(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _executable(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
