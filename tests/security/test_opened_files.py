"""The supervisor reads a file name in the memory of a worker that may be hostile: no content does harm."""

import ctypes
import mmap
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import prctl
import pytest

from weave.protocol.channel import Channel, socket_pair
from weave.protocol.control_messages import Recording
from weave.sandbox import seccomp, worker_calls
from weave.sandbox.hardening import harden
from weave.supervisor.record_mode.opened_files import Opened, opened

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_PAGE = mmap.PAGESIZE
_mapped: list[mmap.mmap] = []


def call(name: str, *arguments: int | bytes) -> None:
    """As an attacker would, with any arguments."""
    number = seccomp.pyseccomp.resolve_syscall(seccomp.pyseccomp.system_arch(), name)
    given = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    _libc.syscall(ctypes.c_long(number), *given)


@contextmanager
def waiting(action: Callable[[], None], *, dumpable: bool = True) -> Iterator[tuple[int, int]]:
    """A process that waits in `action`, and its listener."""
    ours, theirs = socket_pair()
    pid = os.fork()
    if pid == 0:
        harden()
        prctl.set_dumpable(int(dumpable))
        supervisor: Channel[None] = Channel(theirs, None)
        supervisor.send(Recording(), (seccomp.install(worker_calls.recording(os.getpid())),))
        action()
        os._exit(0)
    with ours, theirs:
        _, (listener,) = Channel(ours, Recording).receive()
    try:
        assert select.select([listener], [], [], 60)[0]
        yield pid, listener
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(listener)


def found(action: Callable[[], None]) -> Opened | None:
    with waiting(action) as (pid, listener):
        violation = seccomp.receive_violation(listener)
        assert violation is not None and violation.pid == pid
        return opened(violation, pid)


def at_the_end_of_a_page(data: bytes) -> int:
    """The address of `data`, after which nothing is mapped."""
    area = mmap.mmap(-1, 2 * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    _libc.munmap(ctypes.c_void_p(address + _PAGE), ctypes.c_size_t(_PAGE))
    start = address + _PAGE - len(data)
    ctypes.memmove(start, data, len(data))
    _mapped.append(area)
    return start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("folder/../file")
    (tmp_path / "folder").mkdir()
    for number in range(41):
        (tmp_path / f"link{number}").symlink_to(f"link{number + 1}")
    (tmp_path / "link41").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"\xff\n\x1b")).touch()
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"none",
        b"none/../file",
        b"file/../none",
        b"loop",
        b"link0",  # 42 links
        b"x" * 300,
        b"./" * 5000 + b"file",
        b"A" * 1_000_000,
    ],
    ids=lambda name: name[:20].decode(),
)
def test_a_name_the_kernel_would_not_open_gives_none(folder: Path, name: bytes) -> None:
    os.chdir(folder)
    assert found(lambda: call("openat", _AT_FDCWD, name, os.O_RDONLY)) is None


@pytest.mark.parametrize("address", [0, 1, _PAGE, 2**47, 2**63 - 1, -1, -(2**63)])
def test_an_unmapped_address_gives_none(address: int) -> None:
    assert found(lambda: call("openat", _AT_FDCWD, address, os.O_RDONLY)) is None
    assert found(lambda: call("openat2", _AT_FDCWD, b"/etc/passwd", address, 24)) == Opened(
        "/etc/passwd", "/etc/passwd", False
    )


def test_an_unterminated_name_gives_none_at_the_end_of_a_page() -> None:
    assert found(lambda: call("openat", _AT_FDCWD, at_the_end_of_a_page(b"/etc/passwd"), os.O_RDONLY)) is None
    complete = found(lambda: call("openat", _AT_FDCWD, at_the_end_of_a_page(b"/etc/passwd\0"), os.O_RDONLY))
    assert complete == Opened("/etc/passwd", "/etc/passwd", False)


def test_a_pipe_is_not_opened_and_odd_bytes_are_kept(folder: Path) -> None:
    """Opening it would wait for a writer."""
    os.chdir(folder)
    assert found(lambda: call("openat", _AT_FDCWD, b"pipe", os.O_RDONLY)) == Opened("pipe", str(folder / "pipe"), False)
    odd = found(lambda: call("openat", _AT_FDCWD, b"\xff\n\x1b", os.O_RDONLY))
    assert odd is not None and os.fsencode(odd.path) == os.fsencode(folder) + b"/\xff\n\x1b"


def test_names_are_followed_as_the_worker_would(folder: Path) -> None:
    os.chdir(folder)
    inside = os.open("folder", os.O_RDONLY)
    pipe, _ = os.pipe()
    file = str(folder / "file")
    assert found(lambda: call("openat", _AT_FDCWD, b"link", os.O_RDONLY)) == Opened("link", file, False)
    assert found(lambda: call("openat", inside, b"../link", os.O_RDWR)) == Opened("../link", file, True)
    assert found(lambda: call("openat", inside, os.fsencode(file), os.O_RDONLY)) == Opened(file, file, False)
    for directory in (pipe, 900, -1):
        assert found(lambda directory=directory: call("openat", directory, b"file", os.O_RDONLY)) is None
    # Not those of the asking process.
    own = found(lambda: call("openat", _AT_FDCWD, b"/proc/self/maps", os.O_RDONLY))
    assert own is not None and own.path != f"/proc/{os.getpid()}/maps" and own.path.endswith("/maps")
    thread = found(lambda: call("openat", _AT_FDCWD, b"/proc/thread-self/comm", os.O_RDWR))
    assert (
        thread is not None and thread.path == f"/proc/{thread.path.split('/')[2]}/task/{thread.path.split('/')[4]}/comm"
    )


@pytest.mark.parametrize(
    ("name", "arguments", "writes"),
    [
        ("open", (b"file", os.O_RDONLY), False),
        ("open", (b"file", os.O_WRONLY), True),
        ("creat", (b"file", 0o600), True),
        ("openat2", (_AT_FDCWD, b"file", (2).to_bytes(24, "little"), 24), True),
        ("openat2", (_AT_FDCWD, b"file", bytes(24), 24), False),
        ("openat", (_AT_FDCWD, b"file", os.O_RDONLY | os.O_TRUNC), True),
    ],
)
def test_each_call_that_opens_files_is_decoded(
    folder: Path, name: str, arguments: tuple[int | bytes, ...], writes: bool
) -> None:
    os.chdir(folder)
    assert found(lambda: call(name, *arguments)) == Opened("file", str(folder / "file"), writes)


def test_o_path_and_unopenable_files_give_none(folder: Path) -> None:
    os.chdir(folder)
    assert found(lambda: call("openat", _AT_FDCWD, b"file", os.O_PATH)) is None
    assert found(lambda: call("openat", _AT_FDCWD, b"folder", os.O_RDWR)) is None


def test_a_thread_that_no_longer_waits_is_detected() -> None:
    with waiting(lambda: call("openat", _AT_FDCWD, b"/etc/passwd", os.O_RDONLY)) as (pid, listener):
        violation = seccomp.receive_violation(listener)
        assert violation is not None and seccomp.still_waits(listener, violation)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not seccomp.still_waits(listener, violation)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read what is not dumpable")
def test_memory_the_kernel_does_not_show_is_an_error() -> None:
    with waiting(lambda: call("openat", _AT_FDCWD, b"/etc/passwd", os.O_RDONLY), dumpable=False) as (pid, listener):
        violation = seccomp.receive_violation(listener)
        assert violation is not None
        with pytest.raises(PermissionError):
            opened(violation, pid)
