"""The broker's life: accept, answer requests, heed the supervisor."""

import asyncio
import socket
from itertools import count

from weave import log
from weave.broker.access import is_allowed
from weave.broker.audit import Audit
from weave.broker.connection import Connection, refuse
from weave.broker.gpu import Gpu
from weave.broker.job import Job, UserNumbers
from weave.broker.limits import Admission
from weave.broker.principal import principal_of
from weave.broker.reply import Reply, Version2Reply
from weave.broker.requests import fill_in, pick_model, pick_v1_model
from weave.broker.status import Standing, report_to
from weave.config.parts import BrokerConfig, from_memfd
from weave.protocol import version1
from weave.protocol.bounds import Parameters
from weave.protocol.channel import Channel, ChannelViolation, close_all
from weave.protocol.client_messages import (
    Cancel,
    ClientMessage,
    Done,
    Error,
    Generate,
    ListModels,
    LoadModel,
    ModelOffer,
    Models,
    Status,
    Unload,
)
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
from weave.protocol.peer import Peer
from weave.protocol.waiting import readable, receive

_FLUSH_SECONDS = 1.0
_ACCEPT_PAUSE_SECONDS = 0.1


class Broker:
    """All clients, one GPU."""

    def __init__(
        self,
        config: BrokerConfig,
        sandbox: dict[str, tuple[str, ...]],
        supervisor: Channel[ToBroker],
        sock: socket.socket,
        *,
        attached: bool,
    ) -> None:
        """`sandbox` is what supervisor and broker are held by; `sock` is one to accept clients on; attached, it is
        the one client."""
        self._config = config
        self._sandbox = sandbox
        self._supervisor = supervisor
        self._socket = sock
        self._attached = attached
        self._new_sockets: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._audit = Audit(config.access)
        self._metrics = Metrics()
        self._admission = Admission(config)
        self._gpu = Gpu(supervisor, config, self._audit, self._metrics, attached=attached)
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        self._job_numbers = count(1)
        self._user_numbers = UserNumbers()
        self._started_at = asyncio.get_running_loop().time()
        # Attached: the one client was dropped by us, and did not go by itself.
        self.client_dropped = False

    async def run(self) -> None:
        """Serve until the supervisor says stop or the client that we are attached to is gone.

        Raises ChannelClosed, ChannelViolation.
        """
        entering = self._serve_attached() if self._attached else self._accept_for_ever()
        serving = [asyncio.create_task(entering), asyncio.create_task(self._gpu.run())]
        heeding = asyncio.create_task(self._heed_supervisor())
        done, _ = await asyncio.wait([heeding, *serving], return_when=asyncio.FIRST_COMPLETED)
        for task in serving:
            task.cancel()
        await self._say_goodbye()
        for task in done:
            task.result()

    async def _serve_attached(self) -> None:
        self._welcome(self._socket)
        for connection, serving in list(self._clients.items()):
            await serving
            self.client_dropped = connection.dropped

    async def _accept_for_ever(self) -> None:
        """On the socket that we were given, and on each that takes its place."""
        async with asyncio.TaskGroup() as group:
            while True:
                accepting = group.create_task(self._accept(self._socket))
                replacement = await self._new_sockets.get()
                accepting.cancel()
                await asyncio.wait([accepting])
                self._socket.close()
                self._socket = replacement

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                await readable(listening.fileno())
            except OSError as error:  # out of descriptors: those waiting keep their place in the backlog
                log.write("broker", "accept_failed", detail=error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
            else:
                self._welcome(sock)
                await asyncio.sleep(0)  # the connections that there are get their turn

    def _welcome(self, sock: socket.socket) -> None:
        """Whoever is not allowed gets nothing at all, and no byte of theirs is read."""
        sock.setblocking(False)
        peer = Peer.of(sock)
        if not is_allowed(self._config.access, peer, sock):
            sock.close()
            self._metrics.connections_refused += 1
            self._audit.stranger(peer)
            return
        try:
            share = self._admission.enter(principal_of(self._config.access, peer.uid))
        except RequestError as error:
            self._metrics.connections_refused += 1
            self._audit.write("connection_refused", peer, reason=error.message)
            refuse(sock, Error.from_exception(error))
            return
        connection = Connection(sock, peer, share, self._admission, self._audit, self._metrics)
        self._metrics.connections += 1
        self._clients[connection] = asyncio.create_task(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve(self._handle)
        finally:
            del self._clients[connection]
            self._admission.leave(connection)
            for job in list(connection.jobs):
                self._gpu.cancel(job)
            jobs = {job.uid for job in self._gpu.jobs()}
            self._user_numbers.forget_all_but(jobs | {other.peer.uid for other in self._clients})

    def _handle(self, reply: Reply, message: ClientMessage | version1.Request) -> None:
        """The whitelist of what a client can ask. Raises RequestError."""
        uid = reply.connection.peer.uid
        self._metrics.requests += 1
        match message:
            case Status():
                reply.send(report_to(uid, self._standing()))
            case ListModels():
                default = self._config.default_model
                reply.send(Models(models=self._config.models, default=default, loaded=self._loaded(uid)))
            case Generate():
                self._admit(reply)
                model = pick_model(self._config, message.model, self._loaded(uid))
                self._submit(reply, model, message, fill_in(message, model))
            case version1.Request():
                self._admit(reply)
                model = pick_v1_model(self._config, message.model_id)
                generate = message.as_generate(model.id)
                parameters = fill_in(generate, model, message.prompts)
                self._submit(reply, model, generate, parameters, seconds=self._config.limits.v1_seconds)
            case LoadModel():
                self._admit(reply)
                self._submit(reply, pick_model(self._config, message.model, None))
            case Unload():
                self._admit(reply)
                self._unload(reply)
            case Cancel():
                self._gpu.cancel(self._find_job(reply.connection, message))
                reply.send(Done())

    def _admit(self, reply: Reply) -> None:
        self._admission.request(reply.connection.principal, asyncio.get_running_loop().time())

    def _submit(
        self,
        reply: Reply,
        model: ModelOffer,
        generate: Generate | None = None,
        parameters: Parameters | None = None,
        *,
        seconds: float | None = None,
    ) -> None:
        peer = reply.connection.peer
        queue, principal = self._gpu.queue, reply.connection.principal
        self._admission.check_queue(principal, waiting=len(queue), theirs=queue.waiting(principal))
        number = next(self._job_numbers)
        theirs = self._user_numbers.next(peer.uid) if self._config.mode == "system" else number
        job = Job(number, reply, model, generate, parameters, user_number=theirs)
        reply.connection.jobs.add(job)
        if parameters is not None and self._config.audit_prompts:
            self._audit.write("generate", peer, job=job.number, model=model.id, prompt=parameters.prompt)
        self._gpu.submit(job, seconds=seconds)

    def _unload(self, reply: Reply) -> None:
        assert isinstance(reply, Version2Reply)  # version 1 has no word for it
        unloads = reply.connection.unloads
        unloading = self._gpu.unload(reply.connection.peer)
        unloads.add(reply.request)

        def tell(done: "asyncio.Future[None]") -> None:
            unloads.remove(reply.request)
            refused = done.exception()
            reply.send(Error.from_exception(refused) if isinstance(refused, RequestError) else Done())

        unloading.add_done_callback(tell)

    def _find_job(self, connection: Connection, message: Cancel) -> Job:
        """Any connection of a user may cancel any job of that user, and of nobody else."""
        if (message.request is None) == (message.job is None):
            raise RequestError(ErrorCode.INVALID_REQUEST, "cancel takes either request or job", field="job")
        if message.request is not None:
            for job in connection.jobs:
                if job.reply.request == message.request:
                    return job
            raise RequestError(
                ErrorCode.INVALID_REQUEST, "no such request in flight", field="request", value=message.request
            )
        for job in self._gpu.jobs():
            if job.user_number == message.job and job.uid == connection.peer.uid:
                return job
        raise RequestError(ErrorCode.INVALID_REQUEST, "no such job of yours", field="job", value=message.job)

    def _loaded(self, uid: int) -> str | None:
        worker = self._gpu.worker_for(uid)
        return worker.model if worker is not None else None

    def _standing(self) -> Standing:
        return Standing(
            config=self._config,
            uptime=asyncio.get_running_loop().time() - self._started_at,
            sandbox=self._sandbox,
            gpu=self._gpu,
            connections=[connection.peer.uid for connection in self._clients],
            metrics=self._metrics,
        )

    async def _heed_supervisor(self) -> None:
        """Returns on Stop. Raises ChannelClosed, ChannelViolation."""
        while True:
            message, descriptors = await receive(self._supervisor)
            match message:
                case Stop():
                    return
                case Ping(libraries_lack=lack) if not descriptors:
                    self._gpu.slot.libraries_lack = lack
                    connections, queue = self._admission.connections(), len(self._gpu.queue)
                    alive = Alive(metrics=self._metrics, connections=connections, queue_length=queue)
                    self._supervisor.send(alive)
                case NewSocket() if len(descriptors) == 1:
                    replacement = socket.socket(fileno=descriptors[0])
                    replacement.setblocking(False)
                    self._new_sockets.put_nowait(replacement)
                case NewConfig() if len(descriptors) == 1:
                    self._reconfigure(from_memfd(descriptors[0], BrokerConfig))
                case WorkerStarted() | WorkerEnded():
                    self._gpu.on_supervisor(message, descriptors)
                case _:
                    close_all(descriptors)
                    raise ChannelViolation("descriptors out of place")

    def _reconfigure(self, config: BrokerConfig) -> None:
        """Connections and jobs live on, but those of whoever is not allowed any more."""
        self._config = config
        self._admission.reconfigure(config)
        self._audit.reconfigure(config.access)
        self._gpu.reconfigure(config)
        for connection in self._clients:
            if not self._attached and not is_allowed(config.access, connection.peer, connection.sock):
                connection.drop("its user is not allowed any more")

    async def _say_goodbye(self) -> None:
        for job in self._gpu.jobs():
            job.fail(ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
        await asyncio.gather(*(connection.flush(seconds=_FLUSH_SECONDS) for connection in self._clients))
        self._audit.close()
