"""Where clients come from: a socket of our own, one that systemd made for us, or the one connection to whoever
started us."""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import time
from pathlib import Path
from typing import TypeAlias

from weave import log
from weave.config.files import check_folder, check_open_folder
from weave.config.schema import ConfigError
from weave.protocol.channel import close_all
from weave.protocol.peer import Peer, refuse_descriptors
from weave.protocol.waiting import readable

# A client that does not wait is refused by the kernel when so many have not been accepted yet.
BACKLOG = 1024
_LOCK_NAME = "weave.lock"
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.01
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
        """`group` is for system mode, where others may look into the folder. Raises ConfigError where the folder is not
        ours, others may write above it, or another program has the socket."""
        self.path = path
        self._mode = mode
        self._group = group
        self._folder, self._lock = _lock_folder(path.parent, private=group is None)
        self._bind()

    def restore(self) -> bool:
        """Where somebody has removed the socket's file, bind again: nobody could connect any more. Returns whether
        `socket` is another one now. Raises ConfigError where another program listens there by now."""
        if _identity(self.path) == self._identity:
            return False
        _find_stale(self.path)  # the program that took it may have made the folder again, where we can't even lock
        if _identity(self.path.parent / _LOCK_NAME) != _file(os.fstat(self._lock)):
            folder, lock = _lock_folder(self.path.parent, private=self._group is None)
            close_all([self._folder, self._lock])
            self._folder, self._lock = folder, lock
        self.socket.close()
        self._bind()
        return True

    def _bind(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Nobody can connect before listen(), when owner and mode are right.
        previous = os.umask(0o777 & ~self._mode)
        try:
            _remove_stale(self.path)
            self.socket.bind(str(self.path))
            if self._group is not None:
                os.chown(self.path.name, -1, self._group, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}") from None
        finally:
            os.umask(previous)
        refuse_descriptors(self.socket)
        self.socket.listen(BACKLOG)
        self._identity = _identity(self.path)

    def close(self) -> None:
        """Stop listening; the file goes if it is still ours. While the socket is open, no other file has its inode."""
        if _identity(self.path) == self._identity:
            self.path.unlink()
        self.socket.close()
        close_all([self._folder, self._lock])


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
            _connect(self.socket, path)
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


def _connect(connecting: socket.socket, path: Path) -> None:
    """A connect with a deadline does not wait where too many wait to be accepted, but says EAGAIN (unix(7))."""
    end = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return connecting.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > end:
                told = f"whoever listens there did not accept a connection in {_CONNECT_SECONDS:g} s"
                raise TimeoutError(0, told) from None
            time.sleep(_RETRY_SECONDS)


Entrance: TypeAlias = ListeningSocket | ActivatedSocket | AttachedSocket


def _lock_folder(path: Path, *, private: bool) -> tuple[int, int]:
    """The socket's folder, made where it is not there, and the lock in it. Raises ConfigError."""
    folder = _open_folder(path, 0o700 if private else 0o755)
    try:
        lock = os.open(_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        os.close(folder)
        raise ConfigError(f"{path / _LOCK_NAME}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        close_all([folder, lock])
        raise ConfigError(f"{path}: another weave-compute is running here") from None
    return folder, lock


def _open_folder(path: Path, wanted: int) -> int:
    """Ours, with no mode beyond `wanted`, and nobody but root and us can write above it: what is bound and given to
    a group in it is what we made. Raises ConfigError."""
    try:
        if not path.exists():  # before anything is made in a folder of somebody else's
            check_folder(next(above for above in path.absolute().parents if above.exists()))
        path.mkdir(mode=wanted, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        fix = f"install -d -o {os.geteuid()} -m {wanted:04o} {path}"
        raise ConfigError(f"{path}: {error.strerror}; make it with: {fix}") from None
    try:
        found = os.fstat(descriptor)
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid() or mode & ~wanted:
            fix = f"chown {os.geteuid()} {path} && chmod {wanted:04o} {path}"
            raise ConfigError(
                f"{path}: owner {found.st_uid}, mode {mode:04o}; it must be ours with mode {wanted:04o}: {fix}"
            )
        check_open_folder(path.resolve(), descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_stale(path: Path) -> None:
    """What a daemon that was killed has left. A socket that a program has open stays, whoever it belongs to.

    Raises ConfigError. What a program binds between the question and unlink(2) is lost: no call does both at once.
    """
    if _find_stale(path):
        path.unlink(missing_ok=True)


def _find_stale(path: Path) -> bool:
    """Whether there is a socket that no process has open. Raises ConfigError for whatever else is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"{path}: exists and is not a socket of ours; remove it")
    error = _error_of_connecting(path)
    if error == errno.ENOENT:  # its program has just removed it
        return False
    if error in (0, errno.EPROTOTYPE, errno.EPERM):  # EPERM: one that hears its own peer only
        raise ConfigError(
            f"{path}: another program has this socket open, and it stays as it is; end that program, or choose another "
            "path with --socket"
        )
    if error != errno.ECONNREFUSED:
        raise ConfigError(f"{path}: cannot tell whether a program listens there: {os.strerror(error)}; remove it")
    return True


def _error_of_connecting(path: Path) -> int:
    """ECONNREFUSED where no process has the socket open. A datagram socket asks, which no listener takes notice of:
    its type is wrong, EPROTOTYPE, even where the backlog is full or the other does not listen yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        return asking.connect_ex(str(path))


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
