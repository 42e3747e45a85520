"""A listener in place of weave-compute that sends what a test makes it send."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.wire import exactly
from weave.protocol.frames import Kind, pack_frame, parse_header

# From a request to the events that answer it, and to the bytes of images.
Answers = Callable[[dict[str, Any]], list[dict[str, Any] | bytes]]

STATUS = {
    "event": "status", "version": "1.0", "uptime": 1.0, "mode": "user", "worker": "none", "model": None,
    "device": None, "dtype": None, "memory_used": None, "memory_total": None, "queue_length": 0, "queue_limit": 1,
    "connections": 1, "jobs": [], "sandbox": {}, "worker_restarts": 0, "images_made": 0, "metrics": {},
}  # fmt: skip
RANGE = {"min": 1, "max": 2}
BOUNDS = dict.fromkeys(
    ("width", "height", "steps", "cfg_scale", "images", "pixels", "prompt_bytes", "prompt_characters"), RANGE
)
DEFAULTS = {"width": 1, "height": 1, "steps": 1, "cfg_scale": 1.0, "scheduler": "ddim"}
OFFER = {
    "id": "m", "family": "sd1", "title": "M", "bounds": BOUNDS, "defaults": DEFAULTS, "schedulers": ["ddim"]
}  # fmt: skip


def models(**changed: Any) -> dict[str, Any]:
    return {"event": "models", "models": [OFFER | changed], "default": None, "loaded": None}


class FakeDaemon:
    """Answers each request by `answers`. Without them it accepts no connection."""

    def __init__(self, path: Path, answers: Answers | None = None, *, backlog: int = 16) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.received: list[bytes] = []  # payloads of image frames
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        if answers is not None:
            threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "FakeDaemon":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(AssertionError, OSError):
                    while True:
                        self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        assert self._answers is not None
        header = parse_header(exactly(connection, 16), from_client=True)
        payload = exactly(connection, header.length)
        if header.kind == Kind.IMAGE:
            self.received.append(payload)
            return
        request = json.loads(payload)
        self.asked.append(request)
        for event in self._answers(request):
            if isinstance(event, bytes):
                connection.sendall(pack_frame(Kind.IMAGE, header.request, event))
            else:
                connection.sendall(pack_frame(Kind.CONTROL, header.request, json.dumps(event).encode()))
