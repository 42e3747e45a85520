"""A device with at most one worker at a time. The supervisor starts and kills workers at a slot's request."""

import asyncio
from collections import deque
from collections.abc import Iterator

from weave.broker.admission.principal import Principal, Served
from weave.broker.schedule.health import Health
from weave.broker.schedule.job import GenerateJob, Job
from weave.broker.schedule.snapshot import SlotSnapshot, WorkerState
from weave.broker.schedule.worker_link import WorkerError, WorkerLink
from weave.protocol.channel import Channel, ChannelClosed, close_all
from weave.protocol.client_messages import Loading
from weave.protocol.control_messages import StartWorker, StopReason, StopWorker, ToBroker, WorkerEnded, WorkerStarted
from weave.protocol.metrics import Metrics
from weave.protocol.peer import Peer


class DeviceFailed(Exception):
    """No worker could start on the device. The message is for the log and for status."""


class Slot:
    """The state of one device.

    `job` runs on it. Once the job is over, the scheduler ends the worker if `is_outdated` (the config has changed) or
    for each of `unloads` (the requester, and the future that it awaits), and loads the default model if `preload`.
    """

    def __init__(
        self, device: str, supervisor: Channel[ToBroker], worker_numbers: Iterator[int], metrics: Metrics
    ) -> None:
        """`device` is its name in the config. All slots take their workers' numbers from the same `worker_numbers`."""
        self.device = device
        self.health = Health(device)
        # A worker must start on the device before it gets jobs.
        self.is_untried = False
        self.state: WorkerState = "none"
        self.worker: WorkerLink | None = None
        self.worker_number = 0
        self.job: Job | None = None
        # The slot waits for a job, or for one of the events below; `wake` notifies it.
        self.is_free = False
        self.wake = asyncio.Event()
        self.is_outdated = False
        # The device is no longer in the config.
        self.is_retired = False
        self.last_used = 0.0
        self.unloads: deque[tuple[Peer, asyncio.Future[bool]]] = deque()
        self.preload = False
        # The principal that the worker served last, and the one whose job cost a worker: it pays for the next one's
        # start.
        self.last_served: Principal | None = None
        self.culprit: Principal | None = None
        self._supervisor = supervisor
        self._worker_numbers = worker_numbers
        self._metrics = metrics
        self._started: asyncio.Future[tuple[int, tuple[str, ...]] | None] | None = None
        self._exited = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        """The worker has exited, and not because of end()."""
        return self.worker is not None and self._exited.is_set()

    def worker_for(self, uid: int) -> WorkerLink | None:
        """The worker, if it may serve this UID."""
        return self.worker if self.worker is not None and self.worker.serves.includes(uid) else None

    def fits(self, job: Job) -> bool:
        """Whether the worker has the job's model and may serve its user."""
        worker = self.worker_for(job.uid)
        return worker is not None and worker.model == job.model.id

    def on_worker(self, message: WorkerStarted | WorkerEnded, descriptors: list[int]) -> None:
        """Handle the supervisor's message about this slot's worker."""
        waiting = self._started if self._started is not None and not self._started.done() else None
        if isinstance(message, WorkerEnded):
            if waiting is not None and message.device_failed:
                waiting.set_exception(DeviceFailed(message.cause))
            elif waiting is not None and message.libraries_lack:
                waiting.set_exception(WorkerError("libraries", message.cause))
            elif waiting is not None:
                waiting.set_result(None)
            self._exited.set()
        elif waiting is not None:
            waiting.set_result((descriptors[0], message.layers))
        else:
            close_all(descriptors)

    async def start(self, model: str, *, serves: Served) -> WorkerLink:
        """Start a worker; the slot must have none. The supervisor always answers, since it has its own deadline. Raises
        DeviceFailed if another device may work, WorkerError if none would, ChannelClosed if the start failed for
        another reason."""
        self.state = "starting"
        self.worker_number = next(self._worker_numbers)
        self._exited = asyncio.Event()
        self._started = asyncio.get_running_loop().create_future()
        self._supervisor.send(StartWorker(worker=self.worker_number, model=model, device=self.device))
        started = await self._started
        if started is None:
            raise ChannelClosed
        self.health.start()
        channel, layers = started
        self.worker = WorkerLink(self.worker_number, model, channel, serves=serves, layers=layers)
        return self.worker

    async def load(self, worker: WorkerLink, job: Job | None = None, *, seconds: float) -> None:
        """Load the model, and tell `job`, if any, its plan. Raises WorkerError, TimeoutError, ChannelViolation,
        ChannelClosed."""
        self.state = "loading"
        parameters = job.task.parameters if isinstance(job, GenerateJob) else None
        async with asyncio.timeout(seconds):
            await worker.load(parameters)
            if job is not None:
                job.send(Loading(model=job.model.id, plan=worker.plan))
            await worker.loaded()
        self._metrics.models_loaded += 1

    async def end(self, reason: StopReason) -> None:
        """End the worker, and wait until the supervisor reports its exit: only then is all of its memory free."""
        self.state = "stopping"
        if self.worker_number and not self._exited.is_set():
            self._supervisor.send(StopWorker(worker=self.worker_number, reason=reason))
            await self._exited.wait()
        if self.worker is not None:
            self.worker.close()
        self.worker, self.state = None, "none"

    async def lose(self) -> None:
        """Clean up a worker that exited between two jobs. The principal that it served last pays for the next one."""
        self.blame(self.last_served)
        await self.end("the worker exited")

    def blame(self, culprit: Principal | None) -> None:
        """Count a lost worker. `culprit` is the principal whose job lost it."""
        self._metrics.workers_lost += 1
        self.culprit = culprit

    def set_idle(self) -> None:
        """The job on this slot is over."""
        self.last_used = asyncio.get_running_loop().time()
        self.state = "idle" if self.worker is not None else "none"

    def snapshot(self) -> SlotSnapshot:
        """The slot's state as of now."""
        return SlotSnapshot(
            device=self.device,
            problem=self.health.problem,
            retry_seconds=self.health.seconds_to_retry(),
            state=self.state,
            runs_for=self.job.uid if self.job is not None else None,
            worker=self.worker.snapshot() if self.worker is not None else None,
        )
