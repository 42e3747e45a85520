"""The GPU's turn: takes one job after the other from the queue, with the worker that its model needs."""

import asyncio
import contextlib
from typing import Literal

from weave import log
from weave.broker.audit import Audit
from weave.broker.job import Job
from weave.broker.queue import JobQueue
from weave.broker.worker_link import Update, WorkerError, WorkerLink
from weave.config.schema import Limits
from weave.protocol.bounds import MAX_SEED
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.client_messages import Done, Image, Loading, Preview, Progress, Timings
from weave.protocol.control_messages import StartWorker, StopWorker, ToBroker, WorkerEnded, WorkerStarted
from weave.protocol.errors import ErrorCode
from weave.protocol.metrics import Metrics
from weave.protocol.worker_messages import Failed, Made, Previewed, Progressed

# A cancelled job ends at its next step; a worker that takes longer than this is killed.
_CANCEL_SECONDS = 10.0

WorkerState = Literal["none", "starting", "loading", "idle", "running", "stopping"]

_MESSAGES = {
    "cancelled": (ErrorCode.CANCELLED, "cancelled"),
    "out_of_memory": (ErrorCode.OUT_OF_MEMORY, "the device has not enough free memory for this job"),
    "refused": (ErrorCode.WORKER_FAILED, "the model's files were refused; the daemon's log says which"),
    "internal": (ErrorCode.INTERNAL, "the GPU worker could not do it; the daemon's log says why"),
}


