"""Every process killed, stopped or hung, at every stage: waiting clients get an error, and the next image is right."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.builds import DUMPABLE, daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import before, constant
from tests.support.stages import STAGES, at_stage, end_of, generates_right, held, wait_until_alone
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.client_messages import Cancel, Generate
from weave.protocol.errors import ErrorCode

# Only a job's deadline is reached here. The others leave room for a machine that is busy.
LIMITS = "[limits]\njob_seconds = 4.0\nload_seconds = 30.0\nstart_seconds = 90.0\n"
# The delays of a daemon whose children are killed again and again.
IMPATIENT = (
    constant("supervisor/children/restart.py", "_LONGEST_BACKOFF_SECONDS", "0.1"),
    constant("supervisor/supervisor.py", "_TICK_SECONDS", "2.0"),
    constant("broker/schedule/runner.py", "_CANCEL_SECONDS", "1.0"),
)


class Hurt:
    """A daemon whose processes are killed again and again, its image, and the descriptors that its processes hold when
    idle."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        with daemon.client() as client:
            self.expected = images(generate(client))[0].data
        wait_until_alone(daemon)
        self.held = held(daemon)

    def is_well(self) -> bool:
        assert generates_right(self.daemon, self.expected)
        # No process keeps a descriptor. The last connection may take a moment to close.
        return bool(wait_for(lambda: held(self.daemon) == self.held, seconds=10))


@pytest.fixture(scope="module")
def hurt() -> Iterator[Hurt]:
    daemon = daemon_of(IMPATIENT + DUMPABLE, LIMITS + MODEL)
    try:
        yield Hurt(daemon)
    finally:
        assert daemon.stop() == 0


VICTIMS = {"worker": [stage for stage in STAGES if stage != "idle"], "gpu_worker": STAGES, "broker": STAGES}


@pytest.mark.parametrize("victim, stage", [(victim, stage) for victim, stages in VICTIMS.items() for stage in stages])
def test_after_any_process_is_killed_the_next_image_is_right(hurt: Hurt, victim: str, stage: str) -> None:
    with at_stage(hurt.daemon, stage) as (client, request):
        wait_for(lambda: hurt.daemon.pid_of(victim))
        os.kill(hurt.daemon.pid_of(victim), signal.SIGKILL)
        told = end_of(client, request)
    if victim == "broker" or request is None:
        assert told is None
    elif (victim, stage) == ("gpu_worker", "loading"):
        # If it had not forked yet, the next zygote does. The job is then long enough to reach its deadline.
        assert told in (ErrorCode.WORKER_FAILED, ErrorCode.TIMED_OUT)
    else:
        assert told is ErrorCode.WORKER_FAILED
    assert hurt.is_well()


@pytest.mark.parametrize("stage", ["loading", "running"])
def test_a_killed_supervisor_leaves_nothing_and_can_be_restarted(stage: str) -> None:
    daemon = Daemon(MODEL).wait_until_serving()
    with daemon.client() as client:
        expected = images(generate(client))[0].data
    with at_stage(daemon, stage):
        processes = daemon.processes()
        daemon.process.kill()
        daemon.process.wait()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), seconds=10)
    again = Daemon(folder=daemon.folder)
    wait_for(lambda: len(again.events("serving")) == 2)
    try:
        assert generates_right(again, expected)
    finally:
        assert again.stop() == 0


@pytest.mark.parametrize("stage", ["idle", "loaded", "running"])
def test_a_stopped_broker_is_replaced(hurt: Hurt, stage: str) -> None:
    with at_stage(hurt.daemon, stage) as (client, request):
        broker = hurt.daemon.pid_of("broker")
        os.kill(broker, signal.SIGSTOP)
        wait_for(lambda: not os.path.exists(f"/proc/{broker}"), seconds=30)
        assert end_of(client, request) is None
    assert hurt.daemon.events("broker_hung")[-1]["broker"] == broker
    assert hurt.is_well()


@pytest.mark.parametrize("stage", ["loaded", "running"])
def test_a_stopped_worker_is_killed_at_its_jobs_deadline(hurt: Hurt, stage: str) -> None:
    with at_stage(hurt.daemon, stage) as (client, request):
        wait_for(lambda: "worker" in hurt.daemon.processes().values())
        os.kill(hurt.daemon.pid_of("worker"), signal.SIGSTOP)
        if request is None:
            with pytest.raises(WeaveError) as late:
                generate(client)
            assert late.value.code is ErrorCode.TIMED_OUT
        else:
            assert end_of(client, request) is ErrorCode.TIMED_OUT
    assert hurt.is_well()


