"""One GPU worker: forked by the zygote, attested, watched, killed."""

import asyncio
import contextlib
from typing import Any

from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all, socket_pair
from weave.protocol.control_messages import (
    DeviceFailed,
    ForkWorker,
    FromRecordedStart,
    FromWorkerStart,
    LockedDown,
    Recording,
    StartWorker,
)
from weave.protocol.waiting import readable, receive
from weave.sandbox.attestation import AttestationFailed, Confinement, attest
from weave.sandbox.mac import layer_of
from weave.supervisor.children.process import describe_status, kill
from weave.supervisor.children.violations import take_listener, watch_violations
from weave.supervisor.children.zygote import ZygoteEnded, ZygoteProcess
from weave.supervisor.record_mode.recorder import RecordedWorker, Recorder

# Reasons for stop() that do not say why the worker exited; "stopped" is given even if it already has.
_UNEXPLAINED = ("the worker exited", "stopped")
# How long an idle zygote may take to report a worker's exit status.
_REAP_SECONDS = 3.0


class WorkerFailed(Exception):
    """The worker did not start; the message is for the log and for status."""


class DeviceUnusable(WorkerFailed):
    """The device did not start."""


class WorkerProcess:
    """From fork to reaped. Owns the worker's pidfd and seccomp listener. Its channel reaches the broker only after
    attestation."""

    def __init__(self, request: StartWorker, recorder: Recorder | None) -> None:
        self.id = request.worker
        self.model = request.model
        self.device = request.device
        self.layers: tuple[str, ...] = ()
        self._recorder = recorder
        self._pidfd: int | None = None
        self._listener: int | None = None
        self._watching: asyncio.Task[str | None] | None = None
        self._stop_reason: str | None = None
        self._zygote: ZygoteProcess | None = None
        # Set by the fork. The exit status comes from the zygote, which is the worker's parent.
        self._exited: asyncio.Future[int] | None = None

    async def start(self, zygote: ZygoteProcess, confinement: Confinement, *, seconds: float) -> int:
        """Returns the broker's end of the worker's channel, which the caller owns. Raises WorkerFailed, and ZygoteEnded
        or LibrariesUnfit if there was no fork."""
        try:
            async with asyncio.timeout(seconds):
                return await self._start(zygote, confinement)
        except TimeoutError:
            if not zygote.imported.done():
                stage = "the import of torch and diffusers has not finished; raise [limits] start_seconds"
            elif self._pidfd is None:
                # An idle zygote that does not fork has hung.
                zygote.retire(self.id)
                stage = "the zygote did not fork"
            else:
                stage = f"the start of {self.device} has not finished; raise [limits] start_seconds"
                raise DeviceUnusable(f"not ready within {seconds:g} s: {stage}") from None
            raise WorkerFailed(f"not ready within {seconds:g} s: {stage}") from None
        except ZygoteEnded:
            zygote.release(self.id)  # another one may fork this worker
            raise
        except ChannelClosed:
            raise await self._early_exit() from None
        except (ChannelViolation, AttestationFailed) as error:
            raise WorkerFailed(str(error)) from None

    async def _start(self, zygote: ZygoteProcess, confinement: Confinement) -> int:
        zygote.hold(self.id)
        self._zygote = zygote
        await asyncio.shield(zygote.imported)
        if self.device not in zygote.devices:
            raise DeviceUnusable("the device is no longer in the config")
        if self.model not in zygote.models:
            raise WorkerFailed("the model is no longer in the config")
        broker_end, job_end = socket_pair()
        supervisor_end, control_end = socket_pair()
        with job_end, control_end:
            fork = ForkWorker(worker=self.id, model=self.model, device=self.device, record=self._recorder is not None)
            zygote.send(fork, (job_end.fileno(), control_end.fileno()))
        control: Channel[Any] = Channel(
            supervisor_end, FromWorkerStart if self._recorder is None else FromRecordedStart
        )
        control.set_blocking(False)
        with broker_end:
            try:
                pid, pidfd, self._exited = await zygote.forked(self.id)
                self._pidfd = pidfd
                if self._recorder is None:
                    locked_down, descriptors = await receive(control)
                    self._check_device(locked_down, descriptors)
                    self._listener = take_listener(descriptors)
                else:
                    recorded = RecordedWorker(self._recorder, pid, zygote.models[self.model], self.device)
                    locked_down = await self._record(control, recorded, pidfd)
            finally:
                control.close()
            attest(pid, confinement, parent=zygote.pid)
            self.layers = (*locked_down.layers, *layer_of(confinement.mac))
            return broker_end.detach()

    async def _record(self, control: Channel[FromRecordedStart], recorded: RecordedWorker, pidfd: int) -> LockedDown:
        """In record mode the listener comes before the worker starts its device, which needs our answers."""
        recording, descriptors = await receive(control)
        self._listener = take_listener(descriptors)
        self._watching = asyncio.create_task(watch_violations("worker", self._listener, pidfd, recorded))
        locked_down, descriptors = await receive(control)
        self._check_device(locked_down, descriptors)
        close_all(descriptors)
        if descriptors or not isinstance(recording, Recording) or not isinstance(locked_down, LockedDown):
            raise ChannelViolation("not what a worker sends in record mode")
        recorded.locked_down = True
        return locked_down

    def _check_device(self, message: object, descriptors: list[int]) -> None:
        """Raises DeviceUnusable."""
        if isinstance(message, DeviceFailed):
            close_all(descriptors)
            raise DeviceUnusable(
                f"{self.device} did not start, and torch sees {message.gpus} GPUs: see device_failed in the log"
            )

    async def _early_exit(self) -> WorkerFailed:
        """It has closed its channel: its exit status tells whether it failed, as when a driver crashes, or went with
        its zygote."""
        if self._exited is not None:
            with contextlib.suppress(TimeoutError, ZygoteEnded):
                async with asyncio.timeout(_REAP_SECONDS):
                    status = describe_status(await asyncio.shield(self._exited))
                return DeviceUnusable(f"the worker on {self.device} exited before it was ready: {status}")
        return WorkerFailed("exited before it was ready")

    def stop(self, reason: str) -> None:
        """SIGKILL; `exited` returns when it has exited. The first reason counts."""
        self._stop_reason = self._stop_reason or reason
        if reason == "the worker broke the protocol":
            self._replace_zygote()
        if self._pidfd is not None:
            kill(self._pidfd)

    async def exited(self) -> str:
        """Wait until it exits; a forbidden system call kills it. Returns the cause."""
        if self._pidfd is None:
            return self._stop_reason or "never started"
        watching = self._watching
        if watching is None and self._listener is not None:
            watching = asyncio.create_task(watch_violations("worker", self._listener, self._pidfd))
        violation = None
        try:
            await readable(self._pidfd)
        finally:
            if watching is not None:
                # A task that outlives the listener would take over the reader of the next owner of its number.
                watching.cancel()
                violation = (await asyncio.gather(watching, return_exceptions=True))[0]
        if isinstance(violation, str):
            self._replace_zygote()
            return f"killed by seccomp: {violation}"
        return self._stop_reason or "exited by itself"

    async def reaped(self) -> None:
        """After it has exited: wait for its exit status, and have its zygote replaced if the worker was attacked. No
        worker is forked from that zygote after this returns."""
        if self._zygote is None or self._exited is None:
            return
        try:
            async with asyncio.timeout(_REAP_SECONDS):
                await asyncio.shield(self._exited)
        except TimeoutError:  # the zygote is busy, or hangs
            if self._stop_reason in _UNEXPLAINED:
                self._replace_zygote()
        except ZygoteEnded:
            return

    def _replace_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.replace(self.id)

    def close(self) -> None:
        """After it has exited."""
        close_all([fd for fd in (self._pidfd, self._listener) if fd is not None])
        self._pidfd = self._listener = None
        if self._zygote is not None:
            self._zygote.release(self.id)
