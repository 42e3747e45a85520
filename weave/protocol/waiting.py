"""Await a plain descriptor, which asyncio offers for stream sockets only."""

import asyncio
from typing import TypeVar

from weave.protocol.channel import Channel

Incoming = TypeVar("Incoming")


async def readable(descriptor: int) -> None:
    """Return when `descriptor` is readable or at its end; for a pidfd, when the process has exited."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Return when `descriptor` is writable or its peer has closed it."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


async def receive(channel: Channel[Incoming]) -> tuple[Incoming, list[int]]:
    """Channel.receive for a non-blocking channel. Raises ChannelClosed, ChannelViolation.

    It yields to the event loop before each message, so that a flood of messages does not starve other tasks.
    """
    await asyncio.sleep(0)
    while True:
        try:
            return channel.receive()
        except BlockingIOError:
            await readable(channel.fileno())


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
