"""Several devices: a worker on each, and one queue. Two workers on the CPU stand in for two GPUs."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.test_cancel import LONG, reach
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.system import MODEL
from weave.client import Answer, Client, WeaveError
from weave.protocol.client_messages import Done, Generate, Loading, Progress
from weave.protocol.errors import ErrorCode

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
