"""The zygote as the supervisor sees it: the process with torch in it that workers are forked from."""

import asyncio
import signal
from typing import Any

from weave import log
from weave.config.parts import WorkerConfig, to_memfd
from weave.protocol.channel import ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Exited, Forked, ForkWorker, FromZygote, Imported, LibrariesLack, NewConfig
from weave.protocol.waiting import receive
from weave.sandbox.attestation import Confinement
from weave.supervisor.child import Child, describe_status, kill

# What ends a process whose memory is not as its code expects: signal(7).
_FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
# A shortage, or an upgrade that is under way, looks like a library that lacks something: look again after this long.
_UNFIT_SECONDS = 60.0
# What fdinfo says of a process that is gone.
_REAPED = -1


class ZygoteEnded(Exception):
    """The zygote is gone, and the kernel has ended its workers with it."""


class LibrariesUnfit(Exception):
    """The zygote will fork nothing: its libraries lack something. Another one would most likely not either, until they
    or the config have changed, so this one is kept for a while."""


class Zygote:
    """A running zygote. `models` are those that it knows, by ID; `imported` is done once it can fork, and raises
    ZygoteEnded or LibrariesUnfit where it never will."""

    def __init__(self, config: WorkerConfig, confinement: Confinement) -> None:
        memfd = to_memfd(config)
        try:
            self._child: Child[FromZygote] = Child(
                "weave.gpu_worker",
                FromZygote,
                {"config": memfd},
                confinement,
                audited=False,
            )
        finally:
            close_all([memfd])
        self.pid = self._child.pid
        self.models = {model.offer.id: model for model in config.models}
        self.imported: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forked: dict[int, asyncio.Future[tuple[int, int, asyncio.Future[int]]]] = {}
        # By PID, which is no other worker's until this one is reaped.
        self._exited: dict[int, asyncio.Future[int]] = {}
        # Each broker counts from 1, so that a number may be in it twice.
        self._unwanted: list[int] = []
        self._unfit_since = 0.0

    @property
    def is_unfit(self) -> bool:
        """Whether it has found its libraries to lack something."""
        return self.imported.done() and isinstance(self.imported.exception(), LibrariesUnfit)

    def send(self, message: ForkWorker, descriptors: tuple[int, int]) -> None:
        """Ask for a worker; `forked` tells when it runs."""
        self._forked[message.worker] = asyncio.get_running_loop().create_future()
        self._child.send(message, descriptors)

    async def forked(self, worker: int) -> tuple[int, int, "asyncio.Future[int]"]:
        """The PID and pidfd of a worker that was asked for, and, when it is reaped, its exit status, or minus the
        number of the signal that ended it. Both raise ZygoteEnded. Cancelled, the worker is killed when it comes, or
        now if it has just come."""
        waiting = self._forked[worker]
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.cancelled():
                self._unwanted.append(worker)
            elif waiting.exception() is None:
                _end_unwanted(waiting.result()[1])
            raise
        finally:
            del self._forked[worker]

    def reconfigure(self, config: WorkerConfig) -> None:
        """The next worker gets the new config. Where the libraries were unfit for the old one, a new zygote looks."""
        if self.is_unfit:
            self._make_room()
            return
        self.models = {model.offer.id: model for model in config.models}
        memfd = to_memfd(config)
        try:
            self._child.send(NewConfig(), (memfd,))
        finally:
            close_all([memfd])

    async def run(self) -> str:
        """Listen to the zygote until it is gone. Returns the cause."""
        try:
            while True:
                self._handle(*await receive(self._child.channel))
        except ChannelViolation as error:
            log.write("supervisor", "zygote_violation", detail=str(error))
        except ChannelClosed:
            pass
        finally:
            self._child.kill()
            cause = describe_status(await self._child.ended())
            self._child.close()
            self._fail_pending()
        return cause

    def replace(self, worker: int) -> None:
        """After a worker that was attacked. All workers of a zygote have its address layout: what a failed exploit has
        told of it must be worth nothing in the next one's."""
        log.write("supervisor", "zygote_replaced", worker=worker)
        self.kill()

    def replace_if_unfit_for_long(self) -> None:
        """The next zygote looks at the libraries again, for the next job."""
        if self.is_unfit and asyncio.get_running_loop().time() > self._unfit_since + _UNFIT_SECONDS:
            self._make_room()

    def _make_room(self) -> None:
        """For a zygote that may be fit. Who asks for a worker from now on waits for that one."""
        self.imported = asyncio.get_running_loop().create_future()
        self.kill()

    def kill(self) -> None:
        """SIGKILL; `run` returns when it is gone."""
        self._child.kill()

    def _handle(self, message: FromZygote, descriptors: list[int]) -> None:
        if isinstance(message, Forked) and len(descriptors) == 1:
            self._take_worker(message, descriptors[0])
            return
        close_all(descriptors)
        if descriptors or isinstance(message, Forked):
            raise ChannelViolation("descriptors out of place")
        if isinstance(message, Imported):
            if not self.imported.done():
                self.imported.set_result(None)
        elif isinstance(message, LibrariesLack):
            if not self.imported.done():
                self.imported.set_exception(
                    LibrariesUnfit("its libraries lack something: see libraries_lack in the log")
                )
                self.imported.exception()  # no job may be waiting
                self._unfit_since = asyncio.get_running_loop().time()
        elif isinstance(message, Exited):
            log.write("supervisor", "worker_exited", worker=message.worker, status=describe_status(message.status))
            if -message.status in _FAULTS:
                self.replace(message.worker)
            exited = self._exited.pop(message.pid, None)
            if exited is not None:
                exited.set_result(message.status)

    def _take_worker(self, message: Forked, pidfd: int) -> None:
        is_it = _pid_of(pidfd) in (message.pid, _REAPED)
        if message.worker in self._unwanted and is_it:
            self._unwanted.remove(message.worker)
            _end_unwanted(pidfd)
            return
        waiting = self._forked.get(message.worker)
        if waiting is None or waiting.done() or not is_it:
            close_all([pidfd])
            raise ChannelViolation("a worker that nobody asked for")
        exited = self._exited[message.pid] = asyncio.get_running_loop().create_future()
        waiting.set_result((message.pid, pidfd, exited))

    def _fail_pending(self) -> None:
        pending: list[asyncio.Future[Any]] = [self.imported, *self._forked.values(), *self._exited.values()]
        for waiting in pending:
            if not waiting.done():
                waiting.set_exception(ZygoteEnded())
                waiting.exception()  # whoever waits no longer need not be told


def _end_unwanted(pidfd: int) -> None:
    """Kill a worker that came too late."""
    kill(pidfd)
    close_all([pidfd])


def _pid_of(pidfd: int) -> int | None:
    """The PID behind a pidfd; None where it is none (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"]) if "Pid" in fields else None
