"""A child's standard error, line by line into our log. The child has no descriptor of the log itself, so a child
that was taken over can neither forge another process's lines nor fill the disk."""

import asyncio
import os
from typing import Any

import msgspec

from weave import log
from weave.protocol.errors import UNDECODABLE
from weave.protocol.waiting import readable

_LONGEST_LINE = 16 * 1024
_READ_BYTES = 64 * 1024
_LINES = 500
_BYTES = 1024 * 1024
_WINDOW_SECONDS = 10.0


def stderr_pipe() -> tuple[int, int]:
    """Our end and the child's. Neither blocks: a child that finds it full loses lines, not time."""
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


async def relay(process: str, descriptor: int, *, audited: bool) -> None:
    """Until the child, and whatever it forked, has closed its end. Takes _LINES lines or _BYTES bytes in
    _WINDOW_SECONDS; then reads no more until the window's end, while the child's writing fails."""
    loop = asyncio.get_running_loop()
    window_end, left, room, rest = 0.0, 0, 0, b""
    while True:
        await readable(descriptor)
        if loop.time() > window_end:
            window_end, left, room = loop.time() + _WINDOW_SECONDS, _LINES, _BYTES
        data = os.read(descriptor, _READ_BYTES)
        room -= len(data)
        *lines, rest = (rest + data).split(b"\n")
        if not data or len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest[:_LONGEST_LINE]], b""
        lines = [line[:_LONGEST_LINE] for line in lines if line]
        for line in lines[:left]:
            _write(process, line, audited)
        if not data:
            return
        left -= len(lines)
        if left < 0 or room < 0:
            log.write("supervisor", "log_flooded", of=process, lines=max(-left, 0))
            await asyncio.sleep(window_end - loop.time())


def _write(process: str, line: bytes, audited: bool) -> None:
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        event = str(fields.pop("event"))
    except (*UNDECODABLE, KeyError):
        fields, event = {"text": line.decode(errors="replace")}, "stderr"
    log.write_fields(process, event, fields, audited=audited and event in log.AUDITED_OF_BROKER)
