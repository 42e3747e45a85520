"""The supervisor locked down: attacks from inside a process that has run its real lock_down()."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prctl
import pytest

from tests.support.users import as_user
from weave.config.load import default_config
from weave.config.schema import AuditConfig, Config
from weave.sandbox.account import Account
from weave.sandbox.attestation import AttestationFailed, Confinement, attest
from weave.sandbox.hardening import harden
from weave.supervisor import main as supervisor
from weave.supervisor.sockets.listening import ListeningSocket

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="tests what is left of root's powers")


def locked_in(attack: Callable[[Path], Any], *, other_users: bool = True, without: str | None = None) -> Any:
    """The result of `attack` in a supervisor's process, with one layer taken away if given. Its folder is the socket's;
    an OSError is returned as its errno's name."""
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    config = Config(models=default_config().models, audit=AuditConfig(file=str(folder / "log" / "audit.log")))
    (folder / "log").mkdir()

    def attacked() -> Any:
        harden()
        entrance = ListeningSocket(folder / "weave" / "weave.sock")
        if without == "landlock":
            supervisor.landlock.restrict_changes = lambda **_: ""  # type: ignore[attr-defined]
        if without == "capabilities":
            supervisor.drop_capabilities = lambda **_: ""  # type: ignore[attr-defined]
        supervisor.lock_down(config, entrance, other_users=other_users)
        try:
            return attack(folder)
        except OSError as error:
            return f"refused: {os.strerror(error.errno or 0)}"

    return as_user("root", attacked)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "write a file": lambda folder: (folder / "outside" / "file").write_text("ours"),
    "make a file": lambda folder: (folder / "outside" / "new").write_text("ours"),
    "remove a file": lambda folder: (folder / "outside" / "file").unlink(),
    "rename into it": lambda folder: os.rename(folder / "weave" / "weave.lock", folder / "outside" / "file"),
    "link": lambda folder: os.symlink("/etc/passwd", folder / "outside" / "link"),
    "make a folder": lambda folder: (folder / "outside" / "folder").mkdir(),
    "make a device": lambda folder: os.mknod(folder / "outside" / "device", 0o020666, os.makedev(1, 1)),
    "truncate": lambda folder: os.truncate(folder / "outside" / "file", 0),
    "write memory of the kernel": lambda _: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
}
POWERS: dict[str, Callable[[Path], Any]] = {
    "give a file away": lambda folder: os.chown(folder / "outside" / "file", 4001, 4001),
    "raw network": lambda _: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "change the root": os.chroot,
    "set the host's name": lambda _: socket.sethostname(socket.gethostname()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_supervisor_changes_only_its_own_files(name: str) -> None:
    assert str(locked_in(CHANGES[name])).startswith("refused: ")


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "write memory of the kernel"])
def test_without_landlock_root_changes_other_files(name: str) -> None:
    without = locked_in(CHANGES[name], without="landlock")
    # Creating a device needs CAP_MKNOD too, so the other layer still forbids it.
    assert str(without).startswith("refused: ") == (name == "make a device")


@pytest.mark.parametrize("name", POWERS)
@pytest.mark.parametrize("other_users", [True, False])
def test_the_supervisor_has_no_root_powers(name: str, other_users: bool) -> None:
    assert locked_in(POWERS[name], other_users=other_users) == "refused: Operation not permitted"


@pytest.mark.parametrize("name", POWERS)
def test_without_dropping_capabilities_it_has_root_powers(name: str) -> None:
    assert locked_in(POWERS[name], without="capabilities") is None


def test_the_supervisor_keeps_the_powers_it_needs() -> None:
    def needed(folder: Path) -> list[bool]:
        (folder / "log" / "audit.log").write_text("line")
        (folder / "weave" / "weave.sock").unlink()
        with socket.socket(socket.AF_UNIX) as again:
            again.bind(str(folder / "weave" / "weave.sock"))
        child = subprocess.Popen(["sleep", "60"], user=4001, group=4001, extra_groups=[4002], cwd="/")
        status = Path(f"/proc/{child.pid}/status").read_text()
        child.kill()
        return ["Uid:\t4001\t4001\t4001\t4001" in status, "CapBnd:\t0000000000000000" in status, child.wait() == -9]

    assert locked_in(needed) == [True, True, True]


def test_without_other_users_it_cannot_change_its_user() -> None:
    assert locked_in(lambda _: os.setresuid(4001, 4001, 4001), other_users=False) == "refused: Operation not permitted"
    assert not prctl.get_no_new_privs()  # and the test's own process is unchanged


def test_attestation_refuses_a_child_that_runs_as_another_user() -> None:
    child = subprocess.Popen(["sleep", "60"], user=4001, group=4001, extra_groups=[], cwd="/")
    try:
        with pytest.raises(AttestationFailed, match="Uid is 4001"):
            attest(child.pid, Confinement("worker", Account(4002, 4001, ()), False, None), parent=os.getpid())
    finally:
        child.kill()
        child.wait()
