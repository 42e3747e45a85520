"""What attestation requires of a child: each requirement is broken in a real child, which then serves no client. Again
inside other seccomp filters, as in the shipped unit: the child must have one filter more than the supervisor."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import inside
from tests.support.builds import build, daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import after, before, constant, replaced
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.client_messages import Generate
from weave.protocol.errors import ErrorCode
from weave.sandbox import attestation
from weave.sandbox.account import Account
from weave.sandbox.attestation import AttestationFailed, Confinement, attest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may trace what is not dumpable, or has two users")
FORGOT_TSYNC = (after("sandbox/seccomp.py", "_empty_filter", "result.set_attr(pyseccomp.Attr.CTL_TSYNC, 0)"),)
# This process may already run inside filters.
OUTER = int(attestation._status(Path("/proc/thread-self"))["Seccomp_filters"])


def surrounded(filters: int) -> tuple[str, ...]:
    return (sys.executable, inside.__file__, str(filters))


@pytest.mark.parametrize("filters", [0, 1, 2])
def test_the_daemon_generates_inside_other_seccomp_filters(filters: int) -> None:
    daemon = Daemon(MODEL, prefix=surrounded(filters)).wait_until_serving()
    try:
        with daemon.client() as client:
            assert images(generate(client))
        for role, more in (("broker", 1), ("gpu_worker", 0), ("worker", 1)):
            for thread in Path(f"/proc/{daemon.pid_of(role)}/task").iterdir():
                status = (thread / "status").read_text()
                assert f"Seccomp_filters:\t{OUTER + filters + more}\n" in status, role
    finally:
        assert daemon.stop() == 0


@pytest.mark.parametrize("filters", [0, 1, 2])
def test_a_worker_with_an_unconfined_thread_is_not_attested(filters: int) -> None:
    daemon = daemon_of(FORGOT_TSYNC, MODEL, prefix=surrounded(filters))
    try:
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        told = f"Seccomp_filters is {OUTER + filters}, not {OUTER + filters + 1}" if filters else "Seccomp is 0, not 2"
        assert told in daemon.events("worker_ended")[-1]["cause"]
    finally:
        daemon.stop()


@pytest.mark.parametrize("filters", [0, 1])
def test_a_broker_with_another_processs_listener_is_not_attested(filters: int) -> None:
    """A child of the broker installs the filter, and the broker sends that child's listener."""
    in_a_child = """
        import socket
        here, there = socket.socketpair()
        if os.fork() == 0:
            here.close()
            socket.send_fds(there, [b'!'], [original(calls)], socket.MSG_NOSIGNAL)
            there.recvmsg(1)
            os._exit(0)
        there.close()
        return socket.recv_fds(here, 1, 1)[1][0]
    """
    command = build((replaced("sandbox/seccomp.py", "install", in_a_child),))
    daemon = Daemon(MODEL, prefix=surrounded(filters), command=command)
    try:
        told = f"Seccomp_filters is {OUTER + filters}, not {OUTER + filters + 1}" if filters else "Seccomp is 0, not 2"
        wait_for(lambda: [line for line in daemon.events("broker_violation") if told in line["detail"]])
        assert not daemon.events("serving")
    finally:
        daemon.stop()


# PTRACE_SEIZE by a child of the process itself, which allows it (PR_SET_PTRACER) where Yama would refuse. The tracer
# waits for its end, as no other process can.
BE_TRACED = """
    import ctypes, os
    libc = ctypes.CDLL(None)
    libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    reading, writing = os.pipe()
    me = os.getpid()
    if os.fork() == 0:
        os.write(writing, b"%d" % libc.ptrace(0x4206, me, 0, 0))
        os.closerange(0, 1000)
        os.waitpid(me, 0x40000000)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 9) == b"0"
    os.close(reading)
"""
BROKER_TRACED = (before("broker/__main__.py", "main", BE_TRACED),)
# A worker is never dumpable, so only root can trace it: it waits until the test does.
AWAIT_TRACER = """
    import time
    while "TracerPid:\\t0\\n" in open("/proc/self/status").read():
        time.sleep(0.01)
"""
WORKER_TRACED = (after("gpu_worker/worker.py", "close_descriptors_except", AWAIT_TRACER),)


def trace(pid: int) -> int:
    """In a separate process, which waits for its end."""
    tracer = os.fork()
    if tracer == 0:
        libc = ctypes.CDLL(None)
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        seized = libc.ptrace(0x4206, pid, 0, 0) == 0
        os.waitpid(pid, 0x40000000)  # __WALL
        os._exit(0 if seized else 1)
    return tracer


def test_a_broker_traced_before_hardening_is_not_attested() -> None:
    daemon = Daemon(MODEL, command=build(BROKER_TRACED))
    try:
        refused = wait_for(lambda: daemon.events("broker_violation"))[0]
        assert "TracerPid is " in refused["detail"] and refused["detail"].endswith(", not 0")
        assert not daemon.events("serving")
    finally:
        daemon.stop()


@root_only
def test_a_traced_worker_is_not_attested() -> None:
    daemon = daemon_of(WORKER_TRACED)
    try:
        with daemon.client() as client:
            request = client.send(Generate(prompt=PROMPT, model="shapes"))
            tracer = trace(wait_for(lambda: daemon.pid_of("worker")))
            with pytest.raises(WeaveError) as failed:
                list(client.answers(request))
        assert failed.value.code is ErrorCode.WORKER_FAILED
        assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == 0
        assert f"TracerPid is {tracer}, not 0" in daemon.events("worker_ended")[-1]["cause"]
    finally:
        daemon.stop()


def test_without_the_tracer_check_a_traced_broker_serves() -> None:
    others = "{field: value for field, value in _REQUIRED.items() if field != 'TracerPid'}"
    daemon = daemon_of((*BROKER_TRACED, constant("sandbox/attestation.py", "_REQUIRED", others)))
    try:
        with daemon.client() as client:
            assert client.status().version
    finally:
        daemon.stop()


def test_without_filter_counting_unconfined_threads_pass() -> None:
    others = "required = {field: value for field, value in required.items() if field != 'Seccomp_filters'}"
    uncounted = before("sandbox/attestation.py", "_attest_thread", others)
    daemon = daemon_of((*FORGOT_TSYNC, uncounted), MODEL, prefix=surrounded(1))
    try:
        with daemon.client() as client:
            assert images(generate(client))
    finally:
        daemon.stop()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], cwd="/") as child:
        yield child
        child.kill()


def test_attestation_fails_without_the_kernels_filter_count(
    monkeypatch: pytest.MonkeyPatch, sleeper: "subprocess.Popen[bytes]"
) -> None:
    told = attestation._status
    monkeypatch.setattr(
        attestation, "_status", lambda thread: {k: v for k, v in told(thread).items() if k != "Seccomp_filters"}
    )
    with pytest.raises(AttestationFailed, match="does not report Seccomp_filters"):
        attest(sleeper.pid, Confinement("broker", Account.own(), False, None), parent=os.getpid())


def test_a_child_that_keeps_starting_threads_is_not_attested(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = iter(range(10**9))
    monkeypatch.setattr(attestation, "_threads", lambda _: [Path(f"/proc/none/{next(threads)}")])
    with pytest.raises(AttestationFailed, match="faster than they can be checked"):
        attest(1, Confinement("broker", Account.own(), False, None), parent=os.getpid())
