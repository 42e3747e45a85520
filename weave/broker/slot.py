"""The one worker that there is at a time: asked for, loaded, ended. The supervisor starts it and kills it."""

import asyncio
from typing import Literal

from weave import log
from weave.broker.worker_link import WorkerError, WorkerLink
from weave.protocol.channel import Channel, ChannelClosed, close_all
from weave.protocol.control_messages import StartWorker, StopReason, StopWorker, ToBroker, WorkerEnded, WorkerStarted
from weave.protocol.worker_messages import Failed

WorkerState = Literal["none", "starting", "loading", "idle", "running", "stopping"]


class Slot:
    """A device with at most one worker. `layers` are what holds that worker. `libraries_lack`: none can be started."""

    def __init__(self, supervisor: Channel[ToBroker]) -> None:
        self.state: WorkerState = "none"
        self.worker: WorkerLink | None = None
        self.layers: tuple[str, ...] = ()
        self.libraries_lack = False
        self._supervisor = supervisor
        self._started: asyncio.Future[int | None] | None = None
        self._number = 0
        self._gone = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        """There is a worker that ended, though nobody told it to."""
        return self.worker is not None and self._gone.is_set()

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
        if waiting is not None and message.libraries_lack:
            self.libraries_lack = True
            waiting.set_exception(WorkerError(Failed(job=0, reason="libraries", detail=message.cause)))
        elif waiting is not None:
            waiting.set_result(None)
        if current:
            self._gone.set()

    async def start(self, model: str, *, serves: int | None) -> WorkerLink:
        """A new worker, where there is none. The supervisor has a deadline of its own for it, and always answers.
        Raises ChannelClosed where it did not come, and WorkerError where no other would come either."""
        self.state = "starting"
        self._number += 1
        self._gone = asyncio.Event()
        self._started = asyncio.get_running_loop().create_future()
        self._supervisor.send(StartWorker(worker=self._number, model=model))
        channel = await self._started
        if channel is None:
            raise ChannelClosed
        self.worker = WorkerLink(self._number, model, channel, serves=serves)
        return self.worker

    async def load(self, worker: WorkerLink, *, seconds: float) -> None:
        """Raises WorkerError, TimeoutError, ChannelViolation, ChannelClosed."""
        self.state = "loading"
        async with asyncio.timeout(seconds):
            await worker.load()

    async def end(self, reason: StopReason) -> None:
        """Returns when the supervisor says that it is gone: only then is all of its memory back."""
        self.state = "stopping"
        if self._number and not self._gone.is_set():
            self._supervisor.send(StopWorker(worker=self._number, reason=reason))
            await self._gone.wait()
        if self.worker is not None:
            self.worker.close()
        self.worker, self.layers, self.state = None, (), "none"

    def rest(self) -> None:
        """Nothing is done any more."""
        self.state = "idle" if self.worker is not None else "none"
