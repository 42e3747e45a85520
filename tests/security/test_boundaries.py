"""The boundaries of the running daemon: who may connect, the network, memory, and deadlines."""

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builds import visible
from tests.support.daemon import DEMO_MODEL, Daemon, descriptors_of, wait_for
from tests.support.generation import generate, images
from tests.support.system import MODEL
from weave.client import Client, WeaveError
from weave.config.child_configs import Access, to_memfd
from weave.config.load import default_config
from weave.config.split import broker_config
from weave.protocol.channel import Channel, close_all, socket_pair
from weave.protocol.control_messages import Attested, FromBroker
from weave.protocol.errors import ErrorCode
from weave.sandbox.account import Account
from weave.sandbox.attestation import AttestationFailed, Confinement, attest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user or to make a namespace")
NOBODY = 65534

CONNECT_AND_READ = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])
try: s.sendall(b"WEVE")
except BrokenPipeError: pass
try: print(len(s.recv(100)))
except ConnectionResetError: print(0)
"""


@root_only
def test_a_peer_of_another_uid_gets_no_byte_and_is_audited(daemon: Daemon) -> None:
    # Open the folder's and the socket's modes, so that only the peer check is left.
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket.parent, 0o755)
    os.chmod(daemon.socket, 0o666)
    other = subprocess.run(
        [sys.executable, "-c", CONNECT_AND_READ, daemon.socket], capture_output=True, text=True, check=True
    )
    assert other.stdout == "0\n"
    refused = wait_for(lambda: daemon.events("connection_refused"))[0]
    assert refused["peer"]["uid"] == NOBODY and refused["peer"]["pid"] > 0
    with daemon.client() as client:
        assert client.status().version


@root_only
def test_an_image_is_generated_without_network() -> None:
    daemon = Daemon(prefix=("unshare", "--net")).wait_until_serving()
    try:
        with daemon.client() as client:
            assert images(generate(client))
    finally:
        daemon.stop()


def test_no_process_of_the_daemon_has_a_network_socket() -> None:
    daemon = Daemon(MODEL, command=visible()).wait_until_serving()
    with daemon.client() as client:
        generate(client)
    for pid, role in {**daemon.processes(), daemon.process.pid: "supervisor"}.items():
        sockets = {link for link in descriptors_of(pid) if link.startswith("socket:")}
        with open(f"/proc/{pid}/net/unix") as table:
            local = {f"socket:[{line.split()[6]}]" for line in list(table)[1:]}
        assert sockets and sockets <= local, role
    assert daemon.stop() == 0


def test_status_reports_the_layers_in_force(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        generate(client)
        sandbox = client.status().sandbox
    for role in ("broker", "worker"):
        assert {"no-capabilities", "seccomp", "no-new-privs"} <= set(sandbox[role])
        assert any(layer.startswith("landlock-") for layer in sandbox[role])


def test_every_thread_of_broker_and_worker_is_locked_down(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        generate(client)
    broker, worker, zygote = (shared_daemon.pid_of(role) for role in ("broker", "worker", "gpu_worker"))
    as_root = os.geteuid() == 0
    attest(broker, Confinement("broker", Account.own(), as_root, None), parent=shared_daemon.process.pid)
    attest(worker, Confinement("worker", Account.own(), as_root, None), parent=zygote)
    with pytest.raises(AttestationFailed, match="Seccomp is 0"):
        attest(zygote, Confinement("worker", Account.own(), False, None), parent=shared_daemon.process.pid)


def test_a_stopped_worker_is_killed_when_its_job_takes_too_long() -> None:
    small = "width = { min = 64, max = 64 }, height = { min = 64, max = 64 }"
    daemon = Daemon(
        f'[limits]\njob_seconds = 6\n[models.shapes]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\n'
        f"bounds = {{ {small} }}\ndefaults = {{ width = 64, height = 64 }}\n"
    ).wait_until_serving()
    try:
        with daemon.client() as client:
            expected = images(generate(client))[0].data
            os.kill(daemon.pid_of("worker"), signal.SIGSTOP)
            with pytest.raises(Exception, match="longer than allowed"):
                generate(client)
            assert images(generate(client))[0].data == expected
    finally:
        daemon.stop()


def test_the_broker_serves_no_client_before_attestation(tmp_path: Path) -> None:
    ours, theirs = socket_pair()
    memfd = to_memfd(broker_config(default_config(), mode="user", access=Access(uids=(os.geteuid(),))))
    with socket.socket(socket.AF_UNIX) as listening, theirs:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        passed = {"control": theirs.fileno(), "config": memfd, "listen": listening.fileno()}
        options = [f"--{name}={fd}" for name, fd in passed.items()]
        command = [sys.executable, "-I", "-m", "weave.broker", f"--parent={os.getpid()}", *options]
        broker = subprocess.Popen(command, pass_fds=tuple(passed.values()))
        os.close(memfd)
        supervisor: Channel[FromBroker] = Channel(ours, FromBroker)
        _, listener = supervisor.receive()
        try:
            with Client(tmp_path / "s", timeout=0.5) as early, pytest.raises(TimeoutError):
                early.status()
            supervisor.send(Attested(supervisor=(), broker=()))
            with Client(tmp_path / "s", timeout=20) as client:
                assert client.status().version
        finally:
            supervisor.close()
            broker.wait(20)
            close_all(listener)


# With no room at all, oneDNN fails before torch's allocator does.
@pytest.mark.parametrize("room", [0, 2**22])
@root_only
def test_out_of_memory_is_an_error_and_the_worker_stays(room: int) -> None:
    daemon = Daemon(f'[models.shapes]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\n').wait_until_serving()
    try:
        with daemon.client() as client:
            generate(client, width=64, height=64)
            worker = daemon.pid_of("worker")
            size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            # Only root may: the worker is not dumpable and may not change a limit itself.
            resource.prlimit(worker, resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
            with pytest.raises(WeaveError) as failed:
                generate(client, width=512, height=512, steps=1)
            assert failed.value.code is ErrorCode.OUT_OF_MEMORY
            resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert images(generate(client, width=64, height=64))
            assert daemon.pid_of("worker") == worker
    finally:
        daemon.stop()
