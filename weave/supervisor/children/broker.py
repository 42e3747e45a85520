"""The broker's process: started, attested, then trusted only with its few requests."""

import asyncio
import contextlib
import os

from weave.config.child_configs import BrokerConfig, to_memfd
from weave.protocol.channel import ChannelViolation, close_all
from weave.protocol.control_messages import (
    CLIENT_DROPPED_STATUS,
    Alive,
    Attested,
    FromBroker,
    LockedDown,
    NewConfig,
    NewSocket,
    Ping,
    StartWorker,
    Stop,
    StopWorker,
    WorkerEnded,
    WorkerStarted,
)
from weave.protocol.waiting import receive
from weave.sandbox.attestation import Confinement, attest
from weave.sandbox.mac import layer_of
from weave.supervisor.children.process import ChildProcess, describe_status
from weave.supervisor.children.violations import take_listener, watch_violations

CLIENT_GONE = "the connection or standard input has ended"
# Attached mode's reasons to stop, by the cause that close() returns.
ORDERLY_ENDS = {
    "exit status 0": CLIENT_GONE,
    f"exit status {CLIENT_DROPPED_STATUS}": "our only client was dropped; the broker's last line says why",
}


class BrokerProcess:
    """One broker, from exec to reaped."""

    def __init__(self, config: BrokerConfig, socket: int, confinement: Confinement, *, attached: bool) -> None:
        """`socket` accepts clients, or, `attached`, is the connection to the only one."""
        memfd = to_memfd(config)
        try:
            self._child: ChildProcess[FromBroker] = ChildProcess(
                "weave.broker",
                FromBroker,
                {"config": memfd, "client" if attached else "listen": socket},
                confinement,
                audited=True,
            )
        finally:
            close_all([memfd])
        self.pid = self._child.pid
        self._confinement = confinement
        self._listener: int | None = None
        self._watching: asyncio.Task[str | None] | None = None
        self._unanswered_pings = 0

    async def lock_down(self, supervisor: tuple[str, ...], *, seconds: float) -> tuple[str, ...]:
        """Wait until it reports that it is locked down, verify that, and let it serve. `supervisor` are our own layers.
        Returns its layers.

        Raises ChannelClosed, ChannelViolation, AttestationFailed, TimeoutError.
        """
        async with asyncio.timeout(seconds):
            message, descriptors = await receive(self._child.channel)
        if not isinstance(message, LockedDown):
            close_all(descriptors)
            raise ChannelViolation("the broker sent a message before it was locked down")
        self._listener = take_listener(descriptors)
        self._child.channel.refuse_descriptors()
        attest(self.pid, self._confinement, parent=os.getpid())
        layers = (*message.layers, *layer_of(self._confinement.mac))
        self._child.send(Attested(supervisor=supervisor, broker=layers))
        self._watching = asyncio.create_task(watch_violations("broker", self._listener, self._child.pidfd))
        return layers

    async def next_request(self) -> StartWorker | StopWorker | Alive:
        """Raises ChannelClosed, ChannelViolation."""
        message, descriptors = await receive(self._child.channel)
        close_all(descriptors)
        if descriptors or isinstance(message, LockedDown):
            raise ChannelViolation("the broker sent what only a child that is starting may send")
        if isinstance(message, Alive):
            if not self._unanswered_pings:
                raise ChannelViolation("alive without a ping")
            self._unanswered_pings = 0
        return message

    def worker_started(self, worker: int, layers: tuple[str, ...], channel: int) -> None:
        """Pass on an attested worker's `channel`, which the caller still owns."""
        self._child.send(WorkerStarted(worker=worker, layers=layers), (channel,))

    def worker_ended(self, message: WorkerEnded) -> None:
        """A worker has exited and its memory is free, or it was never started."""
        self._child.send(message)

    def reconfigure(self, config: BrokerConfig) -> None:
        """Replace its config."""
        memfd = to_memfd(config)
        try:
            self._child.send(NewConfig(), (memfd,))
        finally:
            close_all([memfd])

    def ping(self, *, libraries_lack: bool) -> bool:
        """Ask for an Alive. Returns whether the previous ping was answered; if not, none is sent."""
        self._unanswered_pings += 1
        if self._unanswered_pings > 1:
            return False
        self._child.send(Ping(libraries_lack=libraries_lack))
        return True

    def listen(self, socket: int) -> None:
        """Replace the socket that it accepts clients on. The caller still owns `socket`."""
        self._child.send(NewSocket(), (socket,))

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    def stop(self) -> None:
        """Ask it to notify its clients and exit."""
        self._child.send(Stop())

    async def wait_for_exit(self, *, seconds: float) -> None:
        """It has closed its channel: wait for it to exit by itself, so that its exit status gives the cause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._child.exited()

    async def close(self) -> str:
        """Kill it if it still runs, and reap it. Returns the cause of its end."""
        self._child.kill()
        cause = describe_status(await self._child.exited())
        if self._watching is not None:
            self._watching.cancel()
            violation = (await asyncio.gather(self._watching, return_exceptions=True))[0]
            if isinstance(violation, str):
                cause = f"killed by seccomp: {violation}"
        close_all([self._listener] if self._listener is not None else [])
        self._child.close()
        return cause
