"""The cost of attacks for other users: refused connections per second, the latency of `status` with and without a flood
from another user, and the time from each fault to the next image."""

import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.generation import generate
from tests.support.stages import LONG, reach, wait_for_client
from tests.support.system import MODEL, system_daemon
from tests.support.wire import generate_1
from weave.client import Client, NotRunning, WeaveError
from weave.protocol.client_messages import Progress
from weave.protocol.frames import Kind, pack_frame

# Users that exist on every Debian: games floods, root measures.
FLOODER = 5
SYSTEM = """
[system]
allowed_users = ["games"]
allowed_groups = []
socket_group = "root"
socket_mode = "0666"
broker_user = "daemon"
worker_user = "bin"
"""
ROUNDS, REQUESTS, CONNECTIONS = 4, 250, 60
REFUSED_SECONDS = 3
RECOVERY = "seconds to an image,"


def measure(share: float) -> dict[str, float]:
    """`share` is the fraction of the usual rounds. All but the recovery needs root, to become other users."""
    if os.geteuid() != 0:
        return recovery(share)
    return refused_connections(share) | flooded(share) | recovery(share)


def refused_connections(share: float) -> dict[str, float]:
    """As a user who is not allowed, on a socket whose mode lets everyone connect."""
    config = SYSTEM.replace('["games"]', "[]") + MODEL
    with started(system_daemon(Path(tempfile.mkdtemp(prefix="weave-bench-")), config)) as daemon:
        reading, writing = os.pipe()

        def knock() -> None:
            count, end = 0, time.perf_counter() + REFUSED_SECONDS * share
            while time.perf_counter() < end:
                with socket.socket(socket.AF_UNIX) as refused:
                    refused.connect(str(daemon.socket))
                    count += refused.recv(1) == b""
            os.write(writing, str(count / REFUSED_SECONDS / share).encode())

        os.waitpid(as_flooder(knock), 0)
        return {"refused connections per second": float(os.read(reading, 100))}


def connect_repeatedly(path: Path) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))


FLOODS: dict[str, Callable[[Path], None]] = {
    "well-formed requests": lambda path: flood(path, pack_frame(Kind.CONTROL, 7, b'{"op":"status"}')),
    "refused requests": lambda path: flood(path, pack_frame(Kind.CONTROL, 7, b'{"op":"exec"}')),
    "version 1 out of bounds": lambda path: flood(path, generate_1(width=65)),
    "connections": connect_repeatedly,
}


def flood(path: Path, frame: bytes) -> None:
    """On many connections, each as fast as the broker reads. Answers are discarded."""
    connections = []
    for _ in range(CONNECTIONS):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        connection.setblocking(False)
        connections.append(connection)
    while True:
        for connection in connections:
            with suppress(BlockingIOError):
                connection.send(frame * 20)
            with suppress(BlockingIOError):
                while len(connection.recv(1 << 20)) == 1 << 20:
                    pass


def flooded(share: float) -> dict[str, float]:
    """All kinds of flood, and none, alternate."""
    times: dict[str, list[float]] = {name: [] for name in ("none", *FLOODS)}
    system = system_daemon(Path(tempfile.mkdtemp(prefix="weave-bench-")), SYSTEM + MODEL)
    with started(system) as daemon, daemon.client() as client:
        generate(client)  # waits for the import
        for _ in range(max(1, round(ROUNDS * share))):
            times["none"] += status_times(client, share)
            for name, attack in FLOODS.items():
                flooder = as_flooder(partial(attack, daemon.socket))
                time.sleep(0.5)
                times[name] += status_times(client, share)
                os.kill(flooder, signal.SIGKILL)
                os.waitpid(flooder, 0)
                time.sleep(0.2)
    p99 = {name: statistics.quantiles(found, n=100)[98] * 1000 for name, found in times.items()}
    figures = {"status p99 without a flood, ms": p99["none"]}
    for name in FLOODS:
        figures[f"while another user floods with {name}, ms"] = p99[name]
        figures[f"ratio, {name}"] = p99[name] / p99["none"]
    return figures


def status_times(client: Client, share: float) -> list[float]:
    times = []
    for _ in range(max(2, round(REQUESTS * share))):
        started_at = time.perf_counter()
        client.status()
        times.append(time.perf_counter() - started_at)
        time.sleep(0.001)
    return times


FAULTS: dict[str, Callable[[Daemon], None]] = {
    "worker killed": lambda daemon: os.kill(daemon.pid_of("worker"), signal.SIGKILL),
    "zygote killed": lambda daemon: os.kill(daemon.pid_of("gpu_worker"), signal.SIGKILL),
    "broker killed": lambda daemon: os.kill(daemon.pid_of("broker"), signal.SIGKILL),
    "worker stopped (job_seconds is 2)": lambda daemon: os.kill(daemon.pid_of("worker"), signal.SIGSTOP),
    "broker stopped": lambda daemon: os.kill(daemon.pid_of("broker"), signal.SIGSTOP),
    "socket removed": lambda daemon: daemon.socket.unlink(),
}


def recovery(share: float) -> dict[str, float]:
    """The time from a fault, in the middle of a job, to the next finished image of a client that retries."""
    figures = {}
    with started(Daemon("[limits]\njob_seconds = 2.0\n" + MODEL)) as daemon:
        for name, hurt in list(FAULTS.items())[: max(1, round(len(FAULTS) * share))]:
            with wait_for_client(daemon) as client:
                generate(client)
                request = client.send(LONG)
                reach(client, request, Progress)
                started_at = time.perf_counter()
                hurt(daemon)
                if name == "socket removed":
                    client.close()
                else:
                    with suppress(WeaveError, NotRunning):
                        list(client.answers(request))
            with wait_for_client(daemon) as client:
                generate(client)
            figures[f"{RECOVERY} {name}"] = time.perf_counter() - started_at
    return figures


@contextmanager
def started(daemon: Daemon) -> Iterator[Daemon]:
    daemon.wait_until_serving()
    try:
        yield daemon
    finally:
        daemon.stop()


def as_flooder(action: Callable[[], None]) -> int:
    """Run `action` as that user in a child process. Returns its PID."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(FLOODER, FLOODER, FLOODER)
            os.setresuid(FLOODER, FLOODER, FLOODER)
            action()
        finally:
            os._exit(0)
    return pid
