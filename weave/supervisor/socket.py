"""The daemon's socket: one daemon, its own folder, and nobody else's file in the way."""

import fcntl
import os
import socket
import stat
from pathlib import Path

from weave.config import ConfigError

BACKLOG = 128
_LOCK_NAME = "weave.lock"


def default_socket_path() -> Path:
    """`$XDG_RUNTIME_DIR/weave/weave.sock`. Raises ConfigError where there is no such folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        raise ConfigError(f"{runtime} does not exist; set XDG_RUNTIME_DIR to a folder of your own with mode 0700")
    return Path(runtime) / "weave" / "weave.sock"


class ListeningSocket:
    """The bound socket and the lock that makes this daemon the only one on it."""

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

    def close(self) -> None:
        """Stop listening; the file goes if it is still ours."""
        self.socket.close()
        if _identity(self.path) == self._identity:
            self.path.unlink()
        os.close(self._lock)


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
