"""The log and the audit log: one JSON object a line on standard error, which systemd hands to the journal.

An audit line tells of a refusal, a limit hit or a process ended; it never holds a prompt.
"""

import os
import time
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()
_STANDARD_ERROR = 2


def write(process: str, event: str, **fields: Any) -> None:
    """One line: time (UTC, ISO 8601), process, event, then the fields."""
    moment = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
    line = _encoder.encode({"time": stamp, "process": process, "event": event, **fields}) + b"\n"
    try:
        os.write(_STANDARD_ERROR, line)
    except OSError:  # a full disk or a closed terminal must not stop the daemon
        return
