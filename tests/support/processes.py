"""Processes that tests, benchmarks and soak start: with signals as from a login shell, and ended whatever happens."""

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
    """Popen, for what runs until it is stopped: it ends with us even where we are killed."""
    parent = os.getpid()

    def with_parent() -> None:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(command, preexec_fn=with_parent, **options)  # noqa: PLW1509 - we start no threads meanwhile


def reset_signals() -> None:
    """A shell's background, nohup and others ignore or block signals for us, and our children would inherit it.

    What is handled is not inherited through exec, and we go on ignoring what we were told to ignore.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own; Popen restores them
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def children(pid: int | str = "self") -> set[int]:
    """Of all its threads; also those that have ended and that nobody has waited for."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found |= set(map(int, (thread / "children").read_text().split()))
    return found


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def end(pids: set[int]) -> None:
    """These children of ours and all that they have started."""
    for pid in pids:
        for descendant in (pid, *descendants(pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(descendant, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


class Started:
    """What was started within the `with` statement; but for what a `with` statement inside it has taken."""

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
        """All of it."""
        end(self._pids & children())
        Started._taken -= self._pids


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """Whatever is started within is gone afterwards."""
    started = Started()
    try:
        with started:
            yield
    finally:
        started.end()


@contextlib.contextmanager
def temporary_folders() -> Iterator[None]:
    """Whatever tempfile makes within is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="weave-test-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o1777)  # as /tmp: the tests' users come here too
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before
