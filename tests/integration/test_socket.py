"""The socket's path: its owner, who may write above it, and the options that name it."""

import grp
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemon import COMMAND, Daemon
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import EVE, GROUP, uid

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *options], capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def bound(path: Path, kind: socket.SocketKind, *, backlog: int | None = None) -> Iterator[socket.socket]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as program:
        program.bind(str(path))
        if backlog is not None:
            program.listen(backlog)
            program.setblocking(False)
        yield program


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with bound(path, socket.SOCK_STREAM, backlog=5) as program:
        yield program
        with pytest.raises(BlockingIOError):  # no client has connected
            program.accept()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@contextmanager
def full(path: Path) -> Iterator[socket.socket]:
    with bound(path, socket.SOCK_STREAM, backlog=0) as program, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with socket.socket(socket.AF_UNIX) as another, pytest.raises(BlockingIOError):
            another.setblocking(False)
            another.connect(str(path))
        yield program


@contextmanager
def connected_elsewhere(path: Path) -> Iterator[socket.socket]:
    with bound(path, socket.SOCK_DGRAM) as program, bound(path.with_name("peer"), socket.SOCK_DGRAM):
        program.connect(str(path.with_name("peer")))
        yield program


PROGRAMS: dict[str, Callable[[Path], AbstractContextManager[socket.socket]]] = {
    "listens": listening,
    "has a full backlog": full,
    "does not listen yet": lambda path: bound(path, socket.SOCK_STREAM),
    "has a datagram socket": lambda path: bound(path, socket.SOCK_DGRAM),
    "has one that hears its peer alone": connected_elsewhere,
    "has a socket that keeps messages apart": lambda path: bound(path, socket.SOCK_SEQPACKET, backlog=5),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_socket_another_program_has_open_is_never_taken(name: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    path = folder / "weave" / "weave.sock"
    with PROGRAMS[name](path):
        inode = path.stat().st_ino
        daemon = Daemon(folder=folder)
        assert daemon.process.wait(60) == 78
        assert f"{path}: another program has this socket open" in daemon.log()
        assert path.stat().st_ino == inode
    # After that program has exited, its socket is replaced.
    daemon = Daemon(folder=folder).wait_until_serving()
    with daemon.client() as client:
        assert client.status().version
    assert daemon.stop() == 0 and not path.exists()


def test_the_daemon_stops_when_another_program_takes_its_path() -> None:
    daemon = Daemon("[models]\n").wait_until_serving()
    daemon.socket.unlink()
    with listening(daemon.socket):
        assert daemon.process.wait(60) == 78
        assert f"{daemon.socket}: another program has this socket open" in daemon.log()


def test_the_daemon_names_a_recreated_socket_folder() -> None:
    daemon = Daemon("[models]\n").wait_until_serving()
    daemon.process.send_signal(signal.SIGSTOP)  # it notices only when the program has finished
    shutil.rmtree(daemon.socket.parent)
    daemon.socket.parent.mkdir(0o700)
    with listening(daemon.socket):
        daemon.process.send_signal(signal.SIGCONT)
        assert daemon.process.wait(60) == 78
        assert f"{daemon.socket}: another program has this socket open" in daemon.log()
        assert daemon.socket.exists()


def test_a_stopping_daemon_leaves_another_programs_socket() -> None:
    daemon = Daemon("[models]\n").wait_until_serving()
    daemon.process.send_signal(signal.SIGSTOP)  # it notices after the signal to stop, not before
    daemon.socket.unlink()
    with listening(daemon.socket):
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        daemon.process.wait(60)


@pytest.mark.parametrize("level", [0, 1], ids=["its parent", "further up"])
def test_a_socket_below_a_folder_others_can_write_is_refused(tmp_path: Path, level: int) -> None:
    path = tmp_path / "a" / "b" / "weave" / "weave.sock"
    writable = path.parents[1 + level]
    path.parents[1].mkdir(parents=True)
    writable.chmod(0o777)
    refused = run("--socket", path)
    assert refused.returncode == 78
    assert f"{writable}: mode 0777 lets others write to it; fix it with: chmod go-w {writable}" in refused.stderr
    assert not path.parent.exists()
    # Another user could have created it, though it looks right.
    path.parent.mkdir(mode=0o700)
    assert run("--socket", path).returncode == 78
    assert os.listdir(path.parent) == []


@root_only
def test_root_creates_nothing_below_another_users_folder(users: None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    os.chmod(folder, 0o755)
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, uid(EVE), -1)
    config = folder / "weave-compute.toml"
    config.write_text(SYSTEM + MODEL)
    refused = run("--system", "--config", config, "--socket", theirs / "weave" / "weave.sock")
    assert refused.returncode == 78 and f"{theirs}: belongs to UID {uid(EVE)}" in refused.stderr
    assert os.listdir(theirs) == []


@root_only
def test_the_socket_has_its_group_and_mode_from_the_start(users: None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    daemon = system_daemon(folder)
    found = None
    while found is None and daemon.process.poll() is None:
        with suppress(FileNotFoundError):
            found = os.stat(daemon.socket)
    assert found is not None and found.st_mode & 0o777 == 0o660
    daemon.wait_until_serving()
    assert os.stat(daemon.socket).st_gid == grp.getgrnam(GROUP).gr_gid
    assert daemon.stop() == 0


@pytest.mark.parametrize("option", ["--socket", "--socket-path", "-s", "--config"])
def test_an_empty_path_is_refused_by_the_name_of_its_option(option: str) -> None:
    refused = run(option, "")
    name = "-s/--socket-path" if option in ("-s", "--socket-path") else option
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == f"weave-compute: error: argument {name}: the path is empty"
    assert run(f"{option}=").stderr == refused.stderr


def test_s_is_the_short_option_of_socket_path(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    long, short = run("--socket-path", missing), run("-s", missing)
    assert long.returncode == short.returncode == 78
    assert long.stderr == short.stderr == f"weave-compute: {missing}: No such file or directory\n"


def test_a_socket_path_too_long_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weave" / ("x" * 120)
    refused = run("--socket", path)
    assert refused.returncode == 78 and f"{path}: AF_UNIX path too long" in refused.stderr
