"""The broker as the supervisor sees it: started, attested, then believed as far as its few requests go."""

import asyncio
import contextlib
import os

from weave.config.parts import BrokerConfig, to_memfd
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
from weave.supervisor.child import Child, describe_status
from weave.supervisor.worker import take_listener, watch_violations

CLIENT_GONE = "the connection or standard input has ended"
# Attached, by the cause that close() returns.
ORDERLY_ENDS = {
    "exit status 0": CLIENT_GONE,
    f"exit status {CLIENT_DROPPED_STATUS}": "our one client was dropped; the broker's last line says why",
}


class Broker:
    """A running broker."""

    def __init__(self, config: BrokerConfig, socket: int, confinement: Confinement, *, attached: bool) -> None:
        """`socket` is one to accept clients on; attached, it is the one client."""
        memfd = to_memfd(config)
        try:
            self._child: Child[FromBroker] = Child(
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
        self._pings = 0

    async def lock_down(self, supervisor: tuple[str, ...], *, seconds: float) -> tuple[str, ...]:
        """Wait until it says that it is locked in, and see for ourselves; then it may serve. `supervisor` are our
        own layers. Returns its layers.

        Raises ChannelClosed, ChannelViolation, AttestationFailed, TimeoutError.
        """
        async with asyncio.timeout(seconds):
            message, descriptors = await receive(self._child.channel)
        if not isinstance(message, LockedDown):
            close_all(descriptors)
            raise ChannelViolation("the broker spoke before it was locked in")
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
            raise ChannelViolation("the broker sent what only a child that starts may send")
        if isinstance(message, Alive):
            if not self._pings:
                raise ChannelViolation("alive, which nobody asked for")
            self._pings = 0
        return message

    def worker_started(self, worker: int, layers: tuple[str, ...], channel: int) -> None:
        """Hand over an attested worker's channel."""
        self._child.send(WorkerStarted(worker=worker, layers=layers), (channel,))

    def worker_ended(self, worker: int, cause: str, *, libraries_lack: bool = False) -> None:
        """Tell that a worker and its memory are gone, or that it never came."""
        self._child.send(WorkerEnded(worker=worker, cause=cause, libraries_lack=libraries_lack))

    def reconfigure(self, config: BrokerConfig) -> None:
        """Hand over a new config."""
        memfd = to_memfd(config)
        try:
            self._child.send(NewConfig(), (memfd,))
        finally:
            close_all([memfd])

    def ping(self, *, libraries_lack: bool) -> bool:
        """Ask whether it lives. Returns whether it has answered the time before."""
        self._pings += 1
        if self._pings > 1:
            return False
        self._child.send(Ping(libraries_lack=libraries_lack))
        return True

    def listen(self, socket: int) -> None:
        """Hand over a socket in the place of the one that it accepts clients on."""
        self._child.send(NewSocket(), (socket,))

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    def stop(self) -> None:
        """It tells its clients, then ends."""
        self._child.send(Stop())

    async def ending(self, *, seconds: float) -> None:
        """It has closed its channel: give it the time to end by itself, so that its status tells why."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._child.ended()

    async def close(self) -> str:
        """End it if it has not ended. Returns the cause."""
        self._child.kill()
        cause = describe_status(await self._child.ended())
        if self._watching is not None:
            self._watching.cancel()
            violation = (await asyncio.gather(self._watching, return_exceptions=True))[0]
            if isinstance(violation, str):
                cause = f"killed by seccomp: {violation}"
        close_all([self._listener] if self._listener is not None else [])
        self._child.close()
        return cause
