"""Two devices against one: two workers on the CPU with one thread each, as two GPUs would work."""

import statistics
import threading
import time
from typing import Any

from tests.support.daemon import Daemon
from tests.support.generation import generate
from tests.support.system import MODEL

ROUNDS, IMAGES = 8, 4
STEPS: dict[str, Any] = {"steps": 20, "format": "raw"}


def measure(share: float) -> dict[str, float]:
    """Two daemons take turns, so that the machine's load affects both; two clients at a time ask each for images."""
    daemons = {devices: _daemon(devices) for devices in (1, 2)}
    seconds: dict[int, list[float]] = {devices: [] for devices in daemons}
    try:
        for daemon in daemons.values():
            _images(daemon)  # loads the model
        for _ in range(max(1, round(ROUNDS * share))):
            for devices, daemon in daemons.items():
                seconds[devices].append(_images(daemon))
    finally:
        for daemon in daemons.values():
            daemon.stop()
    one, two = (statistics.median(seconds[devices]) for devices in (1, 2))
    return {
        "images a minute, one device": 60 * IMAGES / one,
        "images a minute, two devices": 60 * IMAGES / two,
        "ratio of two devices' images a minute to one's": one / two,
    }


def _daemon(devices: int) -> Daemon:
    names = ", ".join(['"cpu"'] * devices)
    return Daemon(f"[device]\ndevices = [{names}]\nthreads = 1\n{MODEL}").wait_until_serving()


def _images(daemon: Daemon) -> float:
    def work() -> None:
        with daemon.client() as client:
            for _ in range(IMAGES // 2):
                generate(client, **STEPS)

    clients = [threading.Thread(target=work) for _ in range(2)]
    started = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return time.perf_counter() - started
