"""Restarting a child whenever it exits."""

import asyncio
from collections.abc import Awaitable, Callable

from weave import log

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 5.0
# A child that ran for longer than this is restarted with the first backoff again.
_STEADY_SECONDS = 30.0


async def keep_running(name: str, run: Callable[[], Awaitable[str]], stopping: asyncio.Event) -> None:
    """Call `run` until the daemon stops. It runs one child and returns the cause of its exit. The delay doubles each
    time that the child has exited soon after its start."""
    backoff = _FIRST_BACKOFF_SECONDS
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            cause = await run()
        except OSError as error:  # out of processes, descriptors or memory: it may pass
            cause = str(error)
        if stopping.is_set():
            return
        if loop.time() - started > _STEADY_SECONDS:
            backoff = _FIRST_BACKOFF_SECONDS
        log.write("supervisor", f"{name}_ended", cause=cause, restart_after=backoff)
        await asyncio.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
