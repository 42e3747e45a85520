"""The scheduler alone, with a stand-in for the supervisor."""

import asyncio
from typing import Any, cast

import msgspec
from msgspec import structs

from tests.unit.test_queue import Model, Told, requester
from weave.broker.admission.audit import Audit
from weave.broker.admission.principal import EVERYONE
from weave.broker.schedule.job import JobNumber, LoadJob
from weave.broker.schedule.scheduler import Scheduler
from weave.broker.schedule.snapshot import ScheduleSnapshot, SlotSnapshot
from weave.config.child_configs import Access, BrokerConfig
from weave.config.schema import Limits
from weave.protocol.control_messages import StartWorker, StopWorker, WorkerEnded
from weave.protocol.errors import ErrorCode
from weave.protocol.metrics import Metrics

CONFIG = BrokerConfig(
    mode="user",
    models=(),
    default_model=None,
    limits=Limits(),
    access=Access(uids=(1,)),
    audit_prompts=False,
    deliver_fds=True,
)


class SlowSupervisor:
    """Ends a worker slowly, and cannot start one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.scheduler: Scheduler
        self.started: list[int] = []

    def send(self, message: StartWorker | StopWorker) -> None:
        if isinstance(message, StartWorker):
            self.started.append(message.worker)
        ended = WorkerEnded(worker=message.worker, cause="")
        asyncio.get_running_loop().call_later(self._seconds, self.scheduler.on_worker, ended, [])


def scheduler_of(supervisor: SlowSupervisor, *devices: str) -> Scheduler:
    config = structs.replace(CONFIG, devices=devices or ("cpu",))
    supervisor.scheduler = Scheduler(cast(Any, supervisor), config, Audit(), Metrics(), attached=False)
    return supervisor.scheduler


def load_job(number: int, told: Told) -> LoadJob:
    return LoadJob(JobNumber(number, number), requester(1), told, cast(Any, Model("new")))


def codes(told: Told) -> list[ErrorCode]:
    return [event.code for event in told.events if hasattr(event, "code")]


class OldWorker:
    """Holds another model."""

    model, device, serves = "old", "cpu", EVERYONE

    def close(self) -> None:
        """Nothing to let go of."""


def test_a_job_timed_out_during_a_worker_change_gets_one_error() -> None:
    async def main() -> tuple[list[ErrorCode], list[int]]:
        supervisor, told = SlowSupervisor(0.3), Told()
        scheduler = scheduler_of(supervisor)
        (slot,) = scheduler.slots
        slot.worker, slot.worker_number = cast(Any, OldWorker()), 1
        running = asyncio.create_task(scheduler.run())
        scheduler.submit(load_job(1, told), seconds=0.1)
        await asyncio.sleep(1)
        running.cancel()
        return codes(told), supervisor.started

    assert asyncio.run(main()) == ([ErrorCode.TIMED_OUT], [])


def test_each_device_has_its_own_job_and_worker_events() -> None:
    async def main() -> None:
        supervisor, told = SlowSupervisor(0.3), [Told() for _ in range(3)]
        scheduler = scheduler_of(supervisor, "cpu:0", "cpu:1")
        running = asyncio.create_task(scheduler.run())
        for number, each in enumerate(told):
            scheduler.submit(load_job(number, each), seconds=None)
        while len(supervisor.started) < 2:
            await asyncio.sleep(0)
        assert supervisor.started == [1, 2]
        assert [slot.state for slot in scheduler.slots] == ["starting"] * 2 and len(scheduler.queue) == 1
        # The first worker ends, and only its slot takes the waiting job.
        scheduler.on_worker(WorkerEnded(worker=1, cause=""), [])
        while len(supervisor.started) < 3:
            await asyncio.sleep(0)
        assert [codes(each) for each in told] == [[ErrorCode.WORKER_FAILED], [], []]
        assert [slot.worker_number for slot in scheduler.slots] == [3, 2]
        running.cancel()

    asyncio.run(main())


def test_later_events_do_not_change_a_snapshot() -> None:
    async def main() -> None:
        supervisor = SlowSupervisor(60)
        scheduler = scheduler_of(supervisor)
        running = asyncio.create_task(scheduler.run())
        for number in (1, 2):
            scheduler.submit(load_job(number, Told()), seconds=None)
        while not supervisor.started:
            await asyncio.sleep(0)
        taken = scheduler.snapshot()
        encoded = msgspec.msgpack.encode(taken)
        # A live object would not survive this.
        assert msgspec.msgpack.decode(encoded, type=ScheduleSnapshot) == taken
        assert taken.slots == (
            SlotSnapshot(device="cpu", problem=None, retry_seconds=None, state="starting", runs_for=1, worker=None),
        )
        assert taken.waiting == 1
        assert [(job.user_number, job.state, job.position) for job in taken.jobs] == [
            (1, "loading", 0),
            (2, "queued", 0),
        ]
        scheduler.on_worker(WorkerEnded(worker=1, cause=""), [])
        while len(supervisor.started) < 2:
            await asyncio.sleep(0)
        assert scheduler.snapshot() != taken and msgspec.msgpack.encode(taken) == encoded
        running.cancel()

    asyncio.run(main())


def test_a_version_1_client_gets_an_answer_before_120_seconds() -> None:
    assert 115 <= Limits().v1_seconds < 120
