"""python -m weave.broker: the supervisor starts it, with a channel, a config and a socket as inherited descriptors."""

import argparse
import asyncio
import resource
import socket

from weave.broker.server import Server
from weave.config.child_configs import BrokerConfig, from_memfd
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import CLIENT_DROPPED_STATUS, Attested, LockedDown, ToBroker
from weave.protocol.waiting import receive
from weave.sandbox import broker_calls, landlock, seccomp
from weave.sandbox.hardening import drop_capabilities, harden


def main() -> None:
    """Serve until the supervisor sends Stop or closes the channel."""
    options = argparse.ArgumentParser()
    for name in ("parent", "control", "config"):
        options.add_argument(f"--{name}", type=int, required=True)
    sockets = options.add_mutually_exclusive_group(required=True)
    sockets.add_argument("--listen", type=int)
    sockets.add_argument("--client", type=int)
    inherited = options.parse_args()
    harden(parent=inherited.parent)
    # Connections and unread images are descriptors; the config's limits bound their number.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = from_memfd(inherited.config, BrokerConfig)
    supervisor: Channel[ToBroker] = Channel.from_fd(inherited.control, ToBroker)
    supervisor.set_blocking(False)
    attached = inherited.client is not None
    sock = socket.socket(fileno=inherited.client if attached else inherited.listen)
    sock.setblocking(False)
    raise SystemExit(asyncio.run(serve(config, supervisor, sock, attached=attached)))


async def serve(config: BrokerConfig, supervisor: Channel[ToBroker], sock: socket.socket, *, attached: bool) -> int:
    """The event loop already has its descriptors. No client is accepted before lock_down() and the supervisor's
    attestation. Returns the exit status."""
    lock_down(supervisor)
    try:
        message, descriptors = await receive(supervisor)
        if descriptors or not isinstance(message, Attested):
            raise ChannelViolation("the supervisor sent a message before Attested")
        sandbox = {"supervisor": message.supervisor, "broker": message.broker}
        server = Server(config, sandbox, supervisor, sock, attached=attached)
        await server.run()
        return CLIENT_DROPPED_STATUS if server.client_dropped else 0
    except ChannelClosed:
        return 0


def lock_down(supervisor: Channel[ToBroker]) -> None:
    """Give up all files and capabilities, and all system calls but those of the allow list."""
    layers = (landlock.restrict(), drop_capabilities(), "seccomp", "no-new-privs")
    listener = seccomp.install(broker_calls.CALLS)
    supervisor.send(LockedDown(layers=layers), (listener,))
    close_all([listener])


if __name__ == "__main__":
    main()
