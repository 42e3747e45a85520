"""Assigns jobs to devices, and decides what a slot does between two jobs."""

import asyncio
from collections.abc import Iterator
from itertools import count

from weave import log
from weave.broker.admission.audit import Audit
from weave.broker.admission.principal import EVERYONE
from weave.broker.schedule.job import Job
from weave.broker.schedule.queue import JobQueue
from weave.broker.schedule.runner import Runner
from weave.broker.schedule.slot import Slot
from weave.broker.schedule.snapshot import JobSnapshot, ScheduleSnapshot
from weave.broker.schedule.worker_link import WorkerError
from weave.config.child_configs import BrokerConfig
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
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
        self.queue = JobQueue()
        self._supervisor = supervisor
        self._worker_numbers = count(1)
        self.slots = [Slot(name, supervisor, self._worker_numbers, metrics) for name in config.devices]
        self.slots[0].preload = attached
        # If so, no worker can start.
        self.libraries_lack = False
        self._config = config
        self._audit = audit
        self._metrics = metrics
        self._attached = attached
        self._loops: asyncio.TaskGroup

    def reconfigure(self, config: BrokerConfig) -> None:
        """Takes effect from the next job on. Each worker is ended first, since its model may have changed."""
        self._config = config
        for slot in self.slots:
            slot.is_outdated = True
            slot.is_retired = slot.device not in config.devices
            slot.wake.set()
        self._add_slots()

    def jobs(self) -> Iterator[Job]:
        """The running jobs, then the queued ones in the order in which they are expected to start."""
        yield from (slot.job for slot in self.slots if slot.job is not None)
        yield from self.queue.in_order()

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
                for job in self.jobs()
                if job.state != "over"
            ),
            waiting=len(self.queue),
            libraries_lack=self.libraries_lack,
        )

    def submit(self, job: Job, *, seconds: float | None) -> None:
        """Queue an admitted job; with `seconds`, it times out if it is not over by then."""
        loop = asyncio.get_running_loop()
        job.timers.append(loop.call_later(self._config.limits.queued_seconds, self._expire, job))
        if seconds is not None:
            job.timers.append(loop.call_later(seconds, self._time_out, job, seconds))
        self.queue.add(job)
        self._assign()

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
        allowed = [slot for slot in used if self._may_unload(slot, peer.uid)]
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
            async with asyncio.TaskGroup() as self._loops:
                for slot in self.slots:
                    self._loops.create_task(self._run_slot(slot))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _assign(self) -> None:
        """Give jobs to free slots: no job waits while a device is free."""
        while len(self.queue) and (free := [slot for slot in self.slots if slot.is_free and not slot.is_retired]):
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

    async def _run_slot(self, slot: Slot) -> None:
        """Returns when the slot is retired and its worker has ended."""
        while True:
            if slot.is_outdated:
                slot.is_outdated = False
                await slot.end("the config has changed")
            elif slot.unloads:
                await self._unload(slot, *slot.unloads.popleft())
            elif slot.is_lost:
                await slot.lose()
            elif slot.job is not None:
                await self._run_job(slot, slot.job)
            elif slot.is_retired:
                self.slots.remove(slot)
                self._add_slots()
                return
            elif slot.preload and slot.worker is None:
                slot.preload = False
                await self._preload(slot)
            else:
                await self._idle(slot)

    def _add_slots(self) -> None:
        """For the devices that a reload has added, once the workers on those that it has removed have ended: two names
        may stand for the same GPU."""
        if any(slot.is_retired for slot in self.slots):
            return
        names = self._config.devices
        for name in names:
            if name not in (slot.device for slot in self.slots):
                slot = Slot(name, self._supervisor, self._worker_numbers, self._metrics)
                self.slots.append(slot)
                self._loops.create_task(self._run_slot(slot))
        self.slots.sort(key=lambda slot: names.index(slot.device))
        self._preload_first()

    def _preload_first(self) -> None:
        """In attached mode, unless it is loaded already."""
        self.slots[0].preload = self._attached
        self.slots[0].wake.set()

    async def _run_job(self, slot: Slot, job: Job) -> None:
        runner = Runner(job, slot, self._config, self._audit, self._metrics, self.queue.bill)
        await runner.run()
        # Not if the model failed to load: the next request tries that again.
        job_cost_the_worker = runner.has_output and slot.worker is None
        slot.preload = self._attached and slot is self.slots[0] and (job_cost_the_worker or slot.is_outdated)
        slot.job = None
        self.queue.over(job)

    def _may_unload(self, slot: Slot, uid: int) -> bool:
        """Whether no other user's job runs on the slot, or waits for its worker."""
        return not any(job.uid != uid and (job is slot.job or slot.fits(job)) for job in self.jobs())

    async def _unload(self, slot: Slot, peer: Peer, ending: "asyncio.Future[bool]") -> None:
        may_unload = self._may_unload(slot, peer.uid)
        if may_unload:
            if slot.worker is not None:
                self._audit.write("model_unloaded", peer, model=slot.worker.model)
            await slot.end("unload")
        ending.set_result(may_unload)

    async def _preload(self, slot: Slot) -> None:
        """Load the default model without a request. After a failure the next request tries again, and gets the
        error."""
        if (model := self._config.default_model) is None:
            return
        try:
            worker = await slot.start(model, serves=EVERYONE)
            await slot.load(worker, seconds=self._config.limits.load_seconds)
            log.write("broker", "model_loaded", model=model, ahead=True)
        except (WorkerError, TimeoutError, ChannelViolation, ChannelClosed) as error:
            log.write("broker", "load_ahead_failed", model=model, detail=str(error) or type(error).__name__)
            await slot.end("the model could not be loaded")
        finally:
            slot.set_idle()

    async def _idle(self, slot: Slot) -> None:
        """Wait for work. A worker that is idle for too long is ended."""
        slot.wake.clear()
        slot.is_free = True
        self._assign()
        may_unload = slot.worker is not None and not self._attached
        try:
            async with asyncio.timeout(self._config.limits.idle_unload_seconds if may_unload else None):
                await slot.wake.wait()
        except TimeoutError:
            slot.is_free = False
            await slot.end("idle")
        finally:
            slot.is_free = False

    def _expire(self, job: Job) -> None:
        if self.queue.remove(job):
            self._audit.write("job_timed_out", job.requester.peer, job=job.number, limit="queued_seconds")
            job.fail(ErrorCode.TIMED_OUT, f"waited {self._config.limits.queued_seconds:g} s in the queue")

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
