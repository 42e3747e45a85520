"""The supervisor's life: keep a zygote and a broker running, and give the broker the workers it asks for."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import prctl

from weave import log
from weave.config import Config, ConfigError
from weave.config.parts import BrokerConfig, broker_config, worker_config
from weave.protocol.channel import ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import StartWorker
from weave.sandbox.attestation import AttestationFailed
from weave.supervisor.broker import Broker
from weave.supervisor.socket import Entrance
from weave.supervisor.worker import Worker, WorkerFailed
from weave.supervisor.zygote import Zygote

_BROKER_START_SECONDS = 20.0
_STOP_SECONDS = 3.0
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 5.0
# A child that ran this long before it ended gets the first backoff again.
_STEADY_SECONDS = 30.0


class Supervisor:
    """One daemon. At any time there is at most one worker: it owns the GPU."""

    def __init__(self, config: Config, entrance: Entrance, read_config: Callable[[], Config]) -> None:
        self._config = config
        self._entrance = entrance
        self._read_config = read_config
        # Only a process with CAP_SETPCAP can empty the bounding set, so only then can we demand it.
        self._bounding_set_empty = bool(prctl.cap_effective.setpcap)
        self._broker: Broker | None = None
        self._zygote: Zygote | None = None
        self._worker: Worker | None = None
        self._new_zygote = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; attached, until whoever started us is gone."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        zygotes = asyncio.create_task(_keep("zygote", self._run_zygote, stopping))
        # Attached, a new broker could not know where in the connection's bytes the old one was.
        brokers: asyncio.Task[Any] = asyncio.create_task(
            self._run_broker() if self._entrance.attached else _keep("broker", self._run_broker, stopping)
        )
        stopped = asyncio.create_task(stopping.wait())
        ended = asyncio.create_task(self._entrance.ended())
        try:
            # A keeper only ever ends by an error of ours: then stop, and let main tell.
            await asyncio.wait([stopped, ended, zygotes, brokers], return_when=asyncio.FIRST_COMPLETED)
            stopping.set()
            log.write("supervisor", "stopping")
            if self._broker is not None and not ended.done():
                self._broker.stop()
                await asyncio.wait([brokers], timeout=_STOP_SECONDS)
        finally:
            for task in (stopped, ended, zygotes, brokers):
                task.cancel()
            results = await asyncio.gather(zygotes, brokers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _run_zygote(self) -> str:
        self._zygote = Zygote(worker_config(self._config))
        self._new_zygote.set()
        try:
            return await self._zygote.run()
        finally:
            self._zygote = None
            self._new_zygote.clear()

    async def _run_broker(self) -> str:
        self._broker = broker = Broker(
            self._broker_config(), self._entrance.socket.fileno(), attached=self._entrance.attached
        )
        worker: asyncio.Task[None] | None = None
        try:
            layers = await broker.lock_down(
                parent=os.getpid(), seconds=_BROKER_START_SECONDS, bounding_set_empty=self._bounding_set_empty
            )
            log.write("supervisor", "serving", socket=str(self._entrance.path), broker=broker.pid, layers=layers)
            while True:
                request = await broker.next_request()
                if isinstance(request, StartWorker):
                    if worker is not None and not worker.done():
                        raise ChannelViolation("a second worker was asked for")
                    worker = asyncio.create_task(self._run_worker(broker, request))
                elif self._worker is not None and self._worker.id == request.worker:
                    self._worker.stop(request.reason)
        except (ChannelViolation, AttestationFailed, TimeoutError) as error:
            log.write("supervisor", "broker_violation", detail=str(error) or type(error).__name__)
        except ChannelClosed:
            pass
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
        if all(model != request.model for model in self._config.models):
            broker.worker_ended(request.worker, "the model is not in the config any more")
            return
        self._worker = worker = Worker(request)
        cause = "stopped"
        try:
            await self._new_zygote.wait()
            assert self._zygote is not None
            channel = await worker.start(
                self._zygote,
                seconds=self._config.limits.start_seconds,
                bounding_set_empty=self._bounding_set_empty,
            )
            try:
                log.write("supervisor", "worker_started", worker=worker.id, model=worker.model, layers=worker.layers)
                broker.worker_started(worker.id, worker.layers, channel)
            finally:
                close_all([channel])
            cause = await worker.ended()
        except WorkerFailed as error:
            cause = str(error)
        finally:
            worker.stop("stopped")
            await worker.ended()
            worker.close()
            self._worker = None
            log.write("supervisor", "worker_ended", worker=worker.id, model=worker.model, cause=cause)
        broker.worker_ended(request.worker, cause)

    def _reload(self) -> None:
        """SIGHUP. A config with an error changes nothing."""
        try:
            self._config = self._read_config()
        except ConfigError as error:
            log.write("supervisor", "reload_refused", detail=str(error))
            return
        if self._zygote is not None:
            self._zygote.reconfigure(worker_config(self._config))
        if self._broker is not None:
            self._broker.reconfigure(self._broker_config())
        log.write("supervisor", "reloaded")

    def _broker_config(self) -> BrokerConfig:
        mode = "attached" if self._entrance.attached else "user"
        return broker_config(self._config, mode=mode, allowed_uids=(os.geteuid(),))


async def _keep(name: str, run: Callable[[], Awaitable[str]], stopping: asyncio.Event) -> None:
    """Until the daemon stops, run a child again whenever it ends: later each time that it ended soon."""
    backoff = _FIRST_BACKOFF_SECONDS
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        cause = await run()
        if stopping.is_set():
            return
        if loop.time() - started > _STEADY_SECONDS:
            backoff = _FIRST_BACKOFF_SECONDS
        log.write("supervisor", f"{name}_ended", cause=cause, restart_after=backoff)
        await asyncio.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
