"""Awaiting plain descriptors: what asyncio has for stream sockets only."""

import asyncio
from typing import TypeVar

from weave.protocol.channel import Channel

Incoming = TypeVar("Incoming")


async def readable(descriptor: int) -> None:
    """Return when `descriptor` can be read from, or has ended; for a pidfd: when its process has."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Return when `descriptor` can be written to, or has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


async def receive(channel: Channel[Incoming]) -> tuple[Incoming, list[int]]:
    """Channel.receive for a channel that does not block. Raises ChannelClosed, ChannelViolation.

    However much comes, all other tasks get their turn after each message.
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
