"""The supervisor's life: keep a zygote and a broker running, and give the broker the workers it asks for."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from weave import log
from weave.config.children import broker_config, worker_config
from weave.config.parts import Access, BrokerConfig
from weave.config.schema import Config, ConfigError
from weave.protocol.channel import ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Alive, StartWorker, StopWorker
from weave.sandbox.attestation import AttestationFailed, Confinement
from weave.sandbox.mac import Mac
from weave.sandbox.process import Account
from weave.supervisor.audit import open_audit
from weave.supervisor.broker import CLIENT_GONE, ORDERLY_ENDS, Broker
from weave.supervisor.notify import Notifier
from weave.supervisor.recorder import Recorder
from weave.supervisor.socket import Entrance
from weave.supervisor.textfile import write_textfile
from weave.supervisor.worker import Worker, WorkerFailed
from weave.supervisor.zygote import LibrariesUnfit, Zygote, ZygoteEnded

_BROKER_START_SECONDS = 20.0
_STOP_SECONDS = 3.0
_HANG_UP_SECONDS = 0.2
_ENDING_SECONDS = 2.0
_ASKED = "a signal asked for it"
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 5.0
# How often the broker is asked whether it lives, the socket's path looked at, and the metrics written.
_TICK_SECONDS = 5.0
# A child that ran this long before it ended gets the first backoff again.
_STEADY_SECONDS = 30.0


class Settings(Struct, frozen=True):
    """What the config and the accounts that it names come to. SIGHUP makes it anew."""

    mode: Literal["user", "system", "attached"]
    config: Config
    access: Access
    broker_account: Account | None = None
    worker_account: Account | None = None


class Supervisor:
    """One daemon. At any time there is at most one worker: it owns the GPU."""

    def __init__(
        self,
        settings: Settings,
        entrance: Entrance,
        layers: tuple[str, ...],
        read_settings: Callable[[], Settings],
        mac: Mac | None,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        """`layers` are those that we are locked in by, `mac` what our children must be held by as well; `read_settings`
        raises ConfigError, OSError. `recorder` makes it record mode, which there is in user mode only."""
        if recorder is not None and settings.mode != "user":
            raise ValueError(f"record mode in {settings.mode} mode")
        self._recorder = recorder
        self._settings = settings
        self._entrance = entrance
        self._layers = layers
        self._read_settings = read_settings
        self._notifier = Notifier()
        # Only a process that had CAP_SETPCAP could empty the bounding set, so only then can we demand it.
        empty = _bounding_set_is_empty()
        self._broker_confinement = Confinement("broker", settings.broker_account or Account.own(), empty, mac)
        self._worker_confinement = Confinement("worker", settings.worker_account or Account.own(), empty, mac)
        self._broker: Broker | None = None
        self._zygote: Zygote | None = None
        self._worker: Worker | None = None
        self._new_zygote = asyncio.Event()

    async def run(self) -> str:
        """Serve until SIGTERM or SIGINT; attached, until whoever started us is gone, or is dropped. Returns why."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        # A shell's background ignores it: there Ctrl-C is not for us.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGINT, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        zygotes = asyncio.create_task(_keep("zygote", self._run_zygote, stopping))
        # Attached, a new broker could not know where in the connection's bytes the old one was.
        brokers: asyncio.Task[Any] = asyncio.create_task(
            self._run_broker() if self._entrance.attached else _keep("broker", self._run_broker, stopping)
        )
        ticking = asyncio.create_task(self._tick())
        stopped = asyncio.create_task(stopping.wait())
        ended = asyncio.create_task(self._entrance.ended())
        try:
            # A keeper only ever ends by an error of ours: then stop, and let main tell.
            await asyncio.wait([stopped, ended, zygotes, brokers, ticking], return_when=asyncio.FIRST_COMPLETED)
            if self._entrance.attached and brokers.done():
                await asyncio.wait([ended], timeout=_HANG_UP_SECONDS)  # the broker may have seen it first
            reason: str | None = _ASKED if stopped.done() else CLIENT_GONE if ended.done() else None
            stopping.set()
            log.write("supervisor", "stopping")
            self._notifier.stopping()
            if self._broker is not None and not ended.done():
                self._broker.stop()
                await asyncio.wait([brokers], timeout=_STOP_SECONDS)
        finally:
            for task in (stopped, ended, zygotes, brokers, ticking):
                task.cancel()
            results = await asyncio.gather(zygotes, brokers, ticking, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if reason != _ASKED:
            reason = ORDERLY_ENDS.get(str(results[1]), reason)
        if reason is None:
            log.write("supervisor", "broker_ended", cause=results[1])
            raise ChildProcessError(f"the broker ended: {results[1]}")
        return reason

    async def _run_zygote(self) -> str:
        self._zygote = Zygote(worker_config(self._settings.config), self._worker_confinement)
        self._new_zygote.set()
        try:
            return await self._zygote.run()
        finally:
            self._zygote = None
            self._new_zygote.clear()

    async def _run_broker(self) -> str:
        settings, socket = self._settings, self._entrance.socket
        broker = Broker(
            self._broker_config(),
            socket.fileno(),
            self._broker_confinement,
            attached=self._entrance.attached,
        )
        worker: asyncio.Task[None] | None = None
        try:
            layers = await broker.lock_down(self._layers, seconds=_BROKER_START_SECONDS)
            # From here on it may be told more than that it is attested; and what changed meanwhile it is told now.
            self._broker = broker
            if self._settings is not settings:
                broker.reconfigure(self._broker_config())
            if self._entrance.socket is not socket:
                broker.listen(self._entrance.socket.fileno())
            log.write("supervisor", "serving", socket=str(self._entrance.path), broker=broker.pid, layers=layers)
            self._notifier.ready("serving")
            while True:
                match await broker.next_request():
                    case StartWorker() as request:
                        if worker is not None and not worker.done():
                            raise ChannelViolation("a second worker was asked for")
                        worker = asyncio.create_task(self._run_worker(broker, request))
                    case StopWorker(worker=number, reason=reason):
                        if self._worker is not None and self._worker.id == number:
                            self._worker.stop(reason)
                    case Alive() as alive:
                        self._on_alive(alive)
        except (ChannelViolation, AttestationFailed, TimeoutError) as error:
            log.write("supervisor", "broker_violation", detail=str(error) or type(error).__name__)
        except ChannelClosed:
            await broker.ending(seconds=_ENDING_SECONDS)
        finally:
            # No worker outlives the broker it answers to.
            if worker is not None:
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)
            self._broker = None
            cause = await broker.close()
        return cause

    async def _run_worker(self, broker: Broker, request: StartWorker) -> None:
        """From the broker's request to the worker's end."""
        if request.model not in self._settings.config.models:
            broker.worker_ended(request.worker, "the model is not in the config any more")
            return
        self._worker = worker = Worker(request, self._recorder)
        cause, unfit = "stopped", False
        try:
            try:
                channel = await self._start(worker)
            except ZygoteEnded:  # before it forked: the next one will
                channel = await self._start(worker)
            try:
                log.write("supervisor", "worker_started", worker=worker.id, model=worker.model, layers=worker.layers)
                broker.worker_started(worker.id, worker.layers, channel)
            finally:
                close_all([channel])
            cause = await worker.ended()
        except (WorkerFailed, LibrariesUnfit, ZygoteEnded) as error:
            cause, unfit = str(error) or "the zygote ended twice", isinstance(error, LibrariesUnfit)
        except Exception as error:  # out of descriptors, say: whatever it was, the broker must hear of the end
            cause = f"{type(error).__name__}: {error}"
        finally:
            worker.stop("stopped")
            await worker.ended()
            worker.close()
            self._worker = None
            if not unfit:
                log.write("supervisor", "worker_ended", worker=worker.id, model=worker.model, cause=cause)
            elif self._zygote is not None:  # there was no worker, and the log has libraries_lack
                self._zygote.replace_if_unfit_for_long()
        await worker.reaped()
        broker.worker_ended(request.worker, cause, libraries_lack=unfit)

    async def _start(self, worker: Worker) -> int:
        while self._zygote is None:
            await self._new_zygote.wait()
        seconds = self._settings.config.limits.start_seconds
        return await worker.start(self._zygote, self._worker_confinement, seconds=seconds)

    def _reload(self) -> None:
        """SIGHUP. A config with an error changes nothing. Who our children run as stays as it was at the start."""
        self._notifier.reloading()
        try:
            settings = self._read_settings()
            open_audit(settings.config)
        except (ConfigError, OSError) as error:
            log.write("supervisor", "reload_refused", detail=str(error))
            self._tell_ready("serving; the new config was refused, see the log")
            return
        self._settings = structs.replace(self._settings, config=settings.config, access=settings.access)
        if self._zygote is not None:
            self._zygote.reconfigure(worker_config(settings.config))
        if self._broker is not None:
            self._broker.reconfigure(self._broker_config())
        log.write("supervisor", "reloaded")
        self._tell_ready("serving")

    def _tell_ready(self, status: str) -> None:
        """After a reload; a broker that has yet to come tells it itself."""
        if self._broker is not None:
            self._notifier.ready(status)

    def _broker_config(self) -> BrokerConfig:
        return broker_config(self._settings.config, mode=self._settings.mode, access=self._settings.access)

    async def _tick(self) -> None:
        """For ever: see that the broker lives and that clients can find it, and tell the watchdog.

        Raises ConfigError where another daemon has taken our socket's place.
        """
        seconds = min(_TICK_SECONDS, self._notifier.alive_seconds or _TICK_SECONDS)
        loop = asyncio.get_running_loop()
        due = loop.time() + _TICK_SECONDS
        while True:
            await asyncio.sleep(seconds)
            self._notifier.alive()
            if loop.time() < due:
                continue
            due = loop.time() + _TICK_SECONDS
            unfit = self._zygote is not None and self._zygote.is_unfit
            if self._broker is not None and not self._broker.ping(libraries_lack=unfit):
                log.write("supervisor", "broker_hung", broker=self._broker.pid)
                self._broker.kill()
            if self._entrance.restore():
                log.write("supervisor", "socket_restored", socket=str(self._entrance.path))
                if self._broker is not None:
                    self._broker.listen(self._entrance.socket.fileno())

    def _on_alive(self, alive: Alive) -> None:
        self._notifier.status(f"serving, {alive.connections} connections, {alive.queue_length} jobs waiting")
        path = self._settings.config.metrics.file
        if path is None:
            return
        try:
            write_textfile(Path(path), alive)
        except (ConfigError, OSError) as error:
            log.write("supervisor", "metrics_not_written", detail=str(error))


def _bounding_set_is_empty() -> bool:
    """Whether no child of ours could ever gain a capability: proc_pid_status(5)."""
    return "CapBnd:\t0000000000000000\n" in Path("/proc/self/status").read_text()


async def _keep(name: str, run: Callable[[], Awaitable[str]], stopping: asyncio.Event) -> None:
    """Until the daemon stops, run a child again whenever it ends: later each time that it ended soon."""
    backoff = _FIRST_BACKOFF_SECONDS
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            cause = await run()
        except OSError as error:  # no process, no descriptor, no memory: there may be some later
            cause = str(error)
        if stopping.is_set():
            return
        if loop.time() - started > _STEADY_SECONDS:
            backoff = _FIRST_BACKOFF_SECONDS
        log.write("supervisor", f"{name}_ended", cause=cause, restart_after=backoff)
        await asyncio.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
