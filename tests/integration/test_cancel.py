"""Cancel, in every way and at every stage: the client gets an answer, and the next image is unchanged."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.system import MODEL
from weave.client import Answer, Client, WeaveError
from weave.protocol.client_messages import Cancel, Generate, Loading, Progress, Queued
from weave.protocol.errors import ErrorCode

Answers: TypeAlias = Iterator[Answer]
LONG: dict[str, Any] = {"model": "shapes", "steps": 100, "images": 8, "seed": 77}
STAGES = ("queued", "loading", "running")


def begin(stage: str, daemon: Daemon, holder: Client, client: Client) -> tuple[Answers, int]:
    """A long job of `client`, brought to `stage`, and its number. `holder` occupies the GPU for the stage "queued"."""
    if stage == "loading":
        holder.unload()
    if stage == "queued":
        reach(Progress, holder.answers(holder.send(Generate(prompt=PROMPT, **LONG))))
    answers = client.generate(PROMPT, **LONG)
    job = next(answer.event.job for answer in answers if isinstance(answer.event, Queued))
    if stage != "queued":
        reach({"loading": Loading, "running": Progress}[stage], answers)
    if stage == "loading":  # which may end soon
        return answers, job
    with daemon.client() as witness:
        assert {found.job: found.state for found in witness.status().jobs}[job] == stage
    return answers, job


def reach(kind: type, answers: Answers) -> None:
    next(answer for answer in answers if isinstance(answer.event, kind))


def by_request(daemon: Daemon, client: Client, answers: Answers, job: int) -> None:
    client.send(Cancel(request=1))


def by_job(daemon: Daemon, client: Client, answers: Answers, job: int) -> None:
    with daemon.client() as other:
        other.cancel(job=job)


def by_disconnect(daemon: Daemon, client: Client, answers: Answers, job: int) -> None:
    client.close()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cancel", [by_request, by_job, by_disconnect])
def test_after_a_cancel_the_next_image_is_the_same(
    shared_daemon: Daemon, stage: str, cancel: Callable[[Daemon, Client, Answers, int], None]
) -> None:
    with shared_daemon.client() as witness:
        expected = images(generate(witness))[0].data
        with shared_daemon.client() as holder, shared_daemon.client() as client:
            answers, job = begin(stage, shared_daemon, holder, client)
            cancel(shared_daemon, client, answers, job)
            if cancel is not by_disconnect:
                with pytest.raises(WeaveError) as ended:
                    list(answers)
                assert ended.value.code is ErrorCode.CANCELLED
            wait_for(lambda: job not in {found.job for found in witness.status().jobs})
        wait_for(lambda: witness.status().jobs == ())
        assert images(generate(witness))[0].data == expected


@pytest.mark.parametrize(
    "stage, limit",
    [("queued", "queued_seconds = 1.0"), ("loading", "load_seconds = 0.001"), ("running", "job_seconds = 6.0")],
)
def test_after_a_deadline_the_next_image_is_the_same(reloadable: Daemon, stage: str, limit: str) -> None:
    with reloadable.client() as witness, reloadable.client() as holder, reloadable.client() as client:
        expected = images(generate(witness))[0].data
        reloadable.reload(f"[limits]\n{limit}\n" + MODEL)
        answers, _ = begin(stage, reloadable, holder, client)
        with pytest.raises(WeaveError) as ended:
            list(answers)
        assert ended.value.code is ErrorCode.TIMED_OUT
        reloadable.reload(MODEL)
        holder.close()
        assert images(generate(witness))[0].data == expected


@pytest.fixture(scope="module")
def reloadable() -> Iterator[Daemon]:
    daemon = Daemon(MODEL).wait_until_serving()
    yield daemon
    assert daemon.stop() == 0
