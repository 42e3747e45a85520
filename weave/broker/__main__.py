"""python -m weave.broker: started by the supervisor with its channel, its config and the listening socket."""

import argparse
import asyncio
import socket

from weave.broker.broker import Broker
from weave.config.parts import BrokerConfig, from_memfd
from weave.protocol.channel import Channel, ChannelClosed, ChannelViolation, close_all
from weave.protocol.control_messages import Attested, LockedDown, ToBroker
from weave.protocol.waiting import receive
from weave.sandbox import broker_calls, landlock, seccomp
from weave.sandbox.process import drop_capabilities, harden


def main() -> None:
    """Serve until the supervisor says stop or is gone."""
    options = argparse.ArgumentParser()
    for name in ("parent", "control", "config", "listen"):
        options.add_argument(f"--{name}", type=int, required=True)
    inherited = options.parse_args()
    harden(parent=inherited.parent)
    config = from_memfd(inherited.config, BrokerConfig)
    supervisor: Channel[ToBroker] = Channel.from_fd(inherited.control, ToBroker)
    supervisor.set_blocking(False)
    listening = socket.socket(fileno=inherited.listen)
    listening.setblocking(False)
    asyncio.run(serve(config, supervisor, listening))


async def serve(config: BrokerConfig, supervisor: Channel[ToBroker], listening: socket.socket) -> None:
    """The event loop has its descriptors by now. The first client is accepted only below lock_down(), and when
    the supervisor has attested us."""
    layers = lock_down(supervisor)
    try:
        message, descriptors = await receive(supervisor)
        if descriptors or not isinstance(message, Attested):
            raise ChannelViolation("the supervisor spoke before it attested")
        await Broker(config, layers, supervisor, listening).run()
    except ChannelClosed:
        return


def lock_down(supervisor: Channel[ToBroker]) -> tuple[str, ...]:
    """No file, no capability, and only the calls of the allow list. After this line nothing is privileged."""
    layers = (landlock.restrict(), drop_capabilities(), "seccomp", "no-new-privs")
    listener = seccomp.install(broker_calls.CALLS)
    supervisor.send(LockedDown(layers=layers), (listener,))
    close_all([listener])
    return layers


if __name__ == "__main__":
    main()
