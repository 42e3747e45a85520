"""System mode with real users: who may connect, the account of each process, what root keeps."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.users import ALICE, BOB, BROKER, CAROL, EVE, GROUP, WORKER, as_user, uid
from weave.broker.admission import access as broker_access
from weave.client import Client, NotRunning
from weave.config.child_configs import Access
from weave.protocol.peer import Peer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="weave-test-"))


@pytest.fixture(scope="module")
def system(users: None) -> Iterator[Daemon]:
    """Its socket is open to all, so that the peer check stands alone."""
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    config = SYSTEM.replace("[system]", '[system]\nsocket_mode = "0666"') + MODEL
    daemon = system_daemon(folder, config).wait_until_serving()
    yield daemon
    daemon.stop()


def ask_version(path: Path) -> str:
    with Client(path, timeout=60) as client:
        return client.status().version


def knock(path: Path) -> int:
    """The number of bytes that a stranger gets."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        try:
            connection.sendall(b"WEVE")
            return len(connection.recv(100))
        except (BrokenPipeError, ConnectionResetError):
            return 0


def identity(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("name", ["root", ALICE, BOB, CAROL], ids=["root", "user", "primary group", "group"])
def test_root_allowed_users_and_group_members_are_served(system: Daemon, name: str) -> None:
    assert as_user(name, lambda: ask_version(system.socket))


def test_other_users_get_no_byte_and_an_audit_line(system: Daemon) -> None:
    assert as_user(EVE, lambda: knock(system.socket)) == 0
    refused = wait_for(lambda: system.events("connection_refused"))[-1]
    assert refused["peer"]["uid"] == uid(EVE)


def test_each_user_gets_an_image_and_sees_only_its_own_jobs(system: Daemon) -> None:
    def image() -> Any:
        with Client(system.socket, timeout=100) as client:
            return len(images(generate(client))[0].data)

    assert as_user(ALICE, image) == as_user(CAROL, image) > 100


def how_it_came(path: Path) -> Any:
    with Client(path, timeout=100) as client:
        (image,) = images(generate(client, format="raw", deliver="fd"))
        offered = "fd-delivery" in client.status().features
        return [offered, image.event.deliver, image.memfd is not None, len(image.data)]


def test_descriptors_are_delivered_only_if_configured(system: Daemon, folder: Path) -> None:
    size = 128 * 128 * 3
    for name in ("root", ALICE, CAROL):
        assert as_user(name, lambda: how_it_came(system.socket)) == [False, "inline", False, size]
    limits = f"[limits]\ndelivered_bytes = {size}\n"
    config = limits + SYSTEM.replace("[system]", '[system]\nsocket_mode = "0666"\ndeliver_fds = true') + MODEL
    daemon = system_daemon(folder, config).wait_until_serving()
    try:
        # The limit is per user, not for all together.
        for name in (ALICE, CAROL):
            assert as_user(name, lambda: how_it_came(daemon.socket)) == [True, "fd", True, 0]
            assert as_user(name, lambda: how_it_came(daemon.socket)) == [True, "inline", False, size]
    finally:
        assert daemon.stop() == 0


def test_each_process_has_its_account_and_no_further_rights(system: Daemon) -> None:
    with system.client() as client:
        generate(client)
        layers = client.status().sandbox["supervisor"]
    processes = system.processes()
    broker, zygote, worker = (
        identity(next(pid for pid, role in processes.items() if role == name))
        for name in ("broker", "gpu_worker", "worker")
    )
    for status, name in ((broker, BROKER), (zygote, WORKER), (worker, WORKER)):
        assert set(status["Uid"].split()) == {str(uid(name))}
        assert "0" not in status["Groups"].split()
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) == 0
    supervisor = identity(system.process.pid)
    # linux/capability.h: CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7.
    assert int(supervisor["CapPrm"], 16) == int(supervisor["CapEff"], 16) == 0b1110_0000
    assert int(supervisor["CapBnd"], 16) == int(supervisor["CapInh"], 16) == 0
    assert "few-capabilities" in layers and any(layer.endswith("-changes") for layer in layers)


def test_the_socket_is_for_root_and_its_group(users: None, folder: Path) -> None:
    daemon = system_daemon(folder).wait_until_serving()
    try:
        found = os.stat(daemon.socket)
        assert (found.st_uid, found.st_mode & 0o777) == (0, 0o660)
        assert as_user(BOB, lambda: ask_version(daemon.socket))
        with pytest.raises(RuntimeError, match="Permission denied"):
            as_user(EVE, lambda: knock(daemon.socket))
    finally:
        assert daemon.stop() == 0


def test_started_as_an_ordinary_user_all_of_it_runs_as_that_user(users: None, folder: Path) -> None:
    os.chmod(folder, 0o755)
    os.mkdir(folder / "weave")
    os.chown(folder / "weave", uid(BROKER), -1)
    become = ("setpriv", f"--reuid={BROKER}", f"--regid={GROUP}", "--clear-groups")
    daemon = system_daemon(folder, as_user=become).wait_until_serving()
    try:
        with daemon.client() as client:
            assert images(generate(client))
        assert as_user(CAROL, lambda: ask_version(daemon.socket))
        for pid in (daemon.process.pid, *daemon.processes()):
            assert set(identity(pid)["Uid"].split()) == {str(uid(BROKER))}
    finally:
        assert daemon.stop() == 0


