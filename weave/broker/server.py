"""The broker as a whole: its parts, its messages from the supervisor, and its shutdown."""

import asyncio
import socket

from weave.broker.admission.audit import Audit
from weave.broker.admission.limits import Admission
from weave.broker.front.clients import Clients
from weave.broker.front.dispatch import Dispatcher
from weave.broker.front.listener import Listener
from weave.broker.front.status import DaemonSnapshot
from weave.broker.schedule.scheduler import Scheduler
from weave.config.child_configs import BrokerConfig, from_memfd
from weave.protocol.channel import Channel, ChannelViolation, close_all
from weave.protocol.control_messages import (
    Alive,
    NewConfig,
    NewSocket,
    Ping,
    Stop,
    ToBroker,
    WorkerEnded,
    WorkerStarted,
)
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.metrics import Metrics
from weave.protocol.waiting import receive

_FLUSH_SECONDS = 1.0


class Server:
    """All clients and all devices."""

    def __init__(
        self,
        config: BrokerConfig,
        sandbox: dict[str, tuple[str, ...]],
        supervisor: Channel[ToBroker],
        sock: socket.socket,
        *,
        attached: bool,
    ) -> None:
        """`sandbox`: the layers of the supervisor and the broker. `sock`: the listening socket; in attached mode, the
        one client's connection."""
        self._config = config
        self._sandbox = sandbox
        self._supervisor = supervisor
        self._socket = sock
        self._attached = attached
        self._started_at = asyncio.get_running_loop().time()
        self._metrics = Metrics()
        self._audit = Audit(config.access)
        self._admission = Admission(config)
        self._scheduler = Scheduler(supervisor, config, self._audit, self._metrics, attached=attached)
        self._dispatcher = Dispatcher(
            config, self._admission, self._scheduler, self._audit, self._metrics, self._snapshot
        )
        self._clients = Clients(config.access, self._admission, self._dispatcher, self._audit, self._metrics)
        self._listener = Listener(self._clients)

    @property
    def client_dropped(self) -> bool:
        """Attached mode: the broker dropped the one client, which had not disconnected."""
        return self._attached and self._clients.last_was_dropped

    async def run(self) -> None:
        """Serve until the supervisor sends Stop or, in attached mode, the client disconnects.

        Raises ChannelClosed, ChannelViolation.
        """
        serving = self._clients.serve_one(self._socket) if self._attached else self._listener.run(self._socket)
        working = [asyncio.create_task(serving), asyncio.create_task(self._scheduler.run())]
        listening = asyncio.create_task(self._listen_to_supervisor())
        done, _ = await asyncio.wait([listening, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in working:
            task.cancel()
        await self._shut_down()
        for task in done:
            task.result()

    async def _listen_to_supervisor(self) -> None:
        """Returns on Stop. Raises ChannelClosed, ChannelViolation."""
        while True:
            message, descriptors = await receive(self._supervisor)
            match message:
                case Stop():
                    return
                case Ping(libraries_lack=lack) if not descriptors:
                    self._scheduler.libraries_lack = lack
                    connections, queue = self._admission.connections(), len(self._scheduler.queue)
                    failed = sum(slot.health.problem is not None for slot in self._scheduler.slots)
                    alive = Alive(
                        metrics=self._metrics, connections=connections, queue_length=queue, devices_failed=failed
                    )
                    self._supervisor.send(alive)
                case NewSocket() if len(descriptors) == 1:
                    self._listener.replace(socket.socket(fileno=descriptors[0]))
                case NewConfig() if len(descriptors) == 1:
                    self._reconfigure(from_memfd(descriptors[0], BrokerConfig))
                case WorkerStarted() | WorkerEnded():
                    self._scheduler.on_worker(message, descriptors)
                case _:
                    close_all(descriptors)
                    raise ChannelViolation("unexpected descriptors")

    def _reconfigure(self, config: BrokerConfig) -> None:
        """Connections and jobs continue, except those of users who are no longer allowed."""
        self._config = config
        self._admission.reconfigure(config)
        self._audit.reconfigure(config.access)
        self._scheduler.reconfigure(config)
        self._dispatcher.reconfigure(config)
        if not self._attached:
            self._clients.reconfigure(config.access)

    def _snapshot(self) -> DaemonSnapshot:
        return DaemonSnapshot(
            config=self._config,
            uptime=asyncio.get_running_loop().time() - self._started_at,
            sandbox=self._sandbox,
            schedule=self._scheduler.snapshot(),
            connections=self._clients.uids(),
            metrics=self._metrics.copy(),
        )

    async def _shut_down(self) -> None:
        """Send every job's last event to every client that reads."""
        stopping = RequestError(ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
        self._clients.fail_uploads(stopping)
        for job in list(self._scheduler.jobs()):
            job.fail(stopping.code, stopping.message)
        await self._clients.flush(seconds=_FLUSH_SECONDS)
        self._audit.close()
