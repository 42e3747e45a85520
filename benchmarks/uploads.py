"""What a client's image costs, compared with the same request without one: the real daemon, with a worker that reads
the image and then only copies a ready one."""

import socket
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.transport import CONFIG, SEND_ZEROS
from tests.support.builds import build
from tests.support.daemon import Daemon
from tests.support.seams import replaced
from tests.support.wire import receive_frame, send_2
from weave.protocol.frames import Kind, pack_frame

SIDE, ROUNDS = 1024, 40
PLAIN: dict[str, Any] = {"op": "generate", "model": "shapes", "prompt": "x", "width": 64, "height": 64, "format": "raw"}
WITH_IMAGE = PLAIN | {"image": {"width": SIDE, "height": SIDE}, "strength": 1.0}
MIB = 2**20


def measure(share: float) -> dict[str, float]:
    """`share` is the fraction of the usual rounds."""
    daemon = Daemon(CONFIG, command=build((replaced("gpu_worker/generation.py", "generate", SEND_ZEROS),)))
    daemon.wait_until_serving()
    try:
        with daemon.client() as client:
            client.load_model("shapes")
        return overhead(daemon.socket, share) | throughput(daemon.socket, share)
    finally:
        daemon.stop()


def overhead(path: Path, share: float) -> dict[str, float]:
    """Interleaved, so that the machine's load affects both sides."""
    frame = pack_frame(Kind.IMAGE, 7, bytes(SIDE * SIDE * 3))
    plain: list[float] = []
    uploading: list[float] = []
    with connected(path) as connection:
        for _ in range(max(2, round(ROUNDS * share))):
            for seconds, message, more in ((plain, PLAIN, b""), (uploading, WITH_IMAGE, frame)):
                started = time.perf_counter()
                send_2(connection, message)
                connection.sendall(more)
                wait_for_end(connection)
                seconds.append(time.perf_counter() - started)
    without, with_image = statistics.median(plain), statistics.median(uploading)
    return {
        "round trip without an image, ms": without * 1000,
        f"more with an image of {SIDE}x{SIDE}, ms": (with_image - without) * 1000,
    }


def throughput(path: Path, share: float) -> dict[str, float]:
    """Into the broker alone: the second image never arrives."""
    sides = {"width": 2048, "height": 2048}
    message = PLAIN | {"image": sides, "mask": sides | {"channels": 1}}
    data = pack_frame(Kind.IMAGE, 7, bytes(2048 * 2048 * 3))
    seconds = []
    for _ in range(max(2, round(ROUNDS * share / 2))):
        with connected(path) as connection:
            send_2(connection, message)
            started = time.perf_counter()
            connection.sendall(data)
            send_2(connection, {"op": "cancel", "request": 7}, 8)
            wait_for_end(connection)
            seconds.append(time.perf_counter() - started)
    return {"MiB/s of an upload into the broker": len(data) / MIB / statistics.median(seconds)}


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def wait_for_end(connection: socket.socket) -> None:
    while not (payload := receive_frame(connection)[1]).startswith((b'{"event":"done"', b'{"event":"error"')):
        assert payload
