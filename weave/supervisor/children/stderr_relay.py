"""A child's standard error, written to our log line by line. The child has no descriptor of the log, so a compromised
child can neither forge another process's lines nor fill the disk."""

import asyncio
import os
from typing import Any

import msgspec

from weave import log
from weave.protocol.errors import UNDECODABLE
from weave.protocol.waiting import readable

_LONGEST_LINE = 16 * 1024
_READ_BYTES = 64 * 1024
# A child's budget in each window.
_WINDOW_SECONDS = 10.0
_LINES_PER_WINDOW = 500
_BYTES_PER_WINDOW = 1024 * 1024


def stderr_pipe() -> tuple[int, int]:
    """Our end and the child's. Neither blocks: a child that finds the pipe full loses the line and goes on."""
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


async def relay(process: str, descriptor: int, *, audited: bool) -> None:
    """Runs until the child, and every process it forked, has closed its end. A child over its budget is not read until
    the window ends, and its writes fail meanwhile."""
    loop = asyncio.get_running_loop()
    window_end, lines_left, bytes_left, rest = 0.0, 0, 0, b""
    while True:
        await readable(descriptor)
        if loop.time() > window_end:
            window_end = loop.time() + _WINDOW_SECONDS
            lines_left, bytes_left = _LINES_PER_WINDOW, _BYTES_PER_WINDOW
        data = os.read(descriptor, _READ_BYTES)
        bytes_left -= len(data)
        *lines, rest = (rest + data).split(b"\n")
        if not data or len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest[:_LONGEST_LINE]], b""
        lines = [line[:_LONGEST_LINE] for line in lines if line]
        for line in lines[:lines_left]:
            _write(process, line, audited)
        if not data:
            return
        lines_left -= len(lines)
        if lines_left < 0 or bytes_left < 0:
            log.write("supervisor", "log_flooded", of=process, lines=max(-lines_left, 0))
            await asyncio.sleep(window_end - loop.time())


def _write(process: str, line: bytes, audited: bool) -> None:
    """As the child's event if it is one; else as text."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        event = str(fields.pop("event"))
    except (*UNDECODABLE, KeyError):
        fields, event = {"text": line.decode(errors="replace")}, "stderr"
    log.write_fields(process, event, fields, audited=audited and event in log.AUDITED_OF_BROKER)
