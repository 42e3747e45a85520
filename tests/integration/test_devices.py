"""Several devices: a worker on each, and one queue. Two workers on the CPU stand in for two GPUs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cancel import LONG, reach
from tests.support.builds import daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import before, constant
from tests.support.system import MODEL
from weave.client import Answer, Client, WeaveError
from weave.protocol.client_messages import Done, Generate, Loading, Progress
from weave.protocol.errors import ErrorCode

WEAVECTL = Path(sys.executable).with_name("weavectl")
TWO = '[device]\ndevices = ["cpu", "cpu"]\nthreads = 1\n'
ONE = TWO.replace('["cpu", "cpu"]', '["cpu"]')
OTHER = MODEL.replace("[models.shapes]", "[models.other]")


@pytest.fixture(scope="module")
def two() -> Iterator[Daemon]:
    daemon = Daemon(TWO + MODEL + OTHER).wait_until_serving()
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def client(two: Daemon) -> Iterator[Client]:
    """Leaves no job and no worker."""
    with two.client() as client:
        yield client
        cancel_all(client)
        client.unload()


def cancel_all(client: Client) -> None:
    for job in client.status().jobs:
        client.cancel(job=job.job)
    wait_for(lambda: not client.status().jobs)


def cancel_but(client: Client, kept: int) -> None:
    """Cancel the running jobs."""
    for job in client.status().jobs:
        if job.state == "running":
            client.cancel(job=job.job)


def workers(daemon: Daemon) -> set[int]:
    return {pid for pid, role in daemon.processes().items() if role == "worker"}


def states(client: Client) -> list[str]:
    return [job.state for job in client.status().jobs]


def begin(client: Client, **parameters: Any) -> Iterator[Answer]:
    """A long job that has reached its first step."""
    answers = client.answers(client.send(Generate(prompt=PROMPT, **LONG | parameters)))
    reach(Progress, answers)
    return answers


def test_two_jobs_run_at_once_and_the_third_waits(two: Daemon, client: Client) -> None:
    requests = [client.send(Generate(prompt=PROMPT, **LONG)) for _ in range(3)]
    wait_for(lambda: states(client) == ["running", "running", "queued"])
    assert len(workers(two)) == 2 and len(requests) == 3


def test_a_reload_adds_and_removes_devices_around_a_job(two: Daemon, client: Client) -> None:
    """The job on a removed device ends as it would have. Each device gives the same image as the others."""
    expected = images(generate(client, format="raw"))[0].data
    begin(client)
    with two.client() as other:
        last = other.generate(PROMPT, **LONG | {"images": 1})
        reach(Progress, last)
        two.reload(ONE + MODEL + OTHER)
        # Both still run; a third job waits for the one device that is left.
        third = other.send(Generate(prompt=PROMPT, model="shapes", steps=4, seed=1, format="raw"))
        assert sorted(states(other)) == ["queued", "running", "running"]
        assert type(list(last)[-1].event) is Done
        cancel_but(other, third)
        assert images(list(other.answers(third)))[0].data == expected
        assert len(workers(two)) == 1
        two.reload(TWO + MODEL + OTHER)
        begin(client)
        assert images(generate(other, format="raw"))[0].data == expected
        assert len(workers(two)) == 2


def test_a_killed_worker_costs_only_its_own_job(two: Daemon, client: Client) -> None:
    """Also if a fault killed it, after which the zygote is replaced: it is kept until its other worker has ended."""
    for number in (signal.SIGKILL, signal.SIGSEGV):
        first = begin(client)
        (victim,) = workers(two)
        with two.client() as other:
            second = begin(other)
            os.kill(victim, number)
            with pytest.raises(WeaveError) as lost:
                list(first)
            assert lost.value.code is ErrorCode.WORKER_FAILED
            # Its place is taken while the other job still runs, by a worker of the next zygote.
            assert [type(answer.event) for answer in client.generate(PROMPT, model="shapes", steps=1)][-1] is Done
            assert states(client) == ["running"]
            cancel_all(client)
            with pytest.raises(WeaveError) as cancelled:
                list(second)
            assert cancelled.value.code is ErrorCode.CANCELLED
        client.unload()
        wait_for(lambda: sorted(two.processes().values()) == ["broker", "gpu_worker"])


def test_a_job_goes_to_the_idle_worker_with_its_model(client: Client) -> None:
    """Else to an idle device without a worker, and only then in the place of another model."""
    for model in ("shapes", "other", "shapes", "other", "other", "shapes"):
        generate(client, model=model)
    loads = client.status().metrics.models_loaded
    generate(client, model="shapes")
    generate(client, model="other")
    assert client.status().metrics.models_loaded == loads


def test_a_job_does_not_wait_for_a_busy_worker_with_its_model(two: Daemon, client: Client) -> None:
    begin(client)
    with two.client() as other:
        kinds = [type(answer.event) for answer in other.generate(PROMPT, model="shapes", steps=1)]
    assert Loading in kinds and kinds[-1] is Done
    assert states(client) == ["running"] and len(workers(two)) == 2


def test_unload_ends_every_worker(two: Daemon, client: Client) -> None:
    begin(client)
    with two.client() as other:
        generate(other)
    assert len(workers(two)) == 2
    cancel_all(client)
    client.unload()
    assert not workers(two)


BROKEN = '[device]\ndevices = ["cuda:7", "cpu"]\nthreads = 1\n'


def test_a_missing_device_is_named_and_the_other_serves() -> None:
    daemon = Daemon(BROKEN + MODEL).wait_until_serving()
    try:
        (line,) = wait_for(lambda: daemon.events("device_out"))
        assert line["device"] == "cuda:7" and "torch sees 0 GPUs" in line["cause"]
        (detail,) = daemon.events("device_failed")
        assert "'cuda:7'" in detail["detail"] and detail["device"] == "cuda:7"
        with daemon.client() as client:
            assert len(images(generate(client))) == 1
            missing, working = client.status().devices
            assert (missing.device, missing.state, working.device, working.state) == ("cuda:7", "failed", "cpu", "idle")
            assert missing.problem == line["cause"] and missing.retry_seconds is not None
            assert working.model == "shapes" and working.problem is None
            weavectl = subprocess.run(
                [WEAVECTL, "--socket", daemon.socket, "status"], capture_output=True, text=True, check=True
            ).stdout
            assert "cuda:7" in weavectl and "torch sees 0 GPUs" in weavectl
            # A reload tries it again at once, and the driver may be there now.
            daemon.reload(TWO + MODEL)
            generate(client)
            wait_for(lambda: [device.state for device in client.status().devices].count("idle") == 1)
            assert {device.problem for device in client.status().devices} == {None}
            # With no other device, the job gets the error.
            daemon.reload('[device]\ndevice = "cuda:7"\n' + MODEL)
            with pytest.raises(WeaveError, match="torch sees 0 GPUs") as failed:
                generate(client)
            assert failed.value.code is ErrorCode.WORKER_FAILED
    finally:
        assert daemon.stop() == 0


# The first device fails as long as there is a file; two and a half tries a second instead of one in ten.
FAILING = """
import pathlib
if device_name == "cpu:0" and pathlib.Path({flag!r}).exists():
    raise RuntimeError("CUDA error: unknown error")
