"""The GPU's turn: takes one job after the other from the queue, with the worker that its model needs."""

import asyncio
import contextlib

from msgspec import structs

from weave import log
from weave.broker.audit import Audit
from weave.broker.job import Job
from weave.broker.principal import Principal
from weave.broker.queue import JobQueue
from weave.broker.slot import Slot
from weave.broker.updates import MESSAGES, event_of
from weave.broker.worker_link import Update, WorkerError, WorkerLink
from weave.config.parts import BrokerConfig
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation
from weave.protocol.client_messages import Done, Loading, Timings
from weave.protocol.control_messages import ToBroker, WorkerEnded, WorkerStarted
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer
from weave.protocol.worker_messages import Failed, Made

# A cancelled job ends at its next step; a worker that takes longer than this is killed.
_CANCEL_SECONDS = 10.0


class Gpu:
    """`running` is the job that is worked on. Attached, the one client's model is there before it is asked for, and
    stays."""

    def __init__(
        self, supervisor: Channel[ToBroker], config: BrokerConfig, audit: Audit, metrics: Metrics, *, attached: bool
    ) -> None:
        self.queue = JobQueue()
        self.slot = Slot(supervisor)
        self.running: Job | None = None
        self._config = config
        self._audit = audit
        self._metrics = metrics
        self._attached = attached
        self._load_ahead = attached
        self._outdated = False
        self._wake = asyncio.Event()
        self._unloads: list[tuple[Peer, asyncio.Future[None]]] = []
        # Whose job the worker did last; and who pays for the next one's start, where that job cost us the worker.
        self._last: Principal | None = None
        self._culprit: Principal | None = None

    def reconfigure(self, config: BrokerConfig) -> None:
        """From the next job on. The worker ends first, since its model may have changed."""
        self._config = config
        self._load_ahead = self._attached
        self._outdated = True
        self._wake.set()

    def jobs(self) -> list[Job]:
        """All that are not over, as they are expected to start."""
        return [*([self.running] if self.running is not None else []), *self.queue.in_order()]

    def worker_for(self, uid: int) -> WorkerLink | None:
        """The worker, where it may do a job of this UID."""
        worker = self.slot.worker
        return worker if worker is not None and worker.serves in (None, uid) else None

    def submit(self, job: Job, *, seconds: float | None) -> None:
        """Queue an admitted job, which must be over `seconds` from now, where given."""
        loop = asyncio.get_running_loop()
        job.timers.append(loop.call_later(self._config.limits.queued_seconds, self._expire, job))
        if seconds is not None:
            job.timers.append(loop.call_later(seconds, self._time_out, job, seconds))
        self.queue.add(job)
        self._wake.set()

    def cancel(self, job: Job) -> None:
        """A queued job ends here, a running one at its next step."""
        if self.queue.remove(job):
            job.fail(ErrorCode.CANCELLED, "cancelled")
        else:
            job.cancelled.set()

    def unload(self, peer: Peer) -> "asyncio.Future[None]":
        """Resolves when the worker and its memory are gone; the asker's own running job is finished first. Raises
        RequestError, now or from the future, where that would take the model away from another user's job."""
        self._check_unload(peer.uid)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unloads.append((peer, done))
        self._wake.set()
        return done

    def on_supervisor(self, message: WorkerStarted | WorkerEnded, descriptors: list[int]) -> None:
        """What becomes of the worker that was asked for."""
        self.slot.on_supervisor(message, descriptors)
        self._wake.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            if self._outdated:
                self._outdated = False
                await self.slot.end("the config has changed")
            elif self._unloads:
                await self._unload(*self._unloads.pop(0))
            elif self.slot.is_lost:
                await self._lose_worker(self._last)
            elif len(self.queue):
                self.running = self.queue.take(self._fits)
                await self._run(self.running)
                self.running = None
                self.queue.over()
            elif self._load_ahead and self.slot.worker is None:
                self._load_ahead = False
                await self._load_default()
            else:
                await self._idle()

    def _fits(self, job: Job) -> bool:
        worker = self.worker_for(job.uid)
        return worker is not None and worker.model == job.model.id

    def _check_unload(self, uid: int) -> None:
        """Raises RequestError where another user's job runs, or waits for the worker that there is."""
        if any(job.uid != uid and (job is self.running or self._fits(job)) for job in self.jobs()):
            text = "the worker serves another user's job; unload when that is over"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, field="op", value="unload")

    async def _unload(self, peer: Peer, done: "asyncio.Future[None]") -> None:
        try:
            self._check_unload(peer.uid)
        except RequestError as error:
            done.set_exception(error)
            return
        if self.slot.worker is not None:
            self._audit.write("model_unloaded", peer, model=self.slot.worker.model)
        await self.slot.end("unload")
        done.set_result(None)

    async def _lose_worker(self, culprit: Principal | None) -> None:
        """The worker ended though nobody told it to."""
        self._metrics.workers_lost += 1
        self._culprit = culprit
        await self.slot.end("the worker is gone")

    async def _idle(self) -> None:
        self._wake.clear()
        unloads = self.slot.worker is not None and not self._attached
        try:
            async with asyncio.timeout(self._config.limits.idle_unload_seconds if unloads else None):
                await self._wake.wait()
        except TimeoutError:
            await self.slot.end("idle")

    async def _load_default(self) -> None:
        """For no client. Where it fails the next request tries again, and is told."""
        if (model := self._config.default_model) is None:
            return
        try:
            worker = await self.slot.start(model, serves=None)
            await self.slot.load(worker, seconds=self._config.limits.load_seconds)
            self._metrics.models_loaded += 1
            log.write("broker", "model_loaded", model=model, ahead=True)
        except (WorkerError, TimeoutError, ChannelViolation, ChannelClosed) as error:
            log.write("broker", "load_ahead_failed", model=model, detail=str(error) or type(error).__name__)
            await self.slot.end("the model could not be loaded")
        finally:
            self.slot.rest()

    async def _run(self, job: Job) -> None:
        """One job, to its last event. Whatever the worker does, the next job finds a clean state; and the client is
        told before the worker is ended, which a driver that hangs can delay."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        held = self.slot.worker
        try:
            worker = await self._have_model(job)
            loaded = loop.time()
            self._metrics.queued_seconds.observe(started - job.queued_at)
            self._metrics.loading_seconds.observe(loaded - started)
            timings = Timings(queued=started - job.queued_at, loading=loaded - started)
            if job.parameters is None:
                job.finish(Done(model=job.model.id, timings=timings))
                return
            await self._generate_with(worker, job, held=worker is held)
            timings = structs.replace(timings, generating=loop.time() - loaded)
            self._metrics.generating_seconds.observe(timings.generating)
            job.finish(Done(model=job.model.id, seed=job.parameters.seed, timings=timings, tokens=job.tokens))
        except WorkerError as error:
            code, message = MESSAGES[error.reason]
            if error.reason != "cancelled":
                log.write("broker", "job_failed", job=job.number, reason=error.reason, detail=str(error))
            job.fail(code, message)
            if self.slot.worker is not None and self.slot.worker.device is None:
                await self.slot.end("the model could not be loaded")
        except TimeoutError:
            if job.cancelled.is_set():
                job.fail(ErrorCode.CANCELLED, "cancelled")
            else:
                limit = "load_seconds" if job.state == "loading" else "job_seconds"
                self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit=limit)
                job.fail(ErrorCode.TIMED_OUT, "the job took longer than is allowed")
            await self.slot.end("the job took too long")
        except ChannelViolation as error:
            log.write("broker", "worker_violation", job=job.number, detail=str(error))
            self._lost(job)
            await self.slot.end("the worker broke the protocol")
        except ChannelClosed:
            self._lost(job)
            await self.slot.end("the worker is gone")
        finally:
            # Not where it could not be loaded: the next request tries that again.
            self._load_ahead = self._attached and job.begun and self.slot.worker is None
            self.slot.rest()

    def _lost(self, job: Job) -> None:
        self._metrics.workers_lost += 1
        self._culprit = job.principal
        job.fail(ErrorCode.WORKER_FAILED, "the GPU worker ended unexpectedly; the next request gets a new one")

    async def _have_model(self, job: Job) -> WorkerLink:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        worker = self.slot.worker
        if self.slot.is_lost:
            await self._lose_worker(self._last)
        elif worker is not None and worker.model != job.model.id:
            await self.slot.end("another model is wanted")
        elif worker is not None and not self._fits(job):
            await self.slot.end("another user is served")
        self._check_wanted(job)
        if self.slot.worker is not None:
            return self.slot.worker
        worker = await self._load(job)
        self._check_wanted(job)
        return worker

    async def _load(self, job: Job) -> WorkerLink:
        """Raises as _have_model does."""
        job.state = "loading"
        job.tell(Loading(model=job.model.id))
        self.queue.bill(self._culprit or job.principal)
        worker = await self.slot.start(job.model.id, serves=job.uid if self._config.isolate_users else None)
        self.queue.bill(job.principal)
        self._last, self._culprit = job.principal, None
        await self.slot.load(worker, seconds=self._config.limits.load_seconds)
        self._metrics.models_loaded += 1
        self._audit.write("model_loaded", job.connection.peer, model=job.model.id, job=job.number)
        return worker

    def _check_wanted(self, job: Job) -> None:
        """Raises WorkerError where the job was cancelled, or its time was up, while we waited."""
        if job.cancelled.is_set():
            raise WorkerError(Failed(job=job.number, reason="cancelled", detail=""))

    async def _generate_with(self, worker: WorkerLink, job: Job, *, held: bool) -> None:
        """Where a worker that was `held` from jobs before had ended before it began on this one, a new one does it:
        nobody need be told. Raises as _generate does."""
        try:
            await self._generate(worker, job)
        except ChannelClosed:
            if job.begun or not held:
                raise
            await self._lose_worker(self._last)
            await self._generate(await self._have_model(job), job)

    async def _generate(self, worker: WorkerLink, job: Job) -> None:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        job.state = self.slot.state = "running"
        deadline = asyncio.timeout(self._config.limits.job_seconds)

        async def cancel() -> None:
            await job.cancelled.wait()
            deadline.reschedule(asyncio.get_running_loop().time() + _CANCEL_SECONDS)
            with contextlib.suppress(ChannelClosed, ChannelViolation):  # the deadline will do
                worker.cancel(job)

        cancelling = asyncio.create_task(cancel())
        try:
            async with deadline:
                async for update, memfd in worker.run(job):
                    job.begun, self._last = True, job.principal
                    self._tell(job, update, memfd)
        finally:
            cancelling.cancel()

    def _tell(self, job: Job, update: Update, memfd: int | None) -> None:
        self._metrics.images += isinstance(update, Made)
        job.tell(event_of(job, update), memfd)

    def _expire(self, job: Job) -> None:
        if self.queue.remove(job):
            self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit="queued_seconds")
            job.fail(ErrorCode.TIMED_OUT, f"waited {self._config.limits.queued_seconds:g} s in the queue")

    def _time_out(self, job: Job, seconds: float) -> None:
        """The client is told now, even if the worker needs a while to stop."""
        self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit="v1_seconds")
        job.fail(ErrorCode.TIMED_OUT, f"not done within {seconds:g} s")
        self.cancel(job)
