"""The zygote's process: it imports torch once, and forks the workers."""

import asyncio
import signal
from typing import Any

from weave import log
from weave.config.child_configs import WorkerConfig, to_memfd
from weave.config.devices import device_names
from weave.protocol.channel import ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Exited, Forked, ForkWorker, FromZygote, Imported, LibrariesLack, NewConfig
from weave.protocol.waiting import receive
from weave.sandbox.attestation import Confinement
from weave.supervisor.children.process import ChildProcess, describe_status, kill

# Signals of a process whose memory is not as its code expects: signal(7). A failed exploit looks like that.
_FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
# A shortage of memory, or an upgrade in progress, looks like a library that lacks something: check again after this.
_UNFIT_SECONDS = 60.0
# The PID in fdinfo of a process that has been reaped.
_REAPED = -1


class ZygoteEnded(Exception):
    """The zygote has exited, and the kernel has killed its workers with it."""


class LibrariesUnfit(Exception):
    """The zygote forks no workers: its libraries lack something. Until they or the config change, another zygote would
    most likely find the same, so this one is kept for a while."""


class ZygoteProcess:
    """One zygote, from exec to reaped. `models` are those in its config, by ID, and `devices` their devices' names.
    `imported` is done when it can fork; it raises ZygoteEnded or LibrariesUnfit if it never can. `retired` is set when
    it forks no more workers: it lives until its last worker has ended, since the kernel kills its workers with it."""

    def __init__(self, config: WorkerConfig, confinement: Confinement) -> None:
        memfd = to_memfd(config)
        try:
            self._child: ChildProcess[FromZygote] = ChildProcess(
                "weave.gpu_worker",
                FromZygote,
                {"config": memfd},
                confinement,
                audited=False,
            )
        finally:
            close_all([memfd])
        self.pid = self._child.pid
        self._set_offer(config)
        self.retired = asyncio.Event()
        self.imported: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forked: dict[int, asyncio.Future[tuple[int, int, asyncio.Future[int]]]] = {}
        # By PID, which the kernel reuses only after the worker has been reaped.
        self._exited: dict[int, asyncio.Future[int]] = {}
        # Workers to kill when they are forked. Each broker counts from 1, so a number may occur twice.
        self._unwanted: list[int] = []
        # The workers that would end with it, by number.
        self._workers: set[int] = set()
        self._idle_since = asyncio.get_running_loop().time()
        self.has_ended = False
        self._unfit_since = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no worker would end with it."""
        return not self._workers

    @property
    def idle_seconds(self) -> float:
        """How long it has been ready without any worker. 0 if it reported LibrariesLack."""
        is_ready = self.imported.done() and self.imported.exception() is None
        return asyncio.get_running_loop().time() - self._idle_since if is_ready and self.is_idle else 0.0

    @property
    def is_unfit(self) -> bool:
        """Whether it has reported LibrariesLack."""
        return self.imported.done() and isinstance(self.imported.exception(), LibrariesUnfit)

    def send(self, message: ForkWorker, descriptors: tuple[int, int]) -> None:
        """Ask for a worker, and then wait for it with `forked`. The caller still owns `descriptors`. Raises ZygoteEnded
        if it was retired."""
        if self.retired.is_set():
            raise ZygoteEnded
        self._forked[message.worker] = asyncio.get_running_loop().create_future()
        self._child.send(message, descriptors)

    async def forked(self, worker: int) -> tuple[int, int, "asyncio.Future[int]"]:
        """Returns PID and pidfd of the requested worker, and the future of its exit status (negative: the signal). The
        caller owns the pidfd. This and the future raise ZygoteEnded. If this is cancelled, the worker is killed, even
        if it has been forked already."""
        waiting = self._forked[worker]
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.cancelled():
                self._unwanted.append(worker)
            elif waiting.exception() is None:
                _kill_unwanted(waiting.result()[1])
            raise
        finally:
            del self._forked[worker]

    def reconfigure(self, config: WorkerConfig) -> None:
        """The new config is for the next worker. A zygote whose libraries were unfit is replaced, since the new config
        may need less of them."""
        if self.is_unfit:
            self._replace_unfit()
            return
        self._set_offer(config)
        memfd = to_memfd(config)
        try:
            self._child.send(NewConfig(), (memfd,))
        finally:
            close_all([memfd])

    async def run(self) -> str:
        """Handle its messages until it exits. Returns the cause."""
        try:
            while True:
                self._handle(*await receive(self._child.channel))
        except ChannelViolation as error:
            log.write("supervisor", "zygote_violation", detail=str(error))
        except ChannelClosed:
            pass
        finally:
            self._child.kill()
            cause = describe_status(await self._child.exited())
            self.has_ended = True
            self._child.close()
            self._fail_pending()
        return cause

    def replace(self, worker: int) -> None:
        """After an attack on `worker`. All workers of one zygote have its address layout: what a failed exploit has
        learned of it must not help in the next worker."""
        log.write("supervisor", "zygote_replaced", worker=worker)
        self.retire(worker)

    def retire(self, worker: int) -> None:
        """Fork no more workers. It ends now if only this `worker` would end with it, else after the last of them."""
        self.retired.set()
        self.release(worker)

    def retire_idle(self) -> None:
        """End it now, with no worker."""
        self.retired.set()
        self.kill()

    def hold(self, worker: int) -> None:
        """It is about to fork this worker."""
        self._workers.add(worker)

    def release(self, worker: int) -> None:
        """This worker has ended, or may end now."""
        self._workers.discard(worker)
        self._idle_since = asyncio.get_running_loop().time()
        if self.retired.is_set() and not self._workers:
            self.kill()

    def replace_if_unfit_for_long(self) -> None:
        """The next zygote checks the libraries again."""
        if self.is_unfit and asyncio.get_running_loop().time() > self._unfit_since + _UNFIT_SECONDS:
            self._replace_unfit()

    def _set_offer(self, config: WorkerConfig) -> None:
        self.models = {model.offer.id: model for model in config.models}
        self.devices = device_names(config.device)

    def _replace_unfit(self) -> None:
        """Replace this zygote. Requests for a worker wait from now on: for the next one."""
        self.imported = asyncio.get_running_loop().create_future()
        self.kill()

    def kill(self) -> None:
        """SIGKILL; `run` returns when it has exited."""
        if not self.has_ended:  # its pidfd is closed then
            self._child.kill()

    def _handle(self, message: FromZygote, descriptors: list[int]) -> None:
        if isinstance(message, Forked) and len(descriptors) == 1:
            self._take_worker(message, descriptors[0])
            return
        close_all(descriptors)
        if descriptors or isinstance(message, Forked):
            raise ChannelViolation("a message with the wrong number of descriptors")
        if isinstance(message, Imported):
            if not self.imported.done():
                self.imported.set_result(None)
                self._idle_since = asyncio.get_running_loop().time()
        elif isinstance(message, LibrariesLack):
            if not self.imported.done():
                self.imported.set_exception(
                    LibrariesUnfit("its libraries lack something: see libraries_lack in the log")
                )
                self.imported.exception()  # marks it as retrieved: there may be no job that waits
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
            _kill_unwanted(pidfd)
            return
        waiting = self._forked.get(message.worker)
        if waiting is None or waiting.done() or not is_it:
            close_all([pidfd])
            raise ChannelViolation("forked, for a worker that was not requested")
        exited = self._exited[message.pid] = asyncio.get_running_loop().create_future()
        waiting.set_result((message.pid, pidfd, exited))

    def _fail_pending(self) -> None:
        pending: list[asyncio.Future[Any]] = [self.imported, *self._forked.values(), *self._exited.values()]
        for waiting in pending:
            if not waiting.done():
                waiting.set_exception(ZygoteEnded())
                waiting.exception()  # marks it as retrieved: its waiter may have been cancelled


def _kill_unwanted(pidfd: int) -> None:
    """Kill a worker whose request was cancelled."""
    kill(pidfd)
    close_all([pidfd])


def _pid_of(pidfd: int) -> int | None:
    """The PID of a pidfd (proc_pid_fdinfo(5)); None if the descriptor is not a pidfd."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"]) if "Pid" in fields else None
