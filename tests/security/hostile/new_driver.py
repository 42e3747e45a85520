"""Added to a build as weave/gpu_worker/new_driver.py: a driver that needs more than the worker's lists have. What it
needs and does not get ends the worker; what it can do without, it logs."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from weave import log

FOLDER = Path("/folder/")
# A link to a file with a version in its name, and a name that takes some care.
LIBRARY, VERSION, LATER, ODD = "libnew.so.1", "libnew.so.1.2.3", "later.conf", 'a "name" of \\ and \' and \n and \udcff'
CALLS = 3000
ADVICE, LOCKED, REQUEST, LISTED_REQUEST = 12, 0x2000, 0x40045A17, 0xC020462A

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def read(path: str | Path, folder: int | None = None) -> None:
    """Raises OSError."""
    os.close(os.open(path, os.O_RDONLY, dir_fd=folder))


def attempt(name: str, action: Callable[[], object]) -> None:
    """The result does not matter."""
    try:
        action()
        result = "done"
    except OSError as error:
        result = f"errno {error.errno}"
    log.write("worker", "attempted", what=name, result=result)


def start_a_program() -> None:
    os.execv("/bin/true", ["true"])


def connect() -> None:
    with socket.socket() as connecting:
        connecting.connect(("127.0.0.1", 1))


def start() -> None:
    """Above lock_down(): Landlock alone holds it."""
    for listed in ("/proc/cpuinfo", "/proc/self/maps", "/proc/self/status"):
        read(listed)
    os.close(os.open("/dev/null", os.O_RDWR))
    read(FOLDER / LIBRARY)
    read(FOLDER / ODD)
    read("/proc/thread-self/../../cgroup")
    os.close(os.open("/dev/zero", os.O_RDWR))
    os.getpgid(0)  # which is nothing before lock_down()
    # Not findings: the files do not exist, are not opened, or cannot be on a list.
    attempt("a file that is not there", lambda: read(FOLDER / "none"))
    attempt("a link to nowhere", lambda: read(FOLDER / "loop"))
    attempt("a handle", lambda: os.close(os.open(FOLDER / "none.conf", os.O_PATH)))
    attempt("a new file", lambda: os.open(FOLDER / "new", os.O_WRONLY | os.O_CREAT))
    attempt("a new folder", lambda: os.mkdir(FOLDER / "new folder"))
    attempt("a program", start_a_program)
    attempt("a connection", connect)
    # Findings that no list can have.
    attempt("write a file", lambda: os.open(FOLDER / "written", os.O_WRONLY))
    attempt("another process", lambda: read("/proc/1/status"))
    attempt("all of /", lambda: os.listdir("/"))


def later() -> None:
    """Below it: the list holds it as well."""
    for _ in range(CALLS):
        os.getpgid(0)
    area = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # not every kernel merges pages
        area.madvise(ADVICE)
    area.madvise(mmap.MADV_WILLNEED)
    mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | LOCKED).close()
    for limit in [(ctypes.c_uint64 * 2)(0, ctypes.c_uint64(-1).value) for _ in range(2)]:  # two addresses
        _libc.prlimit(0, 4, limit, None)  # RLIMIT_CORE
    for request in (REQUEST, LISTED_REQUEST):
        with contextlib.suppress(OSError):
            fcntl.ioctl(0, request)
    folder = os.open(FOLDER, os.O_PATH)
    with contextlib.suppress(PermissionError):  # here Landlock refuses, and the driver works without it
        read(LATER, folder)
    os.close(folder)
    threading.Thread(target=lambda: None).start()  # clone3, which is refused
    attempt("a file to write", lambda: os.open("/dev/null", os.O_WRONLY))
    attempt("a new folder", lambda: os.mkdir(FOLDER / "new folder"))
