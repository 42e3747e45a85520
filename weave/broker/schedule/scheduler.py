"""All jobs and all devices, for the front of the broker and for the supervisor."""

import asyncio
from collections.abc import Iterator
from itertools import count

from weave import log
from weave.broker.admission.audit import Audit
from weave.broker.schedule.caretaker import Caretaker
from weave.broker.schedule.job import Job
from weave.broker.schedule.pool import Pool
from weave.broker.schedule.slot import Slot
from weave.broker.schedule.snapshot import JobSnapshot, ScheduleSnapshot
from weave.config.child_configs import BrokerConfig
from weave.protocol.channel import Channel, close_all
from weave.protocol.control_messages import ToBroker, WorkerEnded, WorkerStarted
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer


class Scheduler:
    """One queue for all slots, and one slot for each device. In attached mode the default model is loaded on the first
    device before the client requests it, and stays loaded."""

    def __init__(
        self, supervisor: Channel[ToBroker], config: BrokerConfig, audit: Audit, metrics: Metrics, *, attached: bool
    ) -> None:
        self._pool = Pool(config, audit, metrics, attached=attached)
        self.queue = self._pool.queue
        self.slots = self._pool.slots
        self._supervisor = supervisor
        self._worker_numbers = count(1)
        # If so, no worker can start.
        self.libraries_lack = False
        self._audit = audit
        self._metrics = metrics
        self._caretakers: asyncio.TaskGroup | None = None
        self._add_slots()

    def reconfigure(self, config: BrokerConfig) -> None:
        """Takes effect from the next job on. Each worker is ended first, since its model may have changed."""
        self._pool.config = config
        for slot in self.slots:
            slot.is_outdated = True
            slot.is_retired = slot.device not in config.devices
            slot.is_untried |= slot.health.problem is not None
            slot.wake.set()
        self._add_slots()

    def jobs(self) -> Iterator[Job]:
        """As Pool.jobs()."""
        return self._pool.jobs()

    def loaded_model(self, uid: int) -> str | None:
        """The model of a worker that may serve this UID."""
        workers = (slot.worker_for(uid) for slot in self.slots)
        return next((worker.model for worker in workers if worker is not None), None)

    def snapshot(self) -> ScheduleSnapshot:
        """The slots and jobs as of now."""
        return ScheduleSnapshot(
            slots=tuple(slot.snapshot() for slot in self.slots),
            jobs=tuple(
                JobSnapshot(
                    uid=job.uid,
                    user_number=job.user_number,
                    model=job.model.id,
                    state=job.state,
                    position=max(job.position, 0),
                )
                for job in self._pool.jobs()
                if job.state != "over"
            ),
            waiting=len(self.queue),
            libraries_lack=self.libraries_lack,
        )

    def submit(self, job: Job, *, seconds: float | None) -> None:
        """Queue an admitted job; with `seconds`, it times out if it is not over by then."""
        if seconds is not None:
            job.timers.append(asyncio.get_running_loop().call_later(seconds, self._time_out, job, seconds))
        self._pool.limit_waiting(job)
        self.queue.add(job)
        self._pool.assign()

    def cancel(self, job: Job) -> None:
        """A queued job ends now, a running one at its next step."""
        if self.queue.remove(job):
            job.fail(ErrorCode.CANCELLED, "cancelled")
        else:
            job.cancelled.set()

    def unload(self, peer: Peer) -> "asyncio.Future[None]":
        """End the workers that no other user's job needs. Resolves when they have exited and their memory is free; the
        requester's own running jobs finish first. Raises RequestError, now or from the future, if other users' jobs
        need every worker."""
        used = [slot for slot in self.slots if slot.state != "none" or slot.job is not None]
        allowed = [slot for slot in used if self._pool.may_unload(slot, peer.uid)]
        if used and not allowed:
            raise _not_unloaded()
        endings: list[asyncio.Future[bool]] = []
        for slot in allowed:
            endings.append(asyncio.get_running_loop().create_future())
            slot.unloads.append((peer, endings[-1]))
            slot.wake.set()
        return asyncio.ensure_future(_unloaded(endings))

    def on_worker(self, message: WorkerStarted | WorkerEnded, descriptors: list[int]) -> None:
        """Pass the message on to the slot that requested the worker."""
        if isinstance(message, WorkerEnded) and message.libraries_lack:
            self.libraries_lack = True
        elif isinstance(message, WorkerEnded):
            log.write("broker", "worker_gone", worker=message.worker, cause=message.cause)
        for slot in self.slots:
            if slot.worker_number == message.worker:
                slot.on_worker(message, descriptors)
                slot.wake.set()
                break
        else:
            close_all(descriptors)

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._caretakers:
                for slot in self.slots:
                    self._caretakers.create_task(self._take_care_of(slot))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _take_care_of(self, slot: Slot) -> None:
        await Caretaker(slot, self._pool).run()
        self.slots.remove(slot)
        self._add_slots()

    def _add_slots(self) -> None:
        """Add the devices that a reload added, after the workers on removed devices have ended: two names may stand for
        the same GPU."""
        if any(slot.is_retired for slot in self.slots):
            return
        names = self._pool.config.devices
        for name in names:
            if name not in (slot.device for slot in self.slots):
                slot = Slot(name, self._supervisor, self._worker_numbers, self._metrics)
                self.slots.append(slot)
                slot.is_untried = len(names) > 1
                if self._caretakers is not None:
                    self._caretakers.create_task(self._take_care_of(slot))
        self.slots.sort(key=lambda slot: names.index(slot.device))
        self._preload_first()

    def _preload_first(self) -> None:
        """In attached mode, unless it is loaded already."""
        self.slots[0].preload = self._pool.attached
        self.slots[0].wake.set()

    def _time_out(self, job: Job, seconds: float) -> None:
        """The client gets the error now, even if the worker needs a while to stop."""
        self._audit.write("job_timed_out", job.requester.peer, job=job.number, limit="v1_seconds")
        job.fail(ErrorCode.TIMED_OUT, f"not done within {seconds:g} s")
        self.cancel(job)


async def _unloaded(endings: list["asyncio.Future[bool]"]) -> None:
    """Raises RequestError."""
    if endings and not any(await asyncio.gather(*endings)):
        raise _not_unloaded()


def _not_unloaded() -> RequestError:
    text = "the worker serves another user's job; unload it after that job"
    return RequestError(ErrorCode.INVALID_REQUEST, text, field="op", value="unload")
