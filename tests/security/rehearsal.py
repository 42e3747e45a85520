"""Added to a build as weave/gpu_worker/rehearsal.py: the requests that CUDA makes of the kernel at its start and when
it starts a thread later, according to reports on other sandboxes and snapd's interface for CUDA. It stands in for a
driver, which cannot be installed here."""

import ctypes
import os
import socket
import threading
from collections.abc import Callable

from weave import log

FILES = (
    *(
        "/proc/self/maps",
        "/proc/self/stat",
        "/proc/self/status",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/devices",
        "/proc/modules",
    ),
    *("/proc/sys/vm/mmap_min_addr", "/sys/devices/system/cpu/online"),
)


def name_a_thread() -> None:
    """pthread_setname_np(3) of another thread, as CUDA names its own."""
    libc = ctypes.CDLL(None)
    libc.pthread_setname_np.argtypes = [ctypes.c_ulong, ctypes.c_char_p]
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        error = libc.pthread_setname_np(thread.ident, b"cuda-EvtHandlr")
    finally:
        ended.set()
        thread.join()
    if error:
        raise OSError(error, os.strerror(error))


def listen_for_unified_memory() -> None:
    """Through it other processes could get its descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"\0cuda-uvmfd-4026531836-{os.getpid()}")
        listening.listen()


def read_files() -> None:
    for path in filter(os.path.exists, FILES):  # not every kernel has modules
        os.close(os.open(path, os.O_RDONLY))


def name_the_supervisor() -> None:
    """CUDA does not do this: the rule for its threads must not reach so far."""
    os.close(os.open(f"/proc/{os.getppid()}/comm", os.O_RDWR))


START: tuple[Callable[[], None], ...] = (name_a_thread, listen_for_unified_memory, read_files, name_the_supervisor)
LATER: tuple[Callable[[], None], ...] = (name_a_thread, read_files)


def run(when: str, steps: tuple[Callable[[], None], ...]) -> None:
    for step in steps:
        try:
            step()
            result = "done"
        except OSError as error:
            result = f"refused: {error.strerror}"
        log.write("worker", "rehearsed", when=when, step=step.__name__, result=result)