def test_unload_ends_the_worker_of_another_user(users: None, folder: Path) -> None:
    daemon = system_daemon(folder).wait_until_serving()
    try:
        with daemon.client() as client:
            expected = images(generate(client))[0].data
            client.unload()
            wait_for(lambda: "worker" not in daemon.processes().values())  # the zygote reaps it
            assert images(generate(client))[0].data == expected
    finally:
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    "field, command", [("broker_user", "useradd"), ("worker_user", "useradd"), ("socket_group", "groupadd")]
)
def test_a_missing_account_is_refused_with_the_fix(users: None, folder: Path, field: str, command: str) -> None:
    lines = [f'{field} = "weave-test-nobody"' if line.startswith(field) else line for line in SYSTEM.splitlines()]
    daemon = system_daemon(folder, "\n".join(lines) + MODEL)
    assert daemon.process.wait(60) == 78
    assert f"system.{field}: there is no" in daemon.log() and f"{command} --system" in daemon.log()


@pytest.mark.parametrize(
    "field, name",
    [("broker_user", "root"), ("worker_user", "0"), ("worker_user", BROKER)],
    ids=["name", "number", "same"],
)
def test_children_that_would_be_root_or_one_user_are_refused(users: None, folder: Path, field: str, name: str) -> None:
    lines = [f'{field} = "{name}"' if line.startswith(field) else line for line in SYSTEM.splitlines()]
    daemon = system_daemon(folder, "\n".join(lines) + MODEL)
    assert daemon.process.wait(60) == 78
    assert f"system.{field}" in daemon.log() and ("which is root" in daemon.log() or "two users" in daemon.log())


def test_a_reload_disconnects_users_no_longer_allowed(users: None, folder: Path) -> None:
    config = SYSTEM.replace("[system]", '[system]\nsocket_mode = "0666"') + MODEL
    daemon = system_daemon(folder, config).wait_until_serving()
    told: list[str] = []

    def wait_for_the_end() -> str:
        with Client(daemon.socket, timeout=60) as client:
            client.status()
            (folder / "public" / "connected").touch()
            try:
                client._receive()
            except NotRunning as error:
                return str(error)
            return "still there"

    try:
        (folder / "public").mkdir()
        os.chmod(folder / "public", 0o777)
        alice = threading.Thread(target=lambda: told.append(as_user(ALICE, wait_for_the_end)))
        alice.start()
        wait_for((folder / "public" / "connected").exists)
        (folder / "weave-compute.toml").write_text(config.replace(f'"{ALICE}"', ""))
        daemon.process.send_signal(1)
        alice.join()
        assert "closed the connection" in told[0]
        assert wait_for(lambda: daemon.events("client_dropped"))[0]["reason"] == "its user is no longer allowed"
        with pytest.raises(RuntimeError, match="NotRunning"):
            as_user(ALICE, lambda: ask_version(daemon.socket))
    finally:
        assert daemon.stop() == 0


def test_supplementary_groups_are_the_kernels_word_as_of_connect() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        groups = os.getgroups()
        os.setgroups([4242])  # after the pair was made: not what counts
        try:
            peer = Peer(1, 4001, 4001)
            assert not broker_access.is_allowed(Access(uids=(0,), gids=(4242,)), peer, here)
        finally:
            os.setgroups(groups)


def test_without_peer_groups_the_group_database_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_access, "supplementary_groups", lambda _: None)
    access = Access(uids=(0,), gids=(50,), members=(1001,))
    with socket.socket() as unused:
        assert broker_access.is_allowed(access, Peer(1, 1001, 100), unused)
        assert not broker_access.is_allowed(access, Peer(1, 1002, 100), unused)


def test_a_peer_with_an_unmapped_uid_is_refused() -> None:
    """Like a peer in a user namespace that maps its group but not its UID."""
    access = Access(uids=(0, 65533), gids=(50,), unmapped=65533)
    with socket.socket() as unused:
        assert not broker_access.is_allowed(access, Peer(1, 65533, 50), unused)
        assert broker_access.is_allowed(access, Peer(1, 65534, 50), unused)


def test_systemd_is_notified_of_every_state_change(users: None, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        os.chmod(folder / "notify", 0o777)
        manager.settimeout(60)
        told: list[str] = []

        def until(line: str) -> None:
            while not told or line not in told[-1].splitlines():
                told.append(manager.recv(4096).decode())

        variables = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "500000"}
        daemon = system_daemon(folder, variables=variables)
        try:
            until("READY=1")
            until("WATCHDOG=1")
            daemon.process.send_signal(1)
            until("RELOADING=1")
            assert any(line.startswith("MONOTONIC_USEC=") for line in told[-1].splitlines())
            until("READY=1")
        finally:
            assert daemon.stop() == 0
        until("STOPPING=1")


def test_a_socket_that_systemd_made_is_served_and_left_alone(users: None, folder: Path) -> None:
    path = folder / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        os.chmod(folder, 0o755)
        config = folder / "weave-compute.toml"
        config.write_text(SYSTEM + MODEL)
        shell = ("bash", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&' + str(listening.fileno()))
        daemon = Daemon(
            prefix=shell, folder=folder, options=("--config", str(config)), pass_fds=(listening.fileno(),)
        ).wait_until_serving()
        try:
            assert ask_version(path)
        finally:
            assert daemon.stop() == 0
        assert path.is_socket() and not daemon.socket.exists()


def test_a_socket_unit_with_two_sockets_is_refused(folder: Path) -> None:
    shell = ("sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=2 exec "$0" "$@"')
    daemon = Daemon(prefix=shell, folder=folder)
    assert daemon.process.wait(60) == 78 and "one ListenStream=" in daemon.log()
