"""One GPU worker as the supervisor sees it: forked, attested, watched, ended."""

import asyncio
from typing import Any

from weave import log
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all, socket_pair
from weave.protocol.control_messages import (
    ForkWorker,
    FromRecordedStart,
    FromWorkerStart,
    LockedDown,
    Recording,
    StartWorker,
)
from weave.protocol.waiting import readable, receive
from weave.sandbox import seccomp
from weave.sandbox.attestation import AttestationFailed, Confinement, attest
from weave.sandbox.mac import layer_of
from weave.supervisor.child import kill
from weave.supervisor.recorder import RecordedWorker, Recorder
from weave.supervisor.zygote import Zygote, ZygoteEnded

# The reasons to stop a worker that do not say how it ended; the second is given to whatever has ended by itself.
_UNEXPLAINED = ("the worker is gone", "stopped")
# Within which a zygote that has nothing else to do tells how a worker ended.
_REAP_SECONDS = 3.0


class WorkerFailed(Exception):
    """The worker never came to serve; the message is for the log and for status."""


class Worker:
    """From fork to reaped. Only an attested worker's channel is handed on to the broker."""

    def __init__(self, request: StartWorker, recorder: Recorder | None) -> None:
        self.id = request.worker
        self.model = request.model
        self.layers: tuple[str, ...] = ()
        self._recorder = recorder
        self._pidfd: int | None = None
        self._listener: int | None = None
        self._watching: asyncio.Task[str | None] | None = None
        self._stop_reason: str | None = None
        # Its zygote, from when it was forked on, and its exit status, which only the zygote is told.
        self._zygote: Zygote | None = None
        self._exited: asyncio.Future[int] | None = None

    async def start(self, zygote: Zygote, confinement: Confinement, *, seconds: float) -> int:
        """Returns the broker's end of the worker's channel, which the caller closes. Raises WorkerFailed, and
        ZygoteEnded or LibrariesUnfit where it was not even forked."""
        try:
            async with asyncio.timeout(seconds):
                return await self._start(zygote, confinement)
        except TimeoutError:
            if not zygote.imported.done():
                stage = "the import of torch and diffusers has not finished; raise [limits] start_seconds"
            elif self._pidfd is None:
                # It has nothing to do but to fork, so it hangs; the next one will not.
                zygote.kill()
                stage = "the zygote did not fork"
            else:
                stage = "the device's start has not finished; raise [limits] start_seconds"
            raise WorkerFailed(f"not ready within {seconds:g} s: {stage}") from None
        except ChannelClosed:
            raise WorkerFailed("ended before it was ready") from None
        except (ChannelViolation, AttestationFailed) as error:
            raise WorkerFailed(str(error)) from None

    async def _start(self, zygote: Zygote, confinement: Confinement) -> int:
        await asyncio.shield(zygote.imported)
        if self.model not in zygote.models:
            raise WorkerFailed("the model is not in the config any more")
        broker_end, job_end = socket_pair()
        supervisor_end, control_end = socket_pair()
        with job_end, control_end:
            fork = ForkWorker(worker=self.id, model=self.model, record=self._recorder is not None)
            zygote.send(fork, (job_end.fileno(), control_end.fileno()))
        control: Channel[Any] = Channel(
            supervisor_end, FromWorkerStart if self._recorder is None else FromRecordedStart
        )
        control.set_blocking(False)
        with broker_end:
            try:
                pid, pidfd, self._exited = await zygote.forked(self.id)
                self._pidfd, self._zygote = pidfd, zygote
                if self._recorder is None:
                    locked_down, descriptors = await receive(control)
                    self._listener = take_listener(descriptors)
                else:
                    recorded = RecordedWorker(self._recorder, pid, zygote.models[self.model])
                    locked_down = await self._record(control, recorded, pidfd)
            finally:
                control.close()
            attest(pid, confinement, parent=zygote.pid)
            self.layers = (*locked_down.layers, *layer_of(confinement.mac))
            return broker_end.detach()

    async def _record(self, control: Channel[FromRecordedStart], recorded: RecordedWorker, pidfd: int) -> LockedDown:
        """In record mode the listener comes before the device's start, which needs our answers."""
        recording, descriptors = await receive(control)
        self._listener = take_listener(descriptors)
        self._watching = asyncio.create_task(watch_violations("worker", self._listener, pidfd, recorded))
        locked_down, descriptors = await receive(control)
        close_all(descriptors)
        if descriptors or not isinstance(recording, Recording) or not isinstance(locked_down, LockedDown):
            raise ChannelViolation("not what a worker sends in record mode")
        recorded.locked_down = True
        return locked_down

    def stop(self, reason: str) -> None:
        """SIGKILL; `ended` tells when it is gone."""
        self._stop_reason = self._stop_reason or reason
        if reason == "the worker broke the protocol":
            self._replace_zygote()
        if self._pidfd is not None:
            kill(self._pidfd)

    async def ended(self) -> str:
        """Wait for the end, killing at the first forbidden system call. Returns the cause."""
        if self._pidfd is None:
            return self._stop_reason or "never started"
        watching = self._watching or asyncio.create_task(watch_violations("worker", self._listener, self._pidfd))
        try:
            await readable(self._pidfd)
        finally:
            # A task left over would in the end take the reader of whoever has the descriptor's number by then.
            watching.cancel()
            violation = (await asyncio.gather(watching, return_exceptions=True))[0]
        if isinstance(violation, str):
            self._replace_zygote()
            return f"killed by seccomp: {violation}"
        return self._stop_reason or "ended by itself"

    async def reaped(self) -> None:
        """It has ended: wait until its zygote has told how, and is on its way out if it must be replaced. No worker is
        forked from it after this."""
        if self._zygote is None or self._exited is None:
            return
        try:
            async with asyncio.timeout(_REAP_SECONDS):
                await asyncio.shield(self._exited)
        except TimeoutError:  # it has something else to do, or hangs
            if self._stop_reason in _UNEXPLAINED:
                self._replace_zygote()
        except ZygoteEnded:
            return

    def _replace_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.replace(self.id)

    def close(self) -> None:
        """Let go of what has ended."""
        close_all([fd for fd in (self._pidfd, self._listener) if fd is not None])
        self._pidfd = self._listener = None


