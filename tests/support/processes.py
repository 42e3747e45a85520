"""Processes that tests, benchmarks and soak start: with the signals of a login shell, and always ended."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import prctl


def start(command: list[str | Path] | tuple[str | Path, ...], **options: Any) -> "subprocess.Popen[Any]":
    """Popen for a process that runs until it is stopped: it dies with this process, even if that is killed."""
    parent = os.getpid()

    def with_parent() -> None:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(command, preexec_fn=with_parent, **options)  # noqa: PLW1509 - we start no threads meanwhile


def reset_signals() -> None:
    """A shell's background jobs, nohup and others ignore or block signals for this process, and its children would
    inherit that. Handlers are not inherited through exec, and this process keeps its own settings."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own; Popen restores them
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def children(pid: int | str = "self") -> set[int]:
    """The children of all its threads, including unreaped ones."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found |= set(map(int, (thread / "children").read_text().split()))
    return found


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def end(pids: set[int]) -> None:
    """These children and all their descendants."""
    for pid in pids:
        for descendant in (pid, *descendants(pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(descendant, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


class Started:
    """What was started within the `with` statement, except in an inner one."""

    _taken: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self._pids: set[int] = set()

    def __enter__(self) -> "Started":
        self._before = children()
        return self

    def __exit__(self, *_: object) -> None:
        self._pids = children() - self._before - Started._taken
        Started._taken |= self._pids

    def end(self) -> None:
        end(self._pids & children())
        Started._taken -= self._pids


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """Every process started within it has exited afterwards."""
    started = Started()
    try:
        with started:
            yield
    finally:
        started.end()


@contextlib.contextmanager
def temporary_folders() -> Iterator[None]:
    """Everything that tempfile creates within it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="weave-test-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o1777)  # as /tmp: the tests' users use it too
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before
