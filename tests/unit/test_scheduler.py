"""The scheduler alone, with a supervisor that only says what a real one would."""

import asyncio
from typing import Any, cast

from tests.unit.test_queue import Model, Told, requester
from weave.broker.audit import Audit
from weave.broker.job import JobNumber, LoadJob
from weave.broker.scheduler import Scheduler
from weave.config.parts import Access, BrokerConfig
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
    """Takes a while to end a worker, and cannot start any."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.scheduler: Scheduler
        self.started = 0

    def send(self, message: StartWorker | StopWorker) -> None:
        self.started += isinstance(message, StartWorker)
        ended = WorkerEnded(worker=message.worker, cause="")
        asyncio.get_running_loop().call_later(self._seconds, self.scheduler.on_worker, ended, [])


class OldWorker:
    """Holds another model."""

    model, device = "old", "cpu"

    def may_serve(self, uid: int) -> bool:
        return True

    def close(self) -> None:
        """Nothing to let go of."""


def test_a_job_whose_time_is_up_while_the_former_worker_ends_hears_of_it_once_and_gets_no_worker() -> None:
    async def main() -> tuple[list[Any], int]:
        supervisor = SlowSupervisor(0.3)
        supervisor.scheduler = scheduler = Scheduler(cast(Any, supervisor), CONFIG, Audit(), Metrics(), attached=False)
        (slot,) = scheduler.slots
        slot.worker, slot.worker_number = cast(Any, OldWorker()), 1
        told = Told()
        running = asyncio.create_task(scheduler.run())
        job = LoadJob(JobNumber(1, 1), requester(1), told, cast(Any, Model("new")))
        scheduler.submit(job, seconds=0.1)
        await asyncio.sleep(1)
        running.cancel()
        return [event.code for event in told.events if hasattr(event, "code")], supervisor.started

    assert asyncio.run(main()) == ([ErrorCode.TIMED_OUT], 0)


def test_a_version_1_client_is_told_just_before_it_gives_up_after_120_seconds() -> None:
    assert 115 <= Limits().v1_seconds < 120
