"""make bench: prints a table, and writes figures.json and figures.png to bench-results.

    python -m benchmarks.run [--seconds N]

Seconds depend on the machine and its load. Compare the ratios: their two sides are measured alternately.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import devices, hostility, large_model, transport, uploads
from tests.support.daemon import COMMAND, DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate
from tests.support.processes import all_ended, reset_signals, start, temporary_folders
from tests.support.wire import generate_1, receive_1
from weave.client import Client

ROUNDS, ASKED, ATTACHED = 15, 500, 5
# The duration of all rounds, on two cores.
USUAL_SECONDS = 175
STEPS: dict[str, Any] = {"steps": 20, "format": "raw"}


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Run all benchmarks.")
    options.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="approximate duration, by fewer rounds; writes to bench-results/short",
    )
    seconds = options.parse_args().seconds
    reset_signals()
    with temporary_folders(), all_ended():
        figures = measure(1 if seconds is None else min(1, seconds / USUAL_SECONDS))
    report(figures, Path("bench-results") if seconds is None else Path("bench-results/short"))


def measure(share: float) -> dict[str, Any]:
    """`share` is the fraction of the usual rounds."""
    figures: dict[str, Any] = {}
    daemon = Daemon().wait_until_serving()
    try:
        with daemon.client() as client:
            figures |= {"MiB before the first image": memory(daemon)}
            generate(client, **STEPS)
            figures |= against_plain(client, share)
            figures |= batches(client, share)
            figures |= status_during_a_job(daemon, client, share)
            figures |= {"MiB with the model loaded": memory(daemon)}
            client.unload()
            figures |= {"MiB after unload": memory(daemon)}
    finally:
        daemon.stop()
    figures |= cold_start()
    figures |= attached(share)
    figures |= transport.measure(share)
    figures |= uploads.measure(share)
    figures |= hostility.measure(share)
    figures |= large_model.measure(share)
    figures |= devices.measure(share)
    for fault, value in list(figures.items()):
        if fault.startswith(hostility.RECOVERY):
            figures[f"ratio to a cold start,{fault.removeprefix(hostility.RECOVERY)}"] = value / figures["to an image"]
    return figures


def against_plain(client: Client, share: float) -> dict[str, float]:
    """Interleaved, so that the machine's load affects both sides."""
    command = [sys.executable, "-m", "benchmarks.plain", str(DEMO_MODEL)]
    ours, theirs = [], []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as plain:
        assert plain.stdin and plain.stdout

        def plain_seconds() -> float:
            assert plain.stdin and plain.stdout
            plain.stdin.write("\n")
            plain.stdin.flush()
            return float(plain.stdout.readline())

        plain_seconds()
        for _ in range(max(1, round(ROUNDS * share))):
            theirs.append(plain_seconds())
            started = time.perf_counter()
            generate(client, **STEPS)
            ours.append(time.perf_counter() - started)
        plain.stdin.close()
    through, direct = statistics.median(ours), statistics.median(theirs)
    return {
        "seconds through the daemon (median)": through,
        "seconds in a plain process (median)": direct,
        "ratio": through / direct,
        "overhead of an image, ms": (through - direct) * 1000,
    }


def batches(client: Client, share: float) -> dict[str, float]:
    """Four images in one pass and one by one, interleaved."""
    single: list[float] = []
    together: list[float] = []
    for _ in range(max(1, round(ROUNDS * share / 3))):
        for seconds, batch in ((single, 1), (together, 4)):
            started = time.perf_counter()
            generate(client, **STEPS, images=4, batch=batch)
            seconds.append(time.perf_counter() - started)
    ratio = statistics.median(together) / statistics.median(single)
    return {"ratio of four images in one pass to one by one": ratio}


def status_during_a_job(daemon: Daemon, client: Client, share: float) -> dict[str, float]:
    done = threading.Event()

    def work() -> None:
        with daemon.client() as other:
            while not done.is_set():
                generate(other, **STEPS)

    worker = threading.Thread(target=work)
    worker.start()
    times = []
    for _ in range(max(2, round(ASKED * share))):
        started = time.perf_counter()
        client.status()
        times.append((time.perf_counter() - started) * 1000)
        time.sleep(0.002)
    done.set()
    worker.join()
    return {"status during a job, p50 ms": statistics.median(times), "p99 ms": statistics.quantiles(times, n=100)[98]}


def cold_start() -> dict[str, float]:
    started = time.perf_counter()
    daemon = Daemon()
    try:
        wait_for(lambda: daemon.client().status())
        serving = time.perf_counter() - started
        with daemon.client() as client:
            generate(client, **STEPS)
        return {"seconds from cold start to status": serving, "to an image": time.perf_counter() - started}
    finally:
        daemon.stop()


def attached(share: float) -> dict[str, float]:
    """As seen by a UI that owns the socket: from the start of the command, and from the end of the connection."""
    connects, ends = [], []
    for _ in range(max(1, round(ATTACHED * share))):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{folder}/ui.sock")
            listening.listen()
            started = time.perf_counter()
            command = (COMMAND, "--socket-path", f"{folder}/ui.sock")
            with start(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
                connection, _ = listening.accept()
                connects.append(time.perf_counter() - started)
                connection.sendall(generate_1(steps=1))
                receive_1(connection)
                connection.sendall(generate_1(steps=100))
                time.sleep(0.2)
                started = time.perf_counter()
                connection.close()
                daemon.wait()
                ends.append(time.perf_counter() - started)
    return {"seconds until attached": max(connects), "seconds from disconnect to exit, in a job": max(ends)}


def memory(daemon: Daemon) -> dict[str, float]:
    """Resident memory (RSS), and the part that only the process uses (USS), which its exit would free."""
    found = {**daemon.processes(), daemon.process.pid: "supervisor"}
    infos = {role: psutil.Process(pid).memory_full_info() for pid, role in found.items()}
    return {
        f"{role} {kind}": round(getattr(i, kind) / 2**20, 1) for role, i in infos.items() for kind in ("rss", "uss")
    }


def report(figures: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(figures, indent=2))
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console(width=140).print(table)
    plot(figures, folder)


def plot(figures: dict[str, Any], folder: Path) -> None:
    from matplotlib import pyplot

    names = [name for name in figures if name.startswith("seconds") or name == "to an image"]
    _, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    axes.barh(names[::-1], [figures[name] for name in names[::-1]])
    axes.set_xlabel("seconds")
    pyplot.savefig(folder / "figures.png")


if __name__ == "__main__":
    main()
