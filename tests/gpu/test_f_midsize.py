"""f: a model of SDXL's real shape: loading, images compared with the plain call's, previews, cancelling. On the CPU a
tiny one stands in for it, and its figures mean nothing."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import driver, midsize
from tests.gpu.midsize import PROMPT, SCALE, SEED, PlainCalls
from tests.gpu.product import Product, config
from tests.gpu.report import ROOT
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import images, pixels
from tests.support.stages import reach
from weave.client import Answer, Client, WeaveError
from weave.protocol.client_messages import Done, Generate, Image, Progress
from weave.protocol.errors import ErrorCode

# The files have 7 GB; both processes hold the model.
_NEEDED_GIB = {"disk": 10, "RAM": 16, "VRAM": 34}
# Blocks in turn, so that a card that grows warm does so for both; images in each.
_BLOCKS, _IMAGES = 3, 2


@pytest.fixture(scope="module")
def sdxl(device: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-")) / "sdxl"
    if device == "cuda":
        _skip_where_too_small(folder)
    command = [sys.executable, "-m", "tests.gpu.midsize", "make", device, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    yield folder
    shutil.rmtree(folder.parent)


def _skip_where_too_small(folder: Path) -> None:
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    free = {
        "disk": shutil.disk_usage(folder.parent).free / 2**30,
        "RAM": int(available.split()[1]) / 2**20,
        "VRAM": driver.free_mib() / 1024,
    }
    for what, needed in _NEEDED_GIB.items():
        if free[what] < needed:
            pytest.skip(f"{what}: {free[what]:.0f} GiB are free, and a model of SDXL's shape needs {needed}")


@pytest.fixture(scope="module")
def daemon(product: Product, device: str, sdxl: Path) -> Iterator[Daemon]:
    table = f'[models.sdxl]\npath = "{sdxl}"\nfamily = "sdxl"\n'
    tables = config(device, table, dtype=midsize.shape(device).dtype)
    daemon = Daemon(tables, command=product.command).wait_until_serving()
    yield daemon
    daemon.stop()


def request(device: str, **more: Any) -> Generate:
    side, steps, _ = midsize.shape(device)
    given = {"width": side, "height": side, "steps": steps, "seed": SEED, "cfg_scale": SCALE, "scheduler": "euler"}
    wanted: dict[str, Any] = {"prompt": PROMPT, "model": "sdxl", "format": "raw", **given, **more}
    return Generate(**wanted)


def timed(client: Client, device: str, **more: Any) -> tuple[float, list[Answer]]:
    """Seconds from the request to the image, as a client sees it."""
    started = time.monotonic()
    answers = list(client.answers(client.send(request(device, **more))))
    return time.monotonic() - started, answers


def spread(seconds: list[float]) -> dict[str, float]:
    """The 99th percentile of a few is their largest."""
    return {"median": round(statistics.median(seconds), 3), "largest": round(max(seconds), 3), "n": len(seconds)}


class Peak:
    """The most VRAM in use, seen every hundredth of a second to the end of the `with` statement."""

    def __enter__(self) -> "Peak":
        self.mib = driver.used_mib()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.mib = max(self.mib, driver.used_mib())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.seconds(60)
def test_the_model_loads(daemon: Daemon, sdxl: Path, device: str, figures: dict[str, Any]) -> None:
    figures["model"] = "SDXL's shape" if device == "cuda" else "a tiny one: the figures mean nothing"
    figures["size of its files, GiB"] = round(sum(file.stat().st_size for file in sdxl.rglob("*.*")) / 2**30, 2)
    for file in sdxl.rglob("*.safetensors"):
        file.read_bytes()  # into the page cache, as for the plain call
    with daemon.client() as client:
        started = time.monotonic()
        client.load_model("sdxl")
        figures["load_model, seconds"] = round(time.monotonic() - started, 2)
        client.unload()
        _, answers = timed(client, device)
        (timings,) = [answer.event.timings for answer in answers if isinstance(answer.event, Done)]
        assert timings is not None
        figures["start of a worker and loading, seconds"] = round(timings.loading, 2)
        assert client.status().dtype == midsize.shape(device).dtype


@pytest.mark.seconds(20)
def test_the_peak_vram_of_a_job(card: None, daemon: Daemon, device: str, figures: dict[str, Any]) -> None:
    with daemon.client() as client:
        client.unload()
        before = driver.used_mib()
        with Peak() as peak:
            timed(client, device)
    figures |= {"before, MiB": before, "at most, MiB": peak.mib, "of the worker, MiB": peak.mib - before}
    assert peak.mib > before


@pytest.mark.seconds(90)
def test_an_image_equals_the_plain_calls_and_takes_as_long(
    daemon: Daemon, sdxl: Path, device: str, figures: dict[str, Any]
) -> None:
    ours: list[float] = []
    plain: list[float] = []
    with PlainCalls(device, sdxl) as calls, daemon.client() as client:
        figures["plain loading, seconds"] = calls.loading
        calls.seconds(1)
        _, answers = timed(client, device)
        for _ in range(_BLOCKS):
            plain += calls.seconds(_IMAGES)
            ours += [timed(client, device)[0] for _ in range(_IMAGES)]
        expected = calls.pixels()
    (image,) = images(answers)
    side = midsize.shape(device).side
    found = np.frombuffer(image.data, np.uint8).reshape(side, side, 3)
    difference = np.abs(found.astype(int) - expected)
    figures["the daemon's images, seconds"] = spread(ours)
    figures["the plain call's images, seconds"] = spread(plain)
    figures["ratio of the medians"] = round(statistics.median(ours) / statistics.median(plain), 4)
    figures["pixels"] = f"differ by at most {difference.max()}, on average by {difference.mean():.4f}, of 255"
    figures["standard deviation of the pixels"] = round(float(expected.std()), 2)
    assert expected.std() > 0
    assert difference.max() <= 2


@pytest.mark.seconds(25)
def test_the_cost_of_a_preview_each_step(daemon: Daemon, device: str, figures: dict[str, Any]) -> None:
    with daemon.client() as client:
        timed(client, device)
        without = [timed(client, device)[0] for _ in range(_IMAGES)]
        previewed = [timed(client, device, preview_every=1)[0] for _ in range(_IMAGES)]
        _, answers = timed(client, device, preview_every=1, images=1)
    figures["without, seconds"], figures["with, seconds"] = spread(without), spread(previewed)
    figures["ratio of the medians"] = round(statistics.median(previewed) / statistics.median(without), 3)
    previews = [answer for answer in answers if type(answer.event).__name__ == "Preview"]
    assert len(previews) == midsize.shape(device).steps and pixels(previews[-1]).std() > 0


@pytest.mark.seconds(15)
def test_a_cancel_frees_the_card(daemon: Daemon, device: str, figures: dict[str, Any]) -> None:
    with daemon.client() as client, daemon.client() as other:
        client.load_model("sdxl")
        running = client.send(request(device, images=4))
        reach(client, running, Progress)
        waiting = other.send(request(device))
        cancelled = time.monotonic()
        (job,) = [job.job for job in client.status().jobs if job.state == "running"]
        client.cancel(job=job)
        with pytest.raises(WeaveError) as told:
            list(client.answers(running))
        figures["seconds until the client was told"] = round(time.monotonic() - cancelled, 3)
        reach(other, waiting, Progress)
        figures["seconds until the next job's first step was done"] = round(time.monotonic() - cancelled, 3)
        assert told.value.code is ErrorCode.CANCELLED
        assert [answer for answer in other.answers(waiting) if isinstance(answer.event, Image)]
        wait_for(lambda: client.status().worker == "idle")
    if device == "cuda":
        figures["seconds until the driver says it is idle"] = driver.seconds_until(lambda: not driver.busy_percent(), 5)
