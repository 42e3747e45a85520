"""Attacks on files: what is in /proc of the worker's own threads, and every way to open one for writing."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.daemon import DEMO_MODEL

# Looked up before lock_down, which refuses that call too.
PARENT = os.getpid()


def read(path: str) -> str:
    return Path(path).read_bytes()[:20].decode(errors="replace")


def open_and(flags: int, path: Path | str = DEMO_MODEL / "unet" / "config.json") -> int:
    return os.open(path, flags)


def open_and_resize() -> None:
    """To the size that it has: nothing is lost where it works."""
    file = open_and(os.O_RDWR)
    os.ftruncate(file, os.fstat(file).st_size)


def of_own_thread(name: str) -> str:
    return f"/proc/self/task/{threading.get_native_id()}/{name}"


# What is in /proc/PID/task/TID, by which Landlock's rule for the names of threads was too wide.
READABLE_TASK_FILES = ("net/tcp", "net/unix", "mountinfo", "maps", "status", "comm", "cgroup")
TASK_FILES = (*READABLE_TASK_FILES, "attr/current", "environ", "mem", "root/etc/passwd")
TASK_ATTACKS: dict[str, Callable[[], object]] = {
    **{f"read task/{name}": lambda name=name: read(of_own_thread(name)) for name in TASK_FILES},
    **{f"list task{name}": lambda name=name: os.listdir(f"/proc/self/task{name}") for name in ("", "/..")},
    "list a thread": lambda: os.listdir(of_own_thread("")),
    "list fds of a thread": lambda: os.listdir(of_own_thread("fd")),
    "task of the parent": lambda: read(f"/proc/{PARENT}/task/{PARENT}/comm"),
    **{
        f"write task/{name}": lambda name=name: open_and(os.O_RDWR, of_own_thread(name))
        for name in ("comm", "mem", "attr/current", "attr/exec", "oom_score_adj", "uid_map", "setgroups")
    },
}
WRITING: dict[str, Callable[[], object]] = {
    "append": lambda: open_and(os.O_WRONLY | os.O_APPEND),
    "append and read": lambda: open_and(os.O_RDWR | os.O_APPEND),
    "overwrite": lambda: open_and(os.O_WRONLY),
    "overwrite and read": lambda: open_and(os.O_RDWR),
    "resize": open_and_resize,
    "open for ioctl alone": lambda: open_and(3),
    "a file without a name": lambda: open_and(os.O_RDWR | os.O_TMPFILE, "/tmp"),
    "a file without a name, to write": lambda: open_and(os.O_WRONLY | os.O_TMPFILE, "/tmp"),
    "a file without a name, by one bit": lambda: open_and(os.O_TMPFILE & ~os.O_DIRECTORY, "/tmp"),
    "make": lambda: open_and(os.O_RDONLY | os.O_CREAT | os.O_EXCL, "/tmp/weave-attack"),
    "empty": lambda: open_and(os.O_RDONLY | os.O_TRUNC, "/tmp/weave-attack"),
}
WORKER_ONLY: dict[str, Callable[[], object]] = {**TASK_ATTACKS, **WRITING}
