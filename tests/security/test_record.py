"""Record mode: what it lets through, what it logs, and that only --record in user mode turns it on."""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import Mock

import pytest

from tests.integration.test_weavectl import weavectl
from tests.security.hostile.worker import CALLS_OF_A_NEW_DRIVER, LISTED_IOCTL, UNLISTED_IOCTL
from tests.security.test_hostile_processes import BROKER, HOSTILE, WORKER, Hostile, attack, attack_as_broker
from tests.support.builds import daemon_of
from tests.support.daemon import COMMAND
from tests.support.generation import generate, images
from tests.support.seams import before, constant
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.channel import received_descriptors
from weave.protocol.client_messages import StatusReport
from weave.protocol.errors import ErrorCode
from weave.sandbox import broker_calls, seccomp, worker_calls
from weave.sandbox.hardening import harden
from weave.supervisor.record_mode import recorder as recorders
from weave.supervisor.record_mode.findings import call_found
from weave.supervisor.record_mode.recorder import Recorder
from weave.supervisor.supervisor import Supervisor

HOSTILE_WORKER: dict[str, Path | str] = {"gpu_worker/hostile.py": HOSTILE / "worker.py"}
ASKED_TO_RECORD = before(
    "supervisor/children/zygote.py",
    "ZygoteProcess.send",
    "from msgspec import structs\nmessage = structs.replace(message, record=True)",
)
# worker_calls as the worker's module sees it.
LIST_OF_RECORD_MODE = constant(
    "gpu_worker/worker.py",
    "worker_calls",
    "__import__('types').SimpleNamespace(calls=lambda pid, gpu, of=worker_calls.recording: of(pid))",
)


class Recorded(NamedTuple):
    """The results of a daemon in record mode."""

    image_is_right: bool
    status: StatusReport
    doctor: str
    events: list[dict[str, Any]]
    output: str
    exit_status: int


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    hostile = Hostile(WORKER, HOSTILE_WORKER, MODEL, options=("--record",))
    daemon = hostile.daemon
    with daemon.client() as client:
        client.unload()
        hostile.arm("a new driver")
        image = images(generate(client, format="raw"))[0].data
        status = client.status()
    doctor = weavectl(daemon, "doctor").stdout
    exit_status = daemon.stop()
    return Recorded(image == hostile.expected, status, doctor, daemon.all_events(), daemon.output(), exit_status)


def named(recorded: Recorded, event: str) -> list[dict[str, Any]]:
    return [line for line in recorded.events if line["event"] == event]


def test_record_mode_lets_forbidden_calls_through(recorded: Recorded) -> None:
    assert recorded.image_is_right and recorded.exit_status == 0
    assert named(recorded, "recording") and not named(recorded, "sandbox_violation")
    # Answering all those calls did not delay the supervisor's answers to the broker.
    assert not named(recorded, "broker_hung")


def test_each_finding_is_logged_once_an_ioctl_by_its_request(recorded: Recorded) -> None:
    found = [
        (line["call"], line.get("request"), line.get("type"), line["listed"])
        for line in named(recorded, "sandbox_recorded")
    ]
    assert found == [
        ("getpgid", None, None, False),
        ("ioctl", hex(LISTED_IOCTL), "F", True),
        ("ioctl", hex(UNLISTED_IOCTL), "Z", False),
    ]


def test_the_summary_has_one_line_for_each_finding(recorded: Recorded) -> None:
    summary, _, to_add = recorded.output.partition("To add:\n")
    assert [line.split() for line in summary.splitlines()] == [
        ["not", "listed", "getpgid", str(CALLS_OF_A_NEW_DRIVER)],
        ["not", "listed", "ioctl", hex(UNLISTED_IOCTL), "(type", "Z)", "1"],
        ["listed", "ioctl", hex(LISTED_IOCTL), "(type", "F)", "1"],
    ]
    assert to_add.splitlines() == [
        "weave/sandbox/worker_calls.py: at the end of _GPU",
        '    Call("getpgid", "..."),',
        f'    Call("ioctl", "...", (Condition(1, {UNLISTED_IOCTL:#x}),)),',
    ]


def test_status_and_doctor_say_that_the_worker_is_recorded(recorded: Recorded) -> None:
    worker, broker = (set(recorded.status.sandbox[process]) for process in ("worker", "broker"))
    assert worker == {"landlock-recording", "no-capabilities", "seccomp-recording", "no-new-privs"}
    assert "seccomp" in broker and "seccomp-recording" not in broker
    warned = [line for line in recorded.doctor.splitlines() if "recording" in line]
    assert len(warned) == 1 and warned[0].startswith("warn") and "instead of enforcing" in warned[0]


def test_a_worker_that_records_by_itself_is_never_attested() -> None:
    """Its channel does not reach the broker."""
    daemon = daemon_of((ASKED_TO_RECORD,))
    try:
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        assert "not a message of this channel" in daemon.events("worker_ended")[-1]["cause"]
    finally:
        assert daemon.stop() == 0
    assert daemon.output() == "" and not daemon.events("sandbox_recorded") and not daemon.events("worker_started")


