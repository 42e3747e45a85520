"""A socket that we bind, in a folder that no other user can write to."""

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from weave.config.ownership import check_folder, check_open_folder
from weave.config.schema import ConfigError
from weave.protocol.channel import close_all
from weave.protocol.peer import refuse_descriptors
from weave.supervisor.sockets.client_socket import ClientSocket

# How many connections may wait to be accepted. A client that does not block gets EAGAIN beyond that.
BACKLOG = 1024
_LOCK_NAME = "weave.lock"


def default_socket_path() -> Path:
    """`$XDG_RUNTIME_DIR/weave/weave.sock`. Raises ConfigError if that runtime folder does not exist."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        raise ConfigError(f"{runtime} does not exist; set XDG_RUNTIME_DIR to a folder of your own with mode 0700")
    return Path(runtime) / "weave" / "weave.sock"


class ListeningSocket(ClientSocket):
    """The bound socket, and the lock in its folder that keeps a second daemon off it."""

    def __init__(self, path: Path, *, mode: int = 0o600, group: int | None = None) -> None:
        """`group` is for system mode, where other users may read the folder. Raises ConfigError if the folder is not
        ours, others can write to a folder above it, or another program uses the socket."""
        self._mode = mode
        self._group = group
        self._folder, self._lock = _lock_folder(path.parent, private=group is None)
        super().__init__(path, self._bind(path))

    def restore(self) -> bool:
        """Bind again if the socket's file was removed or replaced. Raises ConfigError if another program listens there
        now."""
        if _inode_at(self.path) == self._inode:
            return False
        _find_stale(self.path)  # first: the program that took the path may own the folder too, where our lock fails
        if _inode_at(self.path.parent / _LOCK_NAME) != _inode(os.fstat(self._lock)):
            folder, lock = _lock_folder(self.path.parent, private=self._group is None)
            close_all([self._folder, self._lock])
            self._folder, self._lock = folder, lock
        self.socket.close()
        self.socket = self._bind(self.path)
        return True

    def _bind(self, path: Path) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Owner and mode are right before listen(): until then no client can connect.
        previous = os.umask(0o777 & ~self._mode)
        try:
            _remove_stale(path)
            listening.bind(str(path))
            if self._group is not None:
                os.chown(path.name, -1, self._group, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        finally:
            os.umask(previous)
        refuse_descriptors(listening)
        listening.listen(BACKLOG)
        # No other file gets this inode while the socket is open.
        self._inode = _inode_at(path)
        return listening

    def close(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        if _inode_at(self.path) == self._inode:
            self.path.unlink()
        super().close()
        close_all([self._folder, self._lock])


def _lock_folder(path: Path, *, private: bool) -> tuple[int, int]:
    """Open the socket's folder, creating it if needed, and take the lock in it. Returns both descriptors. Raises
    ConfigError."""
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
    """A folder of ours with no mode bits beyond `wanted`. Only root and we can write to it or to a folder above it, so
    the file that gets the group is the socket that we have bound. Raises ConfigError."""
    try:
        if not path.exists():  # check first, so that nothing is created in another user's folder
            check_folder(next(above for above in path.absolute().parents if above.exists()))
        path.mkdir(mode=wanted, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        fix = f"install -d -o {os.geteuid()} -m {wanted:04o} {path}"
        raise ConfigError(f"{path}: {error.strerror}; create it with: {fix}") from None
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
    """Remove the socket that a killed daemon left. One that any process has open stays.

    Raises ConfigError. A socket that is bound between the check and unlink(2) is lost: no system call does both.
    """
    if _find_stale(path):
        path.unlink(missing_ok=True)


def _find_stale(path: Path) -> bool:
    """Whether `path` is a socket of ours that no process has open. Raises ConfigError for any other file there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"{path}: exists and is not a socket of ours; remove it")
    error = _error_of_connecting(path)
    if error == errno.ENOENT:  # removed by its program just now
        return False
    if error in (0, errno.EPROTOTYPE, errno.EPERM):  # EPERM: a socket that only its own peer may send to
        raise ConfigError(
            f"{path}: another program has this socket open; stop that program, or choose another path with --socket"
        )
    if error != errno.ECONNREFUSED:
        raise ConfigError(f"{path}: cannot tell whether a program listens there: {os.strerror(error)}; remove it")
    return True


def _error_of_connecting(path: Path) -> int:
    """ECONNREFUSED if no process has the socket open. The probe is a datagram socket, which a listener never sees: the
    type is wrong (EPROTOTYPE), even if its backlog is full or it does not listen yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(str(path))


def _inode_at(path: Path) -> tuple[int, int] | None:
    try:
        return _inode(os.lstat(path))
    except FileNotFoundError:
        return None


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
