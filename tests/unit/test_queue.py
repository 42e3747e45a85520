"""Whose turn it is: the queue alone, with jobs that nobody runs."""

import asyncio
from typing import Any, cast

import pytest

from weave.broker.job import Job
from weave.broker.limits import TokenBucket
from weave.broker.queue import MAX_OVERTAKEN, JobQueue
from weave.config.schema import Limits
from weave.protocol.errors import RequestError
from weave.protocol.peer import Peer


class Told:
    """Stands for a reply and its connection: remembers what the client was told."""

    def __init__(self, uid: int) -> None:
        self.peer = Peer(1, uid, uid)
        self.connection = self
        self.events: list[Any] = []

    def send(self, event: Any, memfd: None) -> None:
        self.events.append(event)


class Model:
    def __init__(self, name: str) -> None:
        self.id = name


def job(number: int, uid: int, model: str = "a") -> Job:
    async def make() -> Job:
        return Job(number, cast(Any, Told(uid)), cast(Any, Model(model)))

    return asyncio.run(make())


def test_uids_take_turns_however_many_jobs_one_has() -> None:
    queue = JobQueue(Limits())
    for number, uid in enumerate([1, 1, 1, 1, 2, 3, 2]):
        queue.add(job(number, uid))
    assert [queue.take("a").uid for _ in range(7)] == [1, 2, 3, 1, 2, 1, 1]


def test_the_loaded_model_goes_first_but_nobody_is_overtaken_for_ever() -> None:
    queue = JobQueue(Limits(queue_per_uid=100, queue=200))
    queue.add(job(0, 1, "b"))
    for number in range(1, 20):
        queue.add(job(number, 2, "a"))
    assert [queue.take("a").model.id for _ in range(MAX_OVERTAKEN + 1)] == ["a"] * MAX_OVERTAKEN + ["b"]


def test_a_client_is_told_its_position_only_when_it_changes() -> None:
    queue = JobQueue(Limits())
    jobs = [job(number, 1) for number in range(3)]
    for waiting in jobs:
        queue.add(waiting)
    queue.remove(jobs[0])
    assert [event.position for event in cast(Any, jobs[2].connection).events] == [2, 1]


@pytest.mark.parametrize("uids, refused", [([1] * 32, 1), (list(range(64)), 99)])
def test_a_full_queue_is_refused_with_its_limit(uids: list[int], refused: int) -> None:
    queue = JobQueue(Limits())
    for number, uid in enumerate(uids):
        queue.add(job(number, uid))
    with pytest.raises(RequestError) as full:
        queue.check_room(refused)
    assert full.value.maximum == len(uids)


def test_a_token_bucket_gives_its_burst_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0
