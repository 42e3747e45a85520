"""The log and the audit log: one JSON object a line.

Only the supervisor writes to where the lines end up: on standard error, which systemd hands to the journal, and
in the audit's file. Its children's standard error is a pipe to it (weave/supervisor/relay.py).
"""

import os
import select
import time
from pathlib import Path
from typing import Any

import msgspec

# What the audit is: who was refused what, who hit a limit, which process was ended and why.
AUDITED = frozenset(
    (
        "access_refused",
        "attached",
        "broker_ended",
        "broker_hung",
        "broker_violation",
        "client_dropped",
        "connection_refused",
        "frame_refused",
        "generate",
        "job_timed_out",
        "log_lost",
        "model_loaded",
        "reloaded",
        "request_refused",
        "sandbox_violation",
        "serving",
        "suppressed",
        "worker_ended",
        "worker_violation",
        "zygote_ended",
        "zygote_violation",
    )
)

_LONGEST_TEXT = 2000
_encoder = msgspec.json.Encoder()


class _Sink:
    """A descriptor that lines go to. A reader that stops reading or a full disk stops nobody: the lines are lost,
    and counted, and the count is written when there is room again."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lost = 0
        self._torn = False

    def write(self, line: bytes) -> None:
        if self._lost:
            told = b'{"time":"%s","process":"log","event":"log_lost","lines":%d}\n' % (_stamp().encode(), self._lost)
            if not self._write_whole(told):
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
    """As write(), for fields of any name; not `audited`: not for the audit, whatever the event says."""
    cut = {name: value[-_LONGEST_TEXT:] if isinstance(value, str) else value for name, value in fields.items()}
    line = _encoder.encode({"time": _stamp(), "process": process, "event": event} | cut) + b"\n"
    _standard_error.write(line)
    if audited and _audit_file is not None and event in AUDITED:
        _audit_file.write(line)


def open_audit(path: Path | None) -> None:
    """Write the audit's lines to `path` too, from now on; None for nowhere. Raises OSError, and nothing changes."""
    global _audit_file
    opened = None
    if path is not None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        opened = _Sink(os.open(path, flags, 0o640))
    if _audit_file is not None:
        os.close(_audit_file.descriptor)
    _audit_file = opened


def _stamp() -> str:
    moment = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
