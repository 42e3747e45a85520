"""One job on one device, from when it leaves the queue to its last event."""

import asyncio
import contextlib
from collections.abc import Callable

from msgspec import structs

from weave import log
from weave.broker.admission.audit import Audit
from weave.broker.admission.principal import EVERYONE, Principal, Served
from weave.broker.schedule.events import event_of, failure_of
from weave.broker.schedule.job import GenerateJob, Job, LoadJob
from weave.broker.schedule.slot import Slot
from weave.broker.schedule.worker_link import WorkerError, WorkerLink
from weave.config.child_configs import BrokerConfig
from weave.protocol.channel import ChannelClosed, ChannelViolation
from weave.protocol.client_messages import Done, Error, Loading, Timings, Tokens
from weave.protocol.control_messages import StopReason
from weave.protocol.errors import ErrorCode
from weave.protocol.metrics import Metrics
from weave.protocol.worker_messages import Finished, Made, PlanName, Restarted, Run

# A cancelled job ends at its next step; a worker that takes longer than this is killed.
_CANCEL_SECONDS = 10.0


class Runner:
    """Runs a job. Whatever the worker does, the slot is afterwards ready for the next job. The client gets its last
    event before the worker is ended, since a hanging driver can delay that."""

    def __init__(
        self,
        job: Job,
        slot: Slot,
        config: BrokerConfig,
        audit: Audit,
        metrics: Metrics,
        bill: Callable[[Job, Principal], None],
    ) -> None:
        """`bill` sets which principal pays for the device time from now on."""
        self._job = job
        self._slot = slot
        self._config = config
        self._audit = audit
        self._metrics = metrics
        self._bill = bill
        self._started_at = asyncio.get_running_loop().time()
        # From before this job.
        self._previous_worker = slot.worker
        # A worker has sent output of this job: from then on, this job is to blame for what happens to it.
        self.has_output = False
        # The plan of the second attempt, after the job ran out of memory.
        self._fallback: PlanName | None = None
        # A worker has exited because of this job.
        self.has_lost = False

    async def run(self) -> None:
        """Ends with the job's last event. No worker is left that cannot be trusted with the next job. Raises
        DeviceFailed, without a last event, if the job could not begin."""
        job, slot = self._job, self._slot
        try:
            done = await self._do()
            job.finish(done)
        except WorkerError as error:
            if error.reason not in ("cancelled", "libraries"):  # "libraries" has a log line already, once for all jobs
                log.write("broker", "job_failed", job=job.number, reason=error.reason, detail=str(error))
            job.finish(Error.from_exception(failure_of(error)))
            if slot.worker is not None and slot.worker.device is None:
                await slot.end("the model could not be loaded")
        except TimeoutError:
            self._fail_timed_out()
            await slot.end("the job took too long")
        except ChannelViolation as error:
            log.write("broker", "worker_violation", job=job.number, detail=str(error))
            await self._fail_lost("the worker broke the protocol")
        except ChannelClosed:
            await self._fail_lost("the worker exited")
        finally:
            slot.set_idle()

    async def _do(self) -> Done:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        loop, job, metrics = asyncio.get_running_loop(), self._job, self._metrics
        worker = await self._ready_worker()
        loaded_at = loop.time()
        timings = Timings(queued=self._started_at - job.queued_at, loading=loaded_at - self._started_at)
        metrics.queued_seconds.observe(timings.queued)
        metrics.loading_seconds.observe(timings.loading)
        if isinstance(job, LoadJob):
            return Done(model=job.model.id, timings=timings)
        tokens = await self._generate(worker, job)
        timings = structs.replace(timings, generating=loop.time() - loaded_at)
        metrics.generating_seconds.observe(timings.generating)
        seed = job.task.parameters.seed
        return Done(model=job.model.id, seed=seed, timings=timings, tokens=tokens, fallback=self._fallback)

    async def _ready_worker(self) -> WorkerLink:
        """A worker that has the job's model and may serve its user. Raises as _do does."""
        slot, job = self._slot, self._job
        if slot.is_lost:
            await slot.lose()
        elif slot.worker is not None and slot.worker.model != job.model.id:
            await slot.end("another model is wanted")
        elif slot.worker is not None and not slot.fits(job):
            await slot.end("another user is served")
        self._check_cancelled()
        if slot.worker is not None:
            return slot.worker
        worker = await self._load()
        self._check_cancelled()
        return worker

    async def _load(self) -> WorkerLink:
        """Raises as _do does."""
        slot, job = self._slot, self._job
        job.state = "loading"
        job.send(Loading(model=job.model.id))
        self._bill(job, slot.culprit or job.principal)
        serves = Served(only=job.uid) if self._config.isolate_users else EVERYONE
        worker = await slot.start(job.model.id, serves=serves)
        self._bill(job, job.principal)
        slot.last_served, slot.culprit = job.principal, None
        await slot.load(worker, job, seconds=self._config.limits.load_seconds)
        self._audit.write("model_loaded", job.requester.peer, model=job.model.id, job=job.number)
        return worker

    def _check_cancelled(self) -> None:
        """Raises WorkerError if the job was cancelled or timed out meanwhile."""
        if self._job.cancelled.is_set():
            raise WorkerError("cancelled")

    async def _generate(self, worker: WorkerLink, job: GenerateJob) -> Tokens:
        """If a worker from before this job exits before it starts on it, a new one takes over and the client does not
        notice. Raises as _do does."""
        try:
            return await self._generate_on(worker, job)
        except ChannelClosed:
            if self.has_output or worker is not self._previous_worker:
                raise
            await self._slot.lose()
            return await self._generate_on(await self._ready_worker(), job)

    async def _generate_on(self, worker: WorkerLink, job: GenerateJob) -> Tokens:
        """Returns the tokens of the prompts. Raises as _do does."""
        job.state = self._slot.state = "running"
        deadline = asyncio.timeout(self._config.limits.job_seconds)
        cancelling = asyncio.create_task(self._pass_on_cancel(worker, deadline))
        tokens = Tokens()
        try:
            async with deadline:
                run = Run(job=job.number, parameters=job.task.parameters)
                async for update, memfd in worker.run(run, job.memfds):
                    self.has_output, self._slot.last_served = True, job.principal
                    if isinstance(update, Finished):
                        tokens = update.tokens
                    elif isinstance(update, Restarted):
                        self._fallback = update.plan
                        log.write("broker", "fallback", job=job.number, plan=update.plan)
                    else:
                        self._metrics.images += isinstance(update, Made)
                        job.send(event_of(job.task, update), memfd)
        finally:
            cancelling.cancel()
        return tokens

    async def _pass_on_cancel(self, worker: WorkerLink, deadline: asyncio.Timeout) -> None:
        await self._job.cancelled.wait()
        deadline.reschedule(asyncio.get_running_loop().time() + _CANCEL_SECONDS)
        with contextlib.suppress(ChannelClosed, ChannelViolation, WorkerError):  # then the deadline ends it
            worker.cancel(self._job.number)

    def _fail_timed_out(self) -> None:
        job = self._job
        if job.cancelled.is_set():
            job.fail(ErrorCode.CANCELLED, "cancelled")
            return
        limit = "load_seconds" if job.state == "loading" else "job_seconds"
        self._audit.write("job_timed_out", job.requester.peer, job=job.number, limit=limit)
        job.fail(ErrorCode.TIMED_OUT, "the job took longer than allowed")

    async def _fail_lost(self, reason: StopReason) -> None:
        self.has_lost = True
        self._slot.blame(self._job.principal)
        self._job.fail(ErrorCode.WORKER_FAILED, "the GPU worker exited unexpectedly; the next request gets a new one")
        await self._slot.end(reason)