# Leaves time to stop the worker before it is attested.
SLOW_TO_LOCK_IN = before("gpu_worker/worker.py", "warm_up", "import time\ntime.sleep(1)")


def test_a_worker_stopped_before_lock_down_is_replaced() -> None:
    daemon = daemon_of((*IMPATIENT, SLOW_TO_LOCK_IN), "[limits]\nstart_seconds = 5.0\n" + MODEL)
    try:
        wait_for(lambda: daemon.events("imported"))
        with daemon.client() as client:
            request = client.send(Generate(prompt=PROMPT, model="shapes"))
            wait_for(lambda: "worker" in daemon.processes().values())
            os.kill(daemon.pid_of("worker"), signal.SIGSTOP)
            assert end_of(client, request) is ErrorCode.WORKER_FAILED
            assert "the start of auto has not finished" in daemon.events("worker_ended")[-1]["cause"]
            assert images(generate(client))
    finally:
        assert daemon.stop() == 0


def test_a_slow_import_is_named_with_the_setting_to_raise() -> None:
    slow = before("gpu_worker/__main__.py", "Zygote.import_libraries", "time.sleep(3600)")
    daemon = daemon_of((slow,), "[limits]\nstart_seconds = 1.0\n" + MODEL)
    try:
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        cause = wait_for(lambda: daemon.events("worker_ended"))[-1]["cause"]
        assert "the import of torch and diffusers has not finished; raise [limits] start_seconds" in cause
    finally:
        assert daemon.stop() == 0


def test_a_stopped_zygote_is_replaced_when_it_does_not_fork() -> None:
    daemon = daemon_of(IMPATIENT, "[limits]\nstart_seconds = 5.0\n" + MODEL)
    try:
        wait_for(lambda: daemon.events("imported"))
        zygote = daemon.pid_of("gpu_worker")
        os.kill(zygote, signal.SIGSTOP)
        with daemon.client() as client, pytest.raises(WeaveError) as failed:
            generate(client)
        assert failed.value.code is ErrorCode.WORKER_FAILED
        cause = wait_for(lambda: daemon.events("worker_ended"))[-1]["cause"]
        assert cause == "not ready within 5 s: the zygote did not fork"
        wait_for(lambda: len(daemon.events("imported")) == 2)
        assert daemon.pid_of("gpu_worker") != zygote
        with daemon.client() as client:
            assert images(generate(client))
    finally:
        assert daemon.stop() == 0


def test_clients_are_served_while_the_supervisor_is_stopped(hurt: Hurt) -> None:
    with hurt.daemon.client() as client:
        client.load_model("shapes")
        hurt.daemon.process.send_signal(signal.SIGSTOP)
        try:
            assert images(generate(client))[0].data == hurt.expected
            request = client.send(Cancel(job=0))
            assert end_of(client, request) is ErrorCode.INVALID_REQUEST
        finally:
            hurt.daemon.process.send_signal(signal.SIGCONT)
    assert hurt.is_well()


# sum() over a range is a loop in C that never releases the interpreter lock or handles signals.
HUNG = before("gpu_worker/schedulers.py", "steps_done", "if steps == 99:\n    sum(range(2**62))")


@pytest.fixture(scope="module")
def hangs() -> Iterator[Hurt]:
    daemon = daemon_of((*IMPATIENT, HUNG, *DUMPABLE), "[limits]\njob_seconds = 6.0\n" + MODEL)
    try:
        yield Hurt(daemon)
    finally:
        assert daemon.stop() == 0


def test_a_worker_hung_in_native_code_is_killed_at_the_deadline(hangs: Hurt) -> None:
    with hangs.daemon.client() as client, pytest.raises(WeaveError) as late:
        generate(client, steps=99)
    assert late.value.code is ErrorCode.TIMED_OUT
    assert hangs.is_well()


def test_a_worker_hung_in_native_code_is_killed_after_a_cancel(hangs: Hurt) -> None:
    with hangs.daemon.client() as client:
        answers = client.generate(PROMPT, model="shapes", steps=99)
        next(answers)
        wait_for(lambda: running(hangs.daemon))
        with hangs.daemon.client() as other:
            other.cancel(job=running(hangs.daemon))
        with pytest.raises(WeaveError) as ended:
            list(answers)
        assert ended.value.code is ErrorCode.CANCELLED
    assert hangs.is_well()


def running(daemon: Daemon) -> int:
    with daemon.client() as client:
        return next((job.job for job in client.status().jobs if job.state == "running"), 0)
