"""Which file a stopped thread is about to open, in record mode. The name is read from the thread's memory, so it may be
anything. It is never opened: we resolve it link by link, and use stat(2) and access(2)."""

import errno
import os
from typing import NamedTuple

from weave.sandbox.seccomp import INT, Violation

CALLS = ("openat", "open", "openat2", "creat")
_AT_FDCWD = -100 & INT
# linux/limits.h: PATH_MAX, including the NUL; path_resolution(7): how many links the kernel follows.
_LONGEST_PATH, _MOST_LINKS = 4096, 40


class Opened(NamedTuple):
    """`name` as the thread has it, `path` with all links resolved."""

    name: str
    path: str
    writes: bool


def opened(violation: Violation, worker: int) -> Opened | None:
    """None if there is no such file, or the worker's user may not open it. Raises PermissionError if the kernel does
    not let us read the thread's memory, ProcessLookupError and FileNotFoundError if the thread has exited."""
    directory, address, flags = _arguments(violation)
    data, end, _ = _memory(violation.pid, address, _LONGEST_PATH).partition(b"\0")
    if not data or not end or flags & os.O_PATH:  # O_PATH allows neither reading nor writing
        return None
    name = os.fsdecode(data)
    start = "cwd" if directory == _AT_FDCWD else f"fd/{directory}"
    own = {"/proc/self": f"{worker}", "/proc/thread-self": f"{worker}/task/{violation.pid}"}
    path = _follow(os.path.join(f"/proc/{violation.pid}", start, name), own)
    writes = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
    if path is None or not os.access(path, os.W_OK if writes else os.R_OK) or (writes and os.path.isdir(path)):
        return None
    return Opened(name, path, writes)


def _arguments(violation: Violation) -> tuple[int, int, int]:
    """Folder descriptor, address of the name, flags: open(2), openat2(2)."""
    first, second, third = violation.arguments[:3]
    match violation.call:
        case "creat":
            return _AT_FDCWD, first, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        case "open":
            return _AT_FDCWD, first, second
        case "openat2":  # struct open_how begins with the flags
            return first & INT, second, int.from_bytes(_memory(violation.pid, third, 8), "little")
    return first & INT, second, third


def _memory(thread: int, address: int, size: int) -> bytes:
    """`size` bytes, or fewer if the mapping ends before."""
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(memory, size, address)
    except (OSError, OverflowError):  # not mapped, or not an address
        return b""
    finally:
        os.close(memory)


def _follow(name: str, links: dict[str, str]) -> str | None:
    """realpath(3) of the absolute `name`, where `links` replaces some links' targets. None if it does not exist."""
    path, names, followed = "/", _parts(name), 0
    while names:
        # `path` has no links, so .. is its parent.
        here = os.path.normpath(os.path.join(path, names.pop()))
        try:
            target = links.get(here) or os.readlink(here)
        except OSError as error:
            if error.errno != errno.EINVAL:
                return None
            path = here  # not a link
            continue
        followed += 1
        if followed > _MOST_LINKS:
            return None
        path = "/" if target.startswith("/") else path
        names += _parts(target)
    return path


def _parts(name: str) -> list[str]:
    """Last component first."""
    return name.split("/")[::-1]
