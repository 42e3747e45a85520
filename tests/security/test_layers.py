"""The real daemon with one layer taken away: the attack that only this layer stops succeeds, or the daemon notices that
the layer is missing and serves no client."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import prctl
import pytest

from tests.security.test_attestation import FORGOT_TSYNC
from tests.security.test_boundaries import CONNECT_AND_READ
from tests.security.test_hostile_processes import BROKER, HOSTILE, WORKER, Hostile, attack_as_broker
from tests.support.builds import build, daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.seams import Seams, before, constant, replaced, without
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.errors import ErrorCode
from weave.sandbox.hardening import harden

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, or has capabilities to keep")
NO_BOUNDS_IN_THE_BROKER = (without("broker/front/requests.py", "check_bounds"),)
# The worker's check is this function alone.
NO_BOUNDS_AT_ALL = (*NO_BOUNDS_IN_THE_BROKER, without("protocol/checks.py", "check_parameters"))


@root_only
def test_without_the_peer_check_a_stranger_is_answered() -> None:
    daemon = daemon_of((replaced("broker/admission/access.py", "is_allowed", "return True"),))
    try:
        for path, mode in ((daemon.folder, 0o755), (daemon.socket.parent, 0o755), (daemon.socket, 0o666)):
            path.chmod(mode)
        asked = CONNECT_AND_READ.replace('b"WEVE"', 'b"WEVE" + bytes(12)')
        command = [sys.executable, "-c", asked, daemon.socket]
        assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) > 0
    finally:
        daemon.stop()


def test_without_the_brokers_bounds_the_worker_refuses() -> None:
    daemon = daemon_of(NO_BOUNDS_IN_THE_BROKER)
    try:
        with daemon.client() as client:
            with pytest.raises(WeaveError) as refused:
                generate(client, steps=101)
            assert refused.value.code is ErrorCode.WORKER_FAILED
            wait_for(lambda: [line for line in daemon.events("job_failed") if "steps is 101" in line["detail"]])
            assert images(generate(client))
    finally:
        daemon.stop()


def test_without_any_bounds_the_request_is_served() -> None:
    daemon = daemon_of(NO_BOUNDS_AT_ALL)
    try:
        with daemon.client() as client:
            assert images(generate(client, steps=101))
    finally:
        daemon.stop()


def test_without_the_seal_check_a_client_gets_a_writable_image() -> None:
    unchecked = without("protocol/channel.py", "check_sealed_memfd")
    hostile = Hostile((*WORKER, unchecked), {"gpu_worker/hostile.py": HOSTILE / "worker.py"}, MODEL)
    try:
        with hostile.daemon.client() as client:
            client.unload()
            hostile.arm("a memfd that can be written to")
            assert images(generate(client, format="raw"))[0].data != hostile.expected
    finally:
        hostile.daemon.stop()


def test_without_the_seal_check_a_worker_reads_what_can_change() -> None:
    unchecked = without("protocol/channel.py", "check_sealed_memfd")
    hostile = Hostile((*BROKER, unchecked), {"broker/hostile.py": HOSTILE / "broker.py"}, MODEL)
    try:
        events = attack_as_broker(hostile, "worker: an image that can change")
        assert [line["outcome"] for line in events if line["event"] == "attacked"] == ["finished"]
    finally:
        hostile.daemon.stop()


def keeps_capabilities(*modules: str) -> Seams:
    """Their processes still claim the layer."""
    return tuple(constant(module, "drop_capabilities", 'lambda **_: "no-capabilities"') for module in modules)


UNATTESTED: dict[str, tuple[Seams, str]] = {
    "seccomp on the first thread only": (FORGOT_TSYNC, "Seccomp is 0, not 2"),
    "capabilities in the worker": (
        keeps_capabilities("gpu_worker/worker.py", "gpu_worker/__main__.py", "supervisor/main.py"),
        "Cap",
    ),
    "a layer that does not exist": (
        (before("gpu_worker/worker.py", "lock_down", 'layers = (*layers, "approved by the administrator")'),),
        "not a message of this channel",
    ),
    "a worker of another parent": (
        (before("sandbox/attestation.py", "attest", 'parent = 1 if confinement.role == "worker" else parent'),),
        "is not a child of process 1",
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=root_only if "capabilities" in name else ()) for name in UNATTESTED]
)
def test_a_worker_lacking_a_layer_is_not_attested(name: str) -> None:
    seams, reason = UNATTESTED[name]
    daemon = daemon_of(seams)
    try:
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        assert reason in daemon.events("worker_ended")[-1]["cause"]
    finally:
        daemon.stop()


@root_only
def test_a_broker_with_capabilities_is_not_attested() -> None:
    daemon = Daemon(MODEL, command=build(keeps_capabilities("broker/__main__.py", "supervisor/main.py")))
    try:
        wait_for(lambda: [line for line in daemon.events("broker_violation") if "Cap" in line["detail"]])
        assert not daemon.events("serving")
    finally:
        daemon.stop()


@root_only
@pytest.mark.parametrize("hardened", [True, False])
def test_a_dumpable_process_is_open_to_others_of_its_user(hardened: bool) -> None:
    """Through /proc/PID/mem a process could be read and changed without making a system call itself."""

    def as_4001(action: Callable[[], Any]) -> int:
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(4001, 4001, 4001)
            os.setresuid(4001, 4001, 4001)
            prctl.set_dumpable(1)  # as an exec would; changing users has cleared it
            action()
            os._exit(0)
        return pid

    here, there = socket.socketpair()

    def be_a_victim() -> None:
        if hardened:
            harden()
        there.send(b"!")
        there.recv(1)

    def attack() -> None:
        try:
            os.open(f"/proc/{victim}/mem", os.O_RDWR)
        except PermissionError:
            os._exit(1)

    victim = as_4001(be_a_victim)
    here.recv(1)
    refused = os.waitstatus_to_exitcode(os.waitpid(as_4001(attack), 0)[1])
    here.send(b"!")
    os.waitpid(victim, 0)
    assert refused == hardened
