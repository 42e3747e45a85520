"""The audit of what clients were refused. A client that is refused often must not fill the disk: beyond a few lines
its refusals are counted, and the count is written, so that nothing is lost silently."""

import asyncio
from typing import Any

from msgspec import Struct

from weave import log
from weave.protocol.peer import Peer

LINES = 20
_WINDOW_SECONDS = 10.0


class _Window(Struct):
    """From an event's first line to the end of its time."""

    end: asyncio.TimerHandle
    written: int = 0
    suppressed: int = 0


class Audit:
    """At most LINES lines of an event and UID in each window of ten seconds."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, int], _Window] = {}

    def write(self, event: str, peer: Peer, **fields: Any) -> None:
        """A line, or one more to be counted."""
        key = (event, peer.uid)
        window = self._windows.get(key)
        if window is None:
            timer = asyncio.get_running_loop().call_later(_WINDOW_SECONDS, self._close, key)
            window = self._windows[key] = _Window(timer)
        if window.written < LINES:
            window.written += 1
            log.write("broker", event, peer=peer, **fields)
        else:
            window.suppressed += 1

    def close(self) -> None:
        """Write all counts now: the daemon stops."""
        for key in list(self._windows):
            self._close(key)

    def _close(self, key: tuple[str, int]) -> None:
        window = self._windows.pop(key)
        window.end.cancel()
        if window.suppressed:
            event, uid = key
            log.write("broker", "suppressed", of=event, uid=uid, lines=window.suppressed)