def take_listener(descriptors: list[int]) -> int:
    """The one seccomp listener that must come with LockedDown. Raises ChannelViolation."""
    if len(descriptors) != 1 or not seccomp.is_listener(descriptors[0]):
        close_all(descriptors)
        raise ChannelViolation("locked_down came without a seccomp listener")
    return descriptors[0]


async def watch_violations(
    process: str, listener: int | None, pidfd: int, recorded: RecordedWorker | None = None
) -> str | None:
    """Wait for a forbidden system call of any thread, kill the process, log the call's name and return it; in record
    mode, answer each. However many come, all other tasks get their turn after each."""
    if listener is None:
        return None
    try:
        return await _watch_violations(process, listener, pidfd, recorded)
    except Exception as error:  # out of descriptors, say: its calls would never be answered
        kill(pidfd)
        log.write("supervisor", "watch_failed", of=process, detail=f"{type(error).__name__}: {error}")
        raise


async def _watch_violations(process: str, listener: int, pidfd: int, recorded: RecordedWorker | None) -> str | None:
    while True:
        await readable(listener)
        # First: on older kernels receiving waits for ever where nobody is left to ask (seccomp_unotify(2), BUGS).
        if seccomp.has_ended(listener):
            return None
        violation = seccomp.receive_violation(listener)
        if violation is not None and recorded is not None:
            recorded.answer(listener, violation)
        elif violation is not None:
            kill(pidfd)
            arguments = [hex(argument) for argument in violation.arguments]
            log.write("supervisor", "sandbox_violation", of=process, call=violation.call, arguments=arguments)
            return violation.call
