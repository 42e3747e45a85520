"""Which device a job gets: the real pool, queue and slots, with workers that only have a name."""

import asyncio
import functools
from collections.abc import Callable
from itertools import count
from typing import Any, ParamSpec, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.unit.test_queue import Model, Told, requester
from tests.unit.test_scheduler import CONFIG
from weave.broker.admission.audit import Audit
from weave.broker.admission.principal import EVERYONE, Principal, Served
from weave.broker.schedule.health import Health
from weave.broker.schedule.job import JobNumber, LoadJob
from weave.broker.schedule.pool import Pool
from weave.broker.schedule.queue import MAX_BYPASSED, JobQueue
from weave.broker.schedule.slot import Slot
from weave.protocol.client_messages import Queued
from weave.protocol.metrics import Metrics

P = ParamSpec("P")


def in_a_loop(test: Callable[P, None]) -> Callable[P, None]:
    """A pool belongs to a running loop."""

    @functools.wraps(test)
    def run(*given: P.args, **named: P.kwargs) -> None:
        async def main() -> None:
            test(*given, **named)

        asyncio.run(main())

    return run


class Worker:
    """An idle one."""

    def __init__(self, model: str, serves: Served = EVERYONE) -> None:
        self.model, self.serves = model, serves


def pool_of(*models: str | None) -> Pool:
    """A free slot for each model, which its worker has; None: it has no worker."""
    names = tuple(f"cpu:{number}" for number in range(len(models)))
    pool = Pool(structs.replace(CONFIG, devices=names), Audit(), Metrics(), attached=False)
    for name, model in zip(names, models, strict=True):
        slot = Slot(name, cast(Any, None), count(1), Metrics())
        slot.worker, slot.is_free = cast(Any, Worker(model) if model else None), True
        pool.slots.append(slot)
    return pool


numbers = count(1)


def asked(pool: Pool, *models: str, uid: int = 1) -> None:
    for model in models:
        pool.queue.add(LoadJob(JobNumber(next(numbers), 0), requester(uid), Told(), cast(Any, Model(model))))
        pool.assign()


def jobs(pool: Pool) -> list[str | None]:
    return [slot.job.model.id if slot.job else None for slot in pool.slots]


def finish(pool: Pool, number: int) -> None:
    """The job on this slot ends, and leaves its worker."""
    slot = pool.slots[number]
    assert slot.job is not None
    pool.queue.over(slot.job)
    slot.worker, slot.job, slot.is_free = cast(Any, Worker(slot.job.model.id)), None, True
    pool.assign()


@in_a_loop
def test_an_idle_worker_with_the_model_wins() -> None:
    pool = pool_of(None, "b", "a")
    asked(pool, "a")
    assert jobs(pool) == [None, None, "a"]


@in_a_loop
def test_else_a_device_without_a_worker_gets_the_job() -> None:
    pool = pool_of("b", None, "a")
    asked(pool, "c")
    assert jobs(pool) == [None, "c", None]


@in_a_loop
def test_else_the_least_recently_used_worker_is_replaced() -> None:
    pool = pool_of("b", "a", "d")
    for slot, used in zip(pool.slots, (5.0, 3.0, 4.0), strict=True):
        slot.last_used = used
    asked(pool, "c")
    assert jobs(pool) == [None, "c", None]


@in_a_loop
def test_a_worker_that_a_waiting_job_needs_is_kept() -> None:
    pool = pool_of("a", "b")
    pool.slots[1].last_used = 9.0
    for slot in pool.slots:
        slot.is_free = False
    asked(pool, "c", "a")  # of one user, so in this order
    for slot in pool.slots:
        slot.is_free = True
    pool.assign()
    assert jobs(pool) == ["a", "c"]


@in_a_loop
def test_a_model_on_a_busy_device_is_loaded_on_a_free_one() -> None:
    pool = pool_of("a", "b")
    asked(pool, "a", "a")
    assert jobs(pool) == ["a", "a"] and len(pool.queue) == 0


@in_a_loop
def test_a_worker_of_another_user_does_not_fit() -> None:
    pool = pool_of("a", None)
    pool.slots[0].worker = cast(Any, Worker("a", Served(only=7)))
    asked(pool, "a")
    assert jobs(pool) == [None, "a"]


@in_a_loop
def test_a_newcomer_is_next_on_whichever_device_ends_first() -> None:
    pool, seconds = pool_of("a", "a"), [0.0]
    pool.queue = JobQueue(lambda: seconds[0])
    asked(pool, *["a"] * 10)
    asked(pool, "a", "a", uid=2)
    seconds[0] = 1.0
    finish(pool, 1)
    assert pool.slots[1].job and pool.slots[1].job.uid == 2
    seconds[0] = 1.5  # the newcomer has used half a second, the other 2.5
    finish(pool, 0)
    assert pool.slots[0].job and pool.slots[0].job.uid == 2


@in_a_loop
def test_a_device_that_is_out_gets_jobs_only_if_all_are() -> None:
    pool = pool_of("a", "b")
    pool.slots[0].health.fail("broken")
    asked(pool, "a", "a")
    assert jobs(pool) == [None, "a"]
    finish(pool, 1)
    assert jobs(pool) == [None, "a"]
    pool.slots[1].health.fail("broken too")
    finish(pool, 1)
    asked(pool, "a", "a")
    assert jobs(pool) == ["a", "a"]


@in_a_loop
def test_a_retired_device_gets_no_job() -> None:
    pool = pool_of("a", "b")
    pool.slots[0].is_retired = True
    asked(pool, "a", "a")
    assert jobs(pool) == [None, "a"]


@in_a_loop
def test_a_job_that_could_not_begin_is_the_next_again() -> None:
    pool = pool_of("a")
    asked(pool, "a", "b")
    failed = pool.slots[0].job
    assert failed is not None
    pool.slots[0].job, pool.slots[0].is_free = None, True
    pool.queue.put_back(failed)
    pool.assign()
    assert pool.slots[0].job is failed
    assert [e.position for e in cast(Told, failed.reply).events if isinstance(e, Queued)] == [0, 0]


@pytest.mark.parametrize(
    "uids, alone, is_out",
    [((1, 1, 1), True, True), ((1, 1, 1, 1), False, False), ((1, 2, 1), False, True), ((1, 2), False, False)],
)
def test_one_users_jobs_alone_take_no_device_out(uids: tuple[int, ...], alone: bool, is_out: bool) -> None:
    async def main() -> str | None:
        health = Health("cuda:0")
        for uid in uids:
            health.lose(Principal(uid), alone=alone)
        return health.problem

    assert (asyncio.run(main()) is not None) is is_out


steps = st.lists(
    st.one_of(st.integers(0, 2), st.tuples(st.integers(1, 4), st.sampled_from("abc"))), min_size=1, max_size=100
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps)
@in_a_loop
def test_no_job_waits_beside_a_free_device_or_is_overtaken_often(happened: list[int | tuple[int, str]]) -> None:
    """A number: the job on that device ends, if there is one. A pair: a user asks for a model."""
    pool = pool_of(None, None, None)
    for step in happened:
        if isinstance(step, tuple):
            asked(pool, step[1], uid=step[0])
        elif pool.slots[step].job is not None:
            finish(pool, step)
        assert not len(pool.queue) or all(slot.job is not None for slot in pool.slots)
        assert all(waiting.bypassed <= MAX_BYPASSED for waiting in pool.queue.in_order())