def test_the_filter_of_record_mode_alone_lets_nothing_through() -> None:
    """Only the supervisor's answer lets a call through."""
    daemon = daemon_of((LIST_OF_RECORD_MODE,))
    try:
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        assert [line["call"] for line in daemon.events("sandbox_violation")] == ["openat"]
    finally:
        assert daemon.stop() == 0
    assert daemon.output() == "" and not daemon.events("sandbox_recorded")


def test_without_record_mode_a_forbidden_call_is_fatal() -> None:
    hostile = Hostile(WORKER, HOSTILE_WORKER, MODEL)
    try:
        error, events = attack(hostile, "a new driver")
        assert error.code is ErrorCode.WORKER_FAILED
        assert [line["call"] for line in events if line["event"] == "sandbox_violation"] == ["getpgid"]
    finally:
        assert hostile.daemon.stop() == 0
    assert hostile.daemon.output() == "" and not hostile.daemon.events("sandbox_recorded")


def test_record_mode_still_kills_a_broker_for_a_forbidden_call() -> None:
    hostile = Hostile(BROKER, {"broker/hostile.py": HOSTILE / "broker.py"}, MODEL, options=("--record",))
    try:
        events = attack_as_broker(hostile, "call: ")
        violations = [line for line in events if line["event"] == "sandbox_violation"]
        assert [(line["of"], line["call"]) for line in violations] == [("broker", "getpgid")]
        assert not [line for line in events if line["event"] == "attacked"]
    finally:
        hostile.daemon.stop()
    # The honest workers made no unlisted call.
    assert hostile.daemon.output() == ""


@pytest.mark.parametrize("option", ["--system", "--socket-path=/run/none"])
def test_record_is_refused_outside_user_mode(option: str) -> None:
    ended = subprocess.run([COMMAND, "--record", option], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2 and "--record" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("mode", ["system", "attached"])
def test_a_supervisor_outside_user_mode_takes_no_recorder(mode: str) -> None:
    with pytest.raises(ValueError, match=f"record mode in {mode} mode"):
        Supervisor(cast(Any, Mock(mode=mode)), cast(Any, Mock()), (), Mock(), None, recorder=Recorder())


@pytest.mark.parametrize("table", ["", "[device]\n", "[limits]\n", "[system]\n"])
def test_the_config_cannot_turn_record_mode_on(tmp_path: Path, table: str) -> None:
    config = tmp_path / "weave-compute.toml"
    config.write_text(f"{table}record = true\n{MODEL}")
    ended = subprocess.run(
        [COMMAND, "--config", config, "--check-config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 78 and "record" in ended.stderr


@pytest.fixture
def waiting() -> Iterator[tuple[int, int]]:
    """A process that makes a forbidden call, and its listener. It exits with status 7 after the call."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        harden()
        socket.send_fds(theirs, [b"!"], [seccomp.install(broker_calls.CALLS)])
        os.getpgid(0)
        os._exit(7)
    with ours, theirs:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    (listener,) = received_descriptors(ancillary)
    assert select.select([listener], [], [], 60)[0]
    yield pid, listener
    os.close(listener)


def test_a_call_let_through_is_made(waiting: tuple[int, int]) -> None:
    pid, listener = waiting
    violation = seccomp.receive_violation(listener)
    assert violation is not None and violation.call == "getpgid"
    seccomp.let_through(listener, violation)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_answering_an_exited_thread_is_harmless(waiting: tuple[int, int]) -> None:
    pid, listener = waiting
    violation = seccomp.receive_violation(listener)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert violation is not None
    seccomp.let_through(listener, violation)
    assert seccomp.has_ended(listener)


@pytest.mark.parametrize(
    ("request_number", "listed"),
    [
        (LISTED_IOCTL, True),
        (UNLISTED_IOCTL, False),
        (0x5401, False),
        (0xC0204625, False),
        (0xC00846D3, False),
        (0x3E, False),
        (0x25, True),
        (0x30000001, True),
        (0x30000003, False),
        (0x1_0000_0025, True),
        (0x1_3000_0001, True),
    ],
)
def test_an_ioctl_is_judged_as_a_gpu_workers_filter_would(request_number: int, listed: bool) -> None:
    line = seccomp.find(worker_calls.calls(0, gpu=True), "ioctl", (3, request_number, 0, 0, 0, 0))
    assert isinstance(line, seccomp.Call) == listed


def test_findings_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "_MOST_FINDINGS", 2)
    recorder = Recorder()
    for request in (0x5A00, 0x5A01, 0x5A02, 0x5A03, 0x5A01):
        violation = seccomp.Violation(1, 1, "ioctl", (3, request, 0, 0, 0, 0))
        recorder.count(call_found(violation, worker_calls.calls(1, gpu=True), listed=False), violation)
    summary, _, to_add = "\n".join(recorder.summary()).partition("\nTo add:\n")
    assert [line.split()[-1] for line in summary.splitlines()] == ["2", "2", "1"]
    assert "(further ones)" in summary and len(to_add.splitlines()) == 3
