"""The log and the audit log: one JSON object per line.

Only the supervisor writes to their destinations: standard error, which systemd passes to the journal, and the audit
file. Its children's standard error is a pipe to it (weave/supervisor/children/stderr_relay.py).
"""

import os
import select
import time
from typing import Any

from weave.protocol.text import json_line

# The audit's events: who was refused what, who exceeded a limit, which process was killed and why. The broker's lines
# get into the audit only if they are of the first set. The others are the supervisor's.
AUDITED_OF_BROKER = frozenset(
    (
        "client_dropped",
        "connection_refused",
        "frame_refused",
        "generate",
        "job_timed_out",
        "model_loaded",
        "model_unloaded",
        "request_refused",
        "suppressed",
        "worker_violation",
    )
)
AUDITED = AUDITED_OF_BROKER | frozenset(
    (
        "attached",
        "broker_ended",
        "broker_hung",
        "broker_violation",
        "log_lost",
        "recording",
        "reloaded",
        "sandbox_recorded",
        "sandbox_violation",
        "serving",
        "worker_ended",
        "zygote_ended",
        "zygote_replaced",
        "zygote_violation",
    )
)

_LONGEST_EVENT = 64
_LONGEST_TEXT = 2000
# A write of this size to a pipe is atomic, and does not block if poll(2) has reported the pipe as writable: pipe(7).
_LONGEST_LINE = select.PIPE_BUF


class _Sink:
    """A descriptor that lines go to. A reader that stops reading, or a full disk, does not block the daemon: the lines
    are lost and counted, and the count is written when there is room again."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lost = 0
        self._torn = False

    def write(self, line: bytes) -> None:
        if self._lost:
            notice = b'{"time":"%s","process":"log","event":"log_lost","lines":%d}\n' % (_stamp().encode(), self._lost)
            if not self._write_whole(notice):
                self._lost += 1
                return
            self._lost = 0
        if not self._write_whole(line):
            self._lost += 1

    def _write_whole(self, line: bytes) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        if not poll.poll(0):
            return False
        line = b"\n" * self._torn + line
        try:
            written = os.write(self.descriptor, line)
        except OSError:
            return False
        self._torn = written < len(line)
        return not self._torn


_standard_error = _Sink(2)
_audit_file: _Sink | None = None


def write(process: str, event: str, **fields: Any) -> None:
    """One line: time (UTC, ISO 8601), process, event, then the fields."""
    write_fields(process, event, fields)


def write_fields(process: str, event: str, fields: dict[str, Any], *, audited: bool = True) -> None:
    """Like write(), for fields of any name. A line that is not `audited` does not go to the audit, whatever its
    event."""
    line = _line(process, event, fields)
    _standard_error.write(line)
    if audited and _audit_file is not None and event in AUDITED:
        _audit_file.write(line)


def _line(process: str, event: str, fields: dict[str, Any]) -> bytes:
    head = {"time": _stamp(), "process": process, "event": event[:_LONGEST_EVENT]}
    cut = {
        name: value[-_LONGEST_TEXT:].encode(errors="replace").decode() if isinstance(value, str) else value
        for name, value in fields.items()
        if name not in head  # a child must not set its line's time and process
    }
    line = json_line(head | cut) + b"\n"
    if len(line) > _LONGEST_LINE:
        # Encoded once more, as a string: each of its characters takes at most four bytes.
        start = json_line(cut)[: _LONGEST_LINE // 5].decode(errors="ignore")
        line = json_line(head | {"cut": start}) + b"\n"
    return line


def open_audit(folder: int | None, name: str) -> None:
    """Write the audit's lines to `name` in `folder` as well from now on; None: to no file. Raises OSError, and then
    changes nothing."""
    global _audit_file
    opened = None
    if folder is not None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        opened = _Sink(os.open(name, flags, 0o640, dir_fd=folder))
    if _audit_file is not None:
        os.close(_audit_file.descriptor)
    _audit_file = opened


def _stamp() -> str:
    moment = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