"""


def test_a_device_that_fails_loses_no_job_and_comes_back(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    seams = (
        before("gpu_worker/worker.py", "warm_up", FAILING.format(flag=str(flag)).replace("device_name", "name")),
        constant("broker/schedule/health.py", "_FIRST_BACKOFF_SECONDS", "0.4"),
    )
    daemon = daemon_of(seams, TWO + MODEL)
    try:
        with daemon.client() as client:
            wait_for(lambda: len(daemon.events("worker_ended")) == 2)  # both were tried
            flag.touch()
            requests = [client.send(Generate(prompt=PROMPT, model="shapes", steps=2)) for _ in range(3)]
            for request in requests:
                assert isinstance(list(client.answers(request))[-1].event, Done)
            first, second = client.status().devices
            assert first.device == "cpu:0" and first.problem and second.state == "idle"
            outs = wait_for(lambda: len(found := daemon.events("device_out")) > 2 and found)
            pauses = [line["retry_after"] for line in outs]
            assert pauses == [0.4 * 2**n for n in range(len(pauses))]
            flag.unlink()
            wait_for(lambda: daemon.events("device_back"))
            assert client.status().devices[0].problem is None
            begin(client)
            begin(client)
            assert states(client) == ["running", "running"]
            cancel_all(client)
    finally:
        assert daemon.stop() == 0


def test_a_device_whose_workers_keep_exiting_is_taken_out() -> None:
    """The driver's error ends the worker: after it, every call would fail."""
    crash = before("gpu_worker/generation.py", "generate", 'raise RuntimeError("CUDA error: an illegal access")')
    daemon = daemon_of((crash,), TWO + MODEL)
    try:
        with daemon.client() as client:
            for _ in range(5):  # of which one device gets three
                with pytest.raises(WeaveError) as failed:
                    generate(client)
                assert failed.value.code is ErrorCode.WORKER_FAILED
            (line,) = wait_for(lambda: daemon.events("device_out"))
            assert "3 workers in a row" in line["cause"]
            with pytest.raises(WeaveError):
                generate(client)
            assert daemon.events("worker_started")[-1]["device"] != line["device"]
    finally:
        assert daemon.stop() == 0
