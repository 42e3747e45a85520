"""The workers that the broker has requested: at most one for each device at any time."""

import asyncio
import contextlib

from weave import log
from weave.config.devices import device_names
from weave.protocol.channel import ChannelViolation, close_all
from weave.protocol.control_messages import StartWorker, StopReason, WorkerEnded
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.broker import BrokerProcess
from weave.supervisor.children.worker import DeviceUnusable, WorkerFailed, WorkerProcess
from weave.supervisor.children.zygote import LibrariesUnfit, ZygoteEnded
from weave.supervisor.record_mode.recorder import Recorder
from weave.supervisor.zygotes import Zygotes


class Workers:
    """By number. A worker counts from the broker's request until it has been reaped and the broker notified."""

    def __init__(self, zygotes: Zygotes, confinement: Confinement, recorder: Recorder | None) -> None:
        self._zygotes = zygotes
        self._confinement = confinement
        self._recorder = recorder
        self._workers: dict[int, WorkerProcess] = {}
        self._running: set[asyncio.Task[None]] = set()

    def start(self, broker: BrokerProcess, request: StartWorker) -> None:
        """Raises ChannelViolation if there is a worker of that number, or on that device."""
        if any(worker.id == request.worker or worker.device == request.device for worker in self._workers.values()):
            raise ChannelViolation("a second worker was requested")
        config = self._zygotes.config
        is_device = request.device in device_names(config.device)
        if request.model not in config.models or not is_device:
            # Not a violation: the broker may not have read the new config yet.
            cause = f"the {'model' if is_device else 'device'} is no longer in the config"
            broker.worker_ended(WorkerEnded(worker=request.worker, cause=cause, device_failed=not is_device))
            return
        self._workers[request.worker] = worker = WorkerProcess(request, self._recorder)
        running = asyncio.create_task(self._run(broker, worker))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def stop(self, number: int, reason: StopReason) -> None:
        """Ignored unless that worker lives."""
        if (worker := self._workers.get(number)) is not None:
            worker.stop(reason)

    async def end_all(self) -> None:
        """Returns when all have exited. The broker is not notified: it has exited itself."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, broker: BrokerProcess, worker: WorkerProcess) -> None:
        """From the request to the worker's end, which the broker is always notified of."""
        try:
            ended = await self._until_exited(broker, worker)
            await worker.reaped()
        finally:
            del self._workers[worker.id]
        broker.worker_ended(ended)

    async def _until_exited(self, broker: BrokerProcess, worker: WorkerProcess) -> WorkerEnded:
        """Returns the cause of its exit."""
        named = {"worker": worker.id, "model": worker.model, "device": worker.device}
        cause, unfit, unusable = "stopped", False, False
        try:
            channel = await self._start(worker)
            try:
                log.write("supervisor", "worker_started", layers=worker.layers, **named)
                broker.worker_started(worker.id, worker.layers, channel)
            finally:
                close_all([channel])
            cause = await worker.exited()
        except LibrariesUnfit as error:
            cause, unfit = str(error), True
        except ZygoteEnded:
            cause = "the zygote exited twice"
        except WorkerFailed as error:
            cause, unusable = str(error), isinstance(error, DeviceUnusable)
        except Exception as error:  # out of descriptors, for example
            cause = f"{type(error).__name__}: {error}"
        finally:
            worker.stop("stopped")
            await worker.exited()
            worker.close()
            if not unfit:
                log.write("supervisor", "worker_ended", cause=cause, **named)
            else:  # no worker was forked, and the zygote has logged libraries_lack
                self._zygotes.replace_if_unfit_for_long()
        return WorkerEnded(worker=worker.id, cause=cause, libraries_lack=unfit, device_failed=unusable)

    async def _start(self, worker: WorkerProcess) -> int:
        """As WorkerProcess.start(). A zygote that exits before the fork costs a second try, not the job."""
        with contextlib.suppress(ZygoteEnded):
            return await self._start_once(worker)
        return await self._start_once(worker)

    async def _start_once(self, worker: WorkerProcess) -> int:
        zygote = await self._zygotes.current()
        seconds = self._zygotes.config.limits.start_seconds
        return await worker.start(zygote, self._confinement, seconds=seconds)
