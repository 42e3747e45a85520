"""The devices of one daemon, and the queue that they share."""

import asyncio
from collections.abc import Iterator

from weave.broker.admission.audit import Audit
from weave.broker.schedule.job import Job
from weave.broker.schedule.queue import JobQueue
from weave.broker.schedule.slot import Slot
from weave.config.child_configs import BrokerConfig
from weave.protocol.errors import ErrorCode
from weave.protocol.metrics import Metrics


class Pool:
    """`config` is that of the next job. `attached`: the one client's default model is kept loaded on the first slot."""

    def __init__(self, config: BrokerConfig, audit: Audit, metrics: Metrics, *, attached: bool) -> None:
        self.config = config
        self.audit = audit
        self.metrics = metrics
        self.attached = attached
        self.queue = JobQueue()
        self.slots: list[Slot] = []

    def jobs(self) -> Iterator[Job]:
        """The running jobs, then the queued ones in the order in which they are expected to start."""
        yield from (slot.job for slot in self.slots if slot.job is not None)
        yield from self.queue.in_order()

    def working(self) -> list[Slot]:
        """The slots that may get jobs, now or after their current job."""
        return [slot for slot in self.slots if not slot.is_retired and slot.health.problem is None]

    def assign(self) -> None:
        """Give jobs to free slots: no job waits while a device is free. Devices that are out of service get jobs only
        if all are: then each job tries one again."""
        usable = self.working() or [slot for slot in self.slots if not slot.is_retired]
        while len(self.queue) and (free := [slot for slot in usable if slot.is_free]):
            job = self.queue.take(lambda job: any(slot.fits(job) for slot in free))
            slot = min(free, key=lambda slot: self._cost(slot, job))
            slot.is_free = False
            slot.job = job
            slot.wake.set()

    def _cost(self, slot: Slot, job: Job) -> tuple[bool, bool, bool, float]:
        """The slot with the lowest value gets the job: one whose worker fits it, else one without a worker, else the
        one whose worker no waiting job needs, and that was used least recently."""
        needed = any(slot.fits(waiting) for waiting in self.queue.in_order())
        return (not slot.fits(job), slot.worker is not None, needed, slot.last_used)

    def may_unload(self, slot: Slot, uid: int) -> bool:
        """Whether no other user's job runs on the slot, or waits for its worker."""
        return not any(job.uid != uid and (job is slot.job or slot.fits(job)) for job in self.jobs())

    def limit_waiting(self, job: Job) -> None:
        """The job times out if it still waits after `queued_seconds`."""
        seconds = self.config.limits.queued_seconds
        job.timers.append(asyncio.get_running_loop().call_later(seconds, self._expire, job))

    def _expire(self, job: Job) -> None:
        if self.queue.remove(job):
            self.audit.write("job_timed_out", job.requester.peer, job=job.number, limit="queued_seconds")
            job.fail(ErrorCode.TIMED_OUT, f"waited {self.config.limits.queued_seconds:g} s in the queue")
