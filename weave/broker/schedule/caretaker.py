"""What happens on one device in sequence: jobs, and the work between two jobs."""

import asyncio

from weave import log
from weave.broker.admission.principal import EVERYONE
from weave.broker.schedule.job import Job
from weave.broker.schedule.pool import Pool
from weave.broker.schedule.runner import Runner
from weave.broker.schedule.slot import DeviceFailed, Slot
from weave.broker.schedule.worker_link import WorkerError
from weave.protocol.channel import ChannelClosed, ChannelViolation
from weave.protocol.errors import ErrorCode
from weave.protocol.peer import Peer


class Caretaker:
    """Runs the jobs of one slot."""

    def __init__(self, slot: Slot, pool: Pool) -> None:
        self._slot = slot
        self._pool = pool

    async def run(self) -> None:
        """Returns when the slot is retired and its worker has ended."""
        slot = self._slot
        while True:
            if slot.is_outdated:
                slot.is_outdated = False
                await slot.end("the config has changed")
            elif slot.unloads:
                await self._unload(*slot.unloads.popleft())
            elif slot.is_lost:
                await slot.lose()
            elif slot.job is not None:
                await self._run_job(slot.job)
            elif slot.is_untried:
                slot.is_untried = False
                await self._try()
            elif slot.is_retired:
                return
            elif slot.preload and slot.worker is None:
                slot.preload = False
                await self._preload()
            else:
                await self._idle()

    async def _run_job(self, job: Job) -> None:
        slot, pool = self._slot, self._pool
        runner = Runner(job, slot, pool.config, pool.audit, pool.metrics, pool.queue.bill)
        try:
            await runner.run()
        except DeviceFailed as error:
            await self._on_failure(job, str(error))
            return
        if runner.has_lost:
            slot.health.lose(job.principal, alone=pool.config.mode != "system")
        elif runner.has_output:
            slot.health.succeed()
        # Not if the model failed to load: the next request tries again.
        job_cost_the_worker = runner.has_output and slot.worker is None
        slot.preload = pool.attached and slot is pool.slots[0] and (job_cost_the_worker or slot.is_outdated)
        slot.job = None
        pool.queue.over(job)

    async def _on_failure(self, job: Job, problem: str) -> None:
        """The device failed. The job goes to another one, unless none works."""
        slot, pool = self._slot, self._pool
        await slot.end("the device was tried")
        slot.health.fail(problem)
        slot.job = None
        if job.state == "over":
            pool.queue.over(job)
        elif job.cancelled.is_set():
            pool.queue.over(job)
            job.fail(ErrorCode.CANCELLED, "cancelled")
        elif slot.is_retired or pool.working():
            pool.limit_waiting(job)
            pool.queue.put_back(job)
            pool.assign()
        else:
            pool.queue.over(job)
            job.fail(ErrorCode.WORKER_FAILED, f"no worker could start: {problem}")

    async def _try(self) -> None:
        """Start a worker that loads nothing, and end it."""
        slot, config = self._slot, self._pool.config
        if not config.models:
            return
        try:
            await slot.start(config.models[0].id, serves=EVERYONE)
        except DeviceFailed as error:
            slot.health.fail(str(error))
        except (WorkerError, ChannelClosed):  # not the device's fault, but it is not known to work either
            if slot.health.problem is not None:
                slot.health.fail(slot.health.problem)
        finally:
            await slot.end("the device was tried")
            slot.set_idle()

    async def _unload(self, peer: Peer, ending: "asyncio.Future[bool]") -> None:
        slot, pool = self._slot, self._pool
        may_unload = pool.may_unload(slot, peer.uid)
        if may_unload:
            if slot.worker is not None:
                pool.audit.write("model_unloaded", peer, model=slot.worker.model)
            await slot.end("unload")
        ending.set_result(may_unload)

    async def _preload(self) -> None:
        """Load the default model without a request. After a failure the next request tries again, and gets the
        error."""
        slot, config = self._slot, self._pool.config
        if (model := config.default_model) is None:
            return
        try:
            worker = await slot.start(model, serves=EVERYONE)
            await slot.load(worker, seconds=config.limits.load_seconds)
            log.write("broker", "model_loaded", model=model, ahead=True)
        except (DeviceFailed, WorkerError, TimeoutError, ChannelViolation, ChannelClosed) as error:
            if isinstance(error, DeviceFailed):
                slot.health.fail(str(error))
            log.write("broker", "load_ahead_failed", model=model, detail=str(error) or type(error).__name__)
            await slot.end("the model could not be loaded")
        finally:
            slot.set_idle()

    async def _idle(self) -> None:
        """Wait for work. Meanwhile, end a worker that is idle for too long, and try again a device that is out of
        service."""
        slot, pool = self._slot, self._pool
        slot.wake.clear()
        slot.is_free = True
        pool.assign()
        seconds = None
        if slot.worker is not None and not pool.attached:
            seconds = pool.config.limits.idle_unload_seconds
        elif len(pool.slots) > 1:
            seconds = slot.health.seconds_to_retry()
        try:
            async with asyncio.timeout(seconds):
                await slot.wake.wait()
        except TimeoutError:
            slot.is_free = False
            slot.is_untried = slot.health.problem is not None
            await slot.end("idle")
        finally:
            slot.is_free = False