class Gpu:
    """`worker` is the one that holds a model, if any; `running` the job that it works on."""

    def __init__(self, supervisor: Channel[ToBroker], limits: Limits, audit: Audit, metrics: Metrics) -> None:
        self.queue = JobQueue()
        self.limits = limits
        self.state: WorkerState = "none"
        self.worker: WorkerLink | None = None
        self.layers: tuple[str, ...] = ()
        self.running: Job | None = None
        self._supervisor = supervisor
        self._audit = audit
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._unloads: list[asyncio.Future[None]] = []
        self._started: asyncio.Future[int | None] | None = None
        self._number = 0
        self._gone = asyncio.Event()

    def submit(self, job: Job, *, seconds: float | None) -> None:
        """Queue an admitted job, which must be over `seconds` from now, where given."""
        loop = asyncio.get_running_loop()
        job.timers.append(loop.call_later(self.limits.queued_seconds, self._expire, job))
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

    def unload(self) -> "asyncio.Future[None]":
        """Resolves when the worker and its memory are gone; the running job is finished first."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unloads.append(done)
        self._wake.set()
        return done

    def on_supervisor(self, message: WorkerStarted | WorkerEnded, descriptors: list[int]) -> None:
        """What becomes of the worker that was asked for."""
        current = message.worker == self._number
        waiting = self._started if current and self._started and not self._started.done() else None
        if isinstance(message, WorkerStarted):
            if waiting is None:
                close_all(descriptors)
                return
            self.layers = message.layers
            waiting.set_result(descriptors[0])
            return
        log.write("broker", "worker_gone", worker=message.worker, cause=message.cause)
        if waiting is not None:
            waiting.set_result(None)
        if current:
            self._gone.set()
            self._wake.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._unloads:
                await self._end_worker("unload")
                for done in self._unloads:
                    done.set_result(None)
                self._unloads.clear()
            elif self.worker is not None and self._gone.is_set():
                self._metrics.workers_lost += 1
                await self._end_worker("gone")
            elif len(self.queue):
                self.running = self.queue.take(self.worker.model if self.worker else None)
                await self._run(self.running)
                self.running = None
            else:
                await self._idle()

    async def _idle(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(self.limits.idle_unload_seconds if self.worker else None):
                await self._wake.wait()
        except TimeoutError:
            await self._end_worker("idle")

    async def _run(self, job: Job) -> None:
        """One job, to its last event. Whatever the worker does, the next job finds a clean state; and the client is
        told before the worker is ended, which a driver that hangs can delay."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        held = self.worker
        try:
            await self._have_model(job)
            loaded = loop.time()
            self._metrics.queued_seconds.observe(started - job.queued_at)
            self._metrics.loading_seconds.observe(loaded - started)
            timings = Timings(queued=started - job.queued_at, loading=loaded - started, generating=0.0)
            if job.parameters is None:
                job.finish(Done(model=job.model.id, timings=timings))
                return
            await self._generate_with(held, job)
            timings = Timings(queued=timings.queued, loading=timings.loading, generating=loop.time() - loaded)
            self._metrics.generating_seconds.observe(timings.generating)
            job.finish(Done(model=job.model.id, seed=job.parameters.seed, timings=timings))
        except WorkerError as error:
            code, message = _MESSAGES[error.reason]
            if error.reason != "cancelled":
                log.write("broker", "job_failed", job=job.number, reason=error.reason, detail=str(error))
            job.fail(code, message)
            if self.worker is not None and self.worker.device is None:
                await self._end_worker("the model could not be loaded")
        except TimeoutError:
            if job.cancelled.is_set():
                job.fail(ErrorCode.CANCELLED, "cancelled")
            else:
                limit = "load_seconds" if job.state == "loading" else "job_seconds"
                self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit=limit)
                job.fail(ErrorCode.TIMED_OUT, "the job took longer than is allowed")
            await self._end_worker("the job took too long")
        except ChannelViolation as error:
            log.write("broker", "worker_violation", job=job.number, detail=str(error))
            self._lost(job)
            await self._end_worker("the worker broke the protocol")
        except ChannelClosed:
            self._lost(job)
            await self._end_worker("the worker is gone")
        finally:
            self.state = "idle" if self.worker else "none"

    def _lost(self, job: Job) -> None:
        self._metrics.workers_lost += 1
        job.fail(ErrorCode.WORKER_FAILED, "the GPU worker ended unexpectedly; the next request gets a new one")

    async def _have_model(self, job: Job) -> None:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        if self.worker is not None and (self.worker.model != job.model.id or self._gone.is_set()):
            await self._end_worker("another model is wanted")
        self._check_wanted(job)
        if self.worker is None:
            await self._load(job)
            self._check_wanted(job)

    async def _load(self, job: Job) -> None:
        """Raises as _have_model does."""
        job.state = "loading"
        job.tell(Loading(model=job.model.id))
        self.state = "starting"
        # The supervisor has a deadline of its own for the start, and always answers.
        channel = await self._start_worker(job.model.id)
        if channel is None:
            raise ChannelClosed
        self.worker = WorkerLink(self._number, job.model.id, channel)
        self.state = "loading"
        async with asyncio.timeout(self.limits.load_seconds):
            await self.worker.load()
        self._metrics.models_loaded += 1
        self._audit.write("model_loaded", job.connection.peer, model=job.model.id, job=job.number)

    def _check_wanted(self, job: Job) -> None:
        """Raises WorkerError where the job was cancelled, or its time was up, while we waited."""
        if job.cancelled.is_set():
            raise WorkerError(Failed(job=job.number, reason="cancelled", detail=""))

    async def _start_worker(self, model: str) -> int | None:
        self._number += 1
        self._gone = asyncio.Event()
        self._started = asyncio.get_running_loop().create_future()
        self._supervisor.send(StartWorker(worker=self._number, model=model))
        return await self._started

    async def _end_worker(self, reason: str) -> None:
        """Returns when the supervisor says that it is gone: only then is all of its memory back."""
        self.state = "stopping"
        if self._number and not self._gone.is_set():
            self._supervisor.send(StopWorker(worker=self._number, reason=reason))
            await self._gone.wait()
        if self.worker is not None:
            self.worker.close()
        self.worker, self.layers, self.state = None, (), "none"

    async def _generate_with(self, held: WorkerLink | None, job: Job) -> None:
        """Where the worker `held` from jobs before had ended before it began on this one, a new one does it: nobody
        need be told. Raises as _generate does."""
        try:
            await self._generate(job)
        except ChannelClosed:
            if job.begun or self.worker is not held:
                raise
            self._metrics.workers_lost += 1
            await self._end_worker("the worker is gone")
            await self._have_model(job)
            await self._generate(job)

    async def _generate(self, job: Job) -> None:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        assert self.worker is not None
        worker = self.worker
        job.state, self.state = "running", "running"
        deadline = asyncio.timeout(self.limits.job_seconds)

        async def cancel() -> None:
            await job.cancelled.wait()
            deadline.reschedule(asyncio.get_running_loop().time() + _CANCEL_SECONDS)
            with contextlib.suppress(ChannelClosed, ChannelViolation):  # the deadline will do
                worker.cancel(job)

        cancelling = asyncio.create_task(cancel())
        try:
            async with deadline:
                async for update, memfd in worker.run(job):
                    job.begun = True
                    self._tell(job, update, memfd)
        finally:
            cancelling.cancel()

    def _tell(self, job: Job, update: Update, memfd: int | None) -> None:
        """A worker's update as the client's event."""
        assert job.generate is not None and job.parameters is not None
        parameters = job.parameters
        if isinstance(update, Progressed):
            job.tell(Progress(image=update.image, step=update.step, steps=parameters.steps))
        elif isinstance(update, Previewed):
            preview = Preview(
                image=update.image, step=update.step, width=update.width, height=update.height, size=update.size
            )
            job.tell(preview, memfd)
        elif isinstance(update, Made):
            self._metrics.images += 1
            image = Image(
                image=update.image,
                seed=(parameters.seed + update.image) & MAX_SEED,
                format=job.generate.format,
                deliver=job.generate.deliver,
                width=parameters.width,
                height=parameters.height,
                channels=3,
                size=update.size,
            )
            job.tell(image, memfd)

    def _expire(self, job: Job) -> None:
        if self.queue.remove(job):
            self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit="queued_seconds")
            job.fail(ErrorCode.TIMED_OUT, f"waited {self.limits.queued_seconds:g} s in the queue")

    def _time_out(self, job: Job, seconds: float) -> None:
        """The client is told now, even if the worker needs a while to stop."""
        self._audit.write("job_timed_out", job.connection.peer, job=job.number, limit="v1_seconds")
        job.fail(ErrorCode.TIMED_OUT, f"not done within {seconds:g} s")
        self.cancel(job)
