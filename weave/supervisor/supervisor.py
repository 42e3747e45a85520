"""Keeps zygotes and a broker running, and gives the broker the workers that it requests."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from weave import log
from weave.config.child_configs import BrokerConfig
from weave.config.schema import ConfigError
from weave.config.split import broker_config
from weave.protocol.channel import ChannelClosed, ChannelViolation
from weave.protocol.control_messages import Alive, StartWorker, StopWorker
from weave.sandbox.account import Account
from weave.sandbox.attestation import AttestationFailed, Confinement
from weave.sandbox.mac import Mac
from weave.supervisor.audit import open_audit
from weave.supervisor.children.broker import CLIENT_GONE, ORDERLY_ENDS, BrokerProcess
from weave.supervisor.children.restart import keep_running
from weave.supervisor.metrics_file import write_metrics
from weave.supervisor.notify import Notifier
from weave.supervisor.record_mode.recorder import Recorder
from weave.supervisor.settings import Settings
from weave.supervisor.sockets.client_socket import ClientSocket
from weave.supervisor.workers import Workers
from weave.supervisor.zygotes import Zygotes

_BROKER_START_SECONDS = 20.0
_BROKER_STOP_SECONDS = 3.0
_BROKER_EXIT_SECONDS = 2.0
_HANG_UP_SECONDS = 0.2
_SIGNALLED = "a signal asked for it"
# How often the broker is pinged, an idle zygote ended, the socket's path checked, and the metrics written.
_TICK_SECONDS = 5.0


class Supervisor:
    """One daemon."""

    def __init__(
        self,
        settings: Settings,
        client_socket: ClientSocket,
        layers: tuple[str, ...],
        read_settings: Callable[[], Settings],
        mac: Mac | None,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        """`layers` are our own, for status. `mac`, if any, must confine our children too. `read_settings` raises
        ConfigError and OSError. `recorder` turns on record mode, which exists in user mode only."""
        if recorder is not None and settings.mode != "user":
            raise ValueError(f"record mode in {settings.mode} mode")
        self._settings = settings
        self._client_socket = client_socket
        self._layers = layers
        self._read_settings = read_settings
        self._notifier = Notifier()
        # Emptying the bounding set takes CAP_SETPCAP. So we require it of our children only if ours is empty.
        empty = _bounding_set_is_empty()
        self._broker_confinement = Confinement("broker", settings.broker_account or Account.own(), empty, mac)
        worker_confinement = Confinement("worker", settings.worker_account or Account.own(), empty, mac)
        self._broker: BrokerProcess | None = None
        self._zygotes = Zygotes(settings.config, worker_confinement)
        self._workers = Workers(self._zygotes, worker_confinement, recorder)

    async def run(self) -> str:
        """Serve until SIGTERM or SIGINT, or, attached, until the client is gone or the broker has dropped it. Returns
        the reason. Raises ConfigError, OSError."""
        stopping = asyncio.Event()
        self._handle_signals(stopping)
        zygotes = asyncio.create_task(self._zygotes.run(stopping))
        # Attached, the broker is not restarted: a new one could not know how much of the byte stream the old one read.
        brokers: asyncio.Task[Any] = asyncio.create_task(
            self._run_broker() if self._client_socket.attached else keep_running("broker", self._run_broker, stopping)
        )
        ticking = asyncio.create_task(self._tick())
        signalled = asyncio.create_task(stopping.wait())
        client_gone = asyncio.create_task(self._client_socket.ended())
        tasks = [zygotes, brokers, ticking, signalled, client_gone]
        reason: str | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._client_socket.attached and brokers.done():
                await asyncio.wait([client_gone], timeout=_HANG_UP_SECONDS)  # the broker may see the hang-up first
            reason = _SIGNALLED if signalled.done() else CLIENT_GONE if client_gone.done() else None
            stopping.set()
            log.write("supervisor", "stopping")
            self._notifier.stopping()
            if self._broker is not None and not client_gone.done():
                self._broker.stop()
                await asyncio.wait([brokers], timeout=_BROKER_STOP_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(zygotes, brokers, ticking, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return reason if reason == _SIGNALLED else _reason_of(results[1], reason)

    def _handle_signals(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        # A shell ignores SIGINT in its background jobs, which Ctrl-C is not meant for.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGINT, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    async def _run_broker(self) -> str:
        """From exec to reaped. Returns the cause of its exit. No worker outlives the broker that it serves."""
        settings, opened = self._settings, self._client_socket.socket
        broker = BrokerProcess(
            self._broker_config(), opened.fileno(), self._broker_confinement, attached=self._client_socket.attached
        )
        try:
            layers = await broker.lock_down(self._layers, seconds=_BROKER_START_SECONDS)
            # Until it is attested it gets no other message. It gets now what has changed since it was started.
            self._broker = broker
            if self._settings is not settings:
                broker.reconfigure(self._broker_config())
            if self._client_socket.socket is not opened:
                broker.listen(self._client_socket.socket.fileno())
            log.write("supervisor", "serving", socket=str(self._client_socket.path), broker=broker.pid, layers=layers)
            self._notifier.ready("serving")
            await self._serve_broker(broker)
        except (ChannelViolation, AttestationFailed, TimeoutError) as error:
            log.write("supervisor", "broker_violation", detail=str(error) or type(error).__name__)
        except ChannelClosed:
            await broker.wait_for_exit(seconds=_BROKER_EXIT_SECONDS)
        finally:
            await self._workers.end_all()
            self._broker = None
            cause = await broker.close()
        return cause

    async def _serve_broker(self, broker: BrokerProcess) -> None:
        """Handle its requests until an exception ends this. Raises ChannelClosed, ChannelViolation."""
        while True:
            match await broker.next_request():
                case StartWorker() as request:
                    self._workers.start(broker, request)
                case StopWorker(worker=number, reason=reason):
                    self._workers.stop(number, reason)
                case Alive() as alive:
                    self._on_alive(alive)

    def _reload(self) -> None:
        """SIGHUP. An invalid config changes nothing. The children's accounts stay as they were at the start."""
        self._notifier.reloading()
        try:
            settings = self._read_settings()
            open_audit(settings.config)
        except (ConfigError, OSError) as error:
            log.write("supervisor", "reload_refused", detail=str(error))
            self._notify_ready("serving; the new config was refused, see the log")
            return
        self._settings = structs.replace(self._settings, config=settings.config, access=settings.access)
        self._zygotes.reconfigure(settings.config)
        if self._broker is not None:
            self._broker.reconfigure(self._broker_config())
        log.write("supervisor", "reloaded")
        self._notify_ready("serving")

    def _notify_ready(self, status: str) -> None:
        """After a reload. Without a broker, _run_broker does it when the next one is attested."""
        if self._broker is not None:
            self._notifier.ready(status)

    def _broker_config(self) -> BrokerConfig:
        return broker_config(self._settings.config, mode=self._settings.mode, access=self._settings.access)

    async def _tick(self) -> None:
        """Check that the broker answers and that clients can reach the socket, end an idle zygote, and feed systemd's
        watchdog. Runs until cancelled. Raises ConfigError if another daemon has taken the socket's path."""
        seconds = min(_TICK_SECONDS, self._notifier.alive_seconds or _TICK_SECONDS)
        loop = asyncio.get_running_loop()
        due = loop.time() + _TICK_SECONDS
        while True:
            await asyncio.sleep(seconds)
            self._notifier.alive()
            if loop.time() < due:
                continue
            due = loop.time() + _TICK_SECONDS
            self._zygotes.end_if_idle()
            if self._broker is not None and not self._broker.ping(libraries_lack=self._zygotes.is_unfit):
                log.write("supervisor", "broker_hung", broker=self._broker.pid)
                self._broker.kill()
            if self._client_socket.restore():
                log.write("supervisor", "socket_restored", socket=str(self._client_socket.path))
                if self._broker is not None:
                    self._broker.listen(self._client_socket.socket.fileno())

    def _on_alive(self, alive: Alive) -> None:
        self._notifier.status(f"serving, {alive.connections} connections, {alive.queue_length} jobs waiting")
        path = self._settings.config.metrics.file
        if path is None:
            return
        try:
            write_metrics(Path(path), alive)
        except (ConfigError, OSError) as error:
            log.write("supervisor", "metrics_not_written", detail=str(error))


def _reason_of(broker_cause: Any, reason: str | None) -> str:
    """Why we stopped without a signal. `broker_cause` is set in attached mode, where the broker's exit status may say
    more than `reason`. Raises ChildProcessError if neither explains it."""
    reason = ORDERLY_ENDS.get(str(broker_cause), reason)
    if reason is None:
        log.write("supervisor", "broker_ended", cause=broker_cause)
        raise ChildProcessError(f"the broker exited: {broker_cause}")
    return reason


def _bounding_set_is_empty() -> bool:
    """Whether none of our children can ever gain a capability: proc_pid_status(5)."""
    return "CapBnd:\t0000000000000000\n" in Path("/proc/self/status").read_text()
