"""Attached mode: the test is the program that owns the socket and starts the daemon."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import COMMAND, Daemon, wait_for
from tests.support.processes import start
from tests.support.wire import generate_1, receive_1, receive_2, send_2
from weave.protocol.frames import Kind, pack_header
from weave.protocol.version1 import Code, Failure, Response


class Owner:
    """Listens, starts `weave-compute --socket-path`, and accepts it."""

    def __init__(self, stdin: int = subprocess.PIPE, config: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
        (self.folder / "weave").mkdir()
        (self.folder / "weave" / "weave-compute.toml").write_text(config)
        self.path = self.folder / "ui.sock"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.listening.listen()
        self.listening.settimeout(60)
        self.daemon = Daemon.__new__(Daemon)
        self.daemon.folder = self.folder
        environment = {**os.environ, "XDG_RUNTIME_DIR": "/nonexistent", "XDG_CONFIG_HOME": str(self.folder)}
        self.daemon.process = start(
            [COMMAND, "--socket-path", self.path], stdin=stdin, stderr=(self.folder / "log").open("ab"), env=environment
        )

    def accept(self) -> socket.socket:
        connection, _ = self.listening.accept()
        connection.settimeout(60)
        return connection

    def all_gone(self, processes: list[int]) -> bool:
        self.daemon.process.wait(30)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), seconds=10)
        return self.path.exists()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.daemon.process.kill()
    owner.daemon.process.wait()
    owner.listening.close()


def test_a_request_before_torch_is_imported_waits_and_is_served(owner: Owner) -> None:
    with owner.accept() as connection:
        connection.sendall(generate_1())
        assert not owner.daemon.events("imported")
        assert isinstance(receive_1(connection), Response)
        send_2(connection, {"op": "status"})
        status = receive_2(connection)
        assert status["mode"] == "attached"
        for process in ("broker", "worker"):
            assert {"seccomp", "no-new-privs", "no-capabilities"} < set(status["sandbox"][process])


@pytest.mark.parametrize("ends", ["connection", "half of the connection", "standard input", "broker"])
def test_nothing_is_left_after_a_disconnect_during_a_job(owner: Owner, ends: str) -> None:
    with owner.accept() as connection:
        send_2(connection, {"op": "generate", "model": "shapes", "prompt": "x", "steps": 100, "images": 8})
        while receive_2(connection)["event"] != "progress":
            pass
        processes = list(owner.daemon.processes())
        assert len(processes) == 3
        if ends == "connection":
            connection.close()
        elif ends == "half of the connection":
            connection.shutdown(socket.SHUT_WR)
        elif ends == "standard input":
            assert owner.daemon.process.stdin
            owner.daemon.process.stdin.close()
        else:
            os.kill(owner.daemon.pid_of("broker"), signal.SIGKILL)
        assert owner.all_gone(processes), "the socket is not ours to remove"
        assert owner.daemon.process.returncode == (71 if ends == "broker" else 0)
        assert [line["cause"] for line in owner.daemon.events("broker_ended")] == ["signal SIGKILL"] * (
            ends == "broker"
        )


def test_a_hung_broker_does_not_keep_the_daemon_running(owner: Owner) -> None:
    connection = owner.accept()
    wait_for(lambda: owner.daemon.events("serving"))
    processes = list(owner.daemon.processes())
    os.kill(owner.daemon.pid_of("broker"), signal.SIGSTOP)
    connection.close()
    assert owner.all_gone(processes)


def test_dev_null_as_standard_input_does_not_end_the_daemon() -> None:
    owner = Owner(stdin=subprocess.DEVNULL)
    with owner.accept() as connection:
        connection.sendall(generate_1())
        assert isinstance(receive_1(connection), Response)
    assert owner.all_gone([])


BAD_HEADERS = {
    "magic": (b"HTTP/1.1 200 OK!", Code.BAD_MAGIC),
    "length": (pack_header(Kind.GENERATE, 0, 0xFFFFFFFF, version=1), Code.INTERNAL),
    "version and length": (pack_header(Kind.GENERATE, 0, 0xFFFFFFFF, version=7), Code.UNSUPPORTED_VERSION),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_an_unrecoverable_header_stops_the_daemon_cleanly(owner: Owner, name: str) -> None:
    header, code = BAD_HEADERS[name]
    with owner.accept() as connection:
        connection.sendall(generate_1())
        assert isinstance(receive_1(connection), Response)  # so a worker ends with it as well
        connection.sendall(header)
        reply = receive_1(connection)
        assert isinstance(reply, Failure) and reply.code is code
        assert owner.all_gone([])
    assert owner.daemon.process.returncode == 0
    *_, last = owner.daemon.all_events()
    assert (last["event"], last["reason"]) == (
        "stopped",
        "our only client was dropped; the broker's last line says why",
    )
    *_, refused = [line for line in owner.daemon.all_events() if line["process"] == "broker"]
    assert refused["event"] == "frame_refused" and name.split()[0] in refused["reason"]
    assert not owner.daemon.events("broker_ended")


def test_half_a_frame_stops_the_daemon_cleanly() -> None:
    owner = Owner(config="[limits]\nframe_seconds = 0.3\n")
    with owner.accept() as connection:
        connection.sendall(generate_1()[:20])
        assert connection.recv(1) == b"" and owner.all_gone([])
    assert owner.daemon.process.returncode == 0
    assert owner.daemon.all_events()[-1]["reason"] == "our only client was dropped; the broker's last line says why"
    assert owner.daemon.events("client_dropped")[-1]["reason"] == "a frame was not complete in time"


def test_bad_headers_are_errors_and_the_next_request_is_served(owner: Owner) -> None:
    with owner.accept() as connection:
        for header, code in (
            (pack_header(Kind.GENERATE, 0, 100, version=2), Code.INTERNAL),
            (pack_header(Kind.GENERATE, 0, 100, version=3), Code.UNSUPPORTED_VERSION),
            (pack_header(Kind.RESPONSE, 0, 100, version=1), Code.INTERNAL),
            (pack_header(Kind.GENERATE, 1, 100, version=1), Code.INTERNAL),
        ):
            connection.sendall(header + bytes(100))
            if header[5] == 2:
                assert receive_2(connection)["field"] == "kind"
            else:
                reply = receive_1(connection)
                assert isinstance(reply, Failure) and (reply.request_id, reply.code) == (bytes(8), code)
        connection.sendall(generate_1())
        assert isinstance(receive_1(connection), Response)
    assert owner.all_gone([])
    assert owner.daemon.process.returncode == 0
    last = owner.daemon.all_events()[-1]
    assert (last["event"], last["reason"]) == ("stopped", "the connection or standard input has ended")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_listener_gets_no_byte() -> None:
    with tempfile.TemporaryDirectory(prefix="weave-test-") as folder:
        os.chmod(folder, 0o777)
        path = f"{folder}/ui.sock"
        ready, heard = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.setgid(65534)
            os.setuid(65534)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(path)
            listening.listen()
            os.write(ready[1], b"1")
            connection, _ = listening.accept()
            os.write(heard[1], b"heard:" + connection.recv(100))
            os._exit(0)
        os.read(ready[0], 1)
        ended = subprocess.run(
            [COMMAND, "--socket-path", path], capture_output=True, text=True, timeout=60, check=False
        )
        os.wait()
        assert ended.returncode == 78 and "65534" in ended.stderr
        assert os.read(heard[0], 100) == b"heard:"


def test_the_daemon_waits_for_a_full_backlog(tmp_path: Path) -> None:
    """The listener belongs to the program that started the daemon and has yet to accept others."""
    path = tmp_path / "ui.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(str(path))
        listening.listen(0)
        listening.settimeout(60)
        other.connect(str(path))
        told = subprocess.run([COMMAND, "--socket-path", path], capture_output=True, text=True, timeout=60, check=False)
        assert (told.returncode, told.stderr) == (
            78,
            f"weave-compute: {path}: the listener did not accept a connection in 5 s\n",
        )
        daemon = start([COMMAND, "--socket-path", path], stdin=subprocess.PIPE)
        listening.accept()[0].close()
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(60)
            connection.sendall(generate_1())
            assert isinstance(receive_1(connection), Response)
        assert daemon.wait(30) == 0


def test_an_error_names_the_path_where_no_program_listens(tmp_path: Path) -> None:
    ended = subprocess.run(
        [COMMAND, "--socket-path", tmp_path / "none"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 78 and f"{tmp_path}/none" in ended.stderr
