"""A model of SDXL's real shape (random weights, float16, 7 GB in the page cache): how long it takes to load, in how
much memory, through the daemon and with from_pretrained in a plain process; and how long to merge a LoRA into it.
Memory of mapped files is not counted: on the CPU from_pretrained leaves the weights there, and the worker copies them.

    python -m benchmarks.large_model make FOLDER      writes the model
    python -m benchmarks.large_model load FOLDER      the plain process: prints seconds, then waits for its input's end
    python -m benchmarks.large_model merge FOLDER     prints seconds of merging, of putting back, and the weights' MiB
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from tests.gpu import midsize
from tests.support.daemon import Daemon, wait_for
from tests.support.reference import Reference, write_index
from weave.config.child_configs import WorkerLora, WorkerModel
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.loras import merged
from weave.gpu_worker.placement import Placement
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.protocol.client_messages import ModelOffer
from weave.protocol.loras import LoraOffer, RequestedLora

ROUNDS = 3
# In GiB: the files, which also have to stay in the page cache, and what from_pretrained needs besides.
_DISK, _RAM = 8, 20
_RANK = 16  # of the LoRA
_CONFIG = """
[device]
device = "cpu"
dtype = "float16"

[models.sdxl]
path = "{}"
family = "sdxl"
"""


def measure(share: float) -> dict[str, float | str]:
    """`share` is the fraction of the usual rounds. Below a half, or without the room, a tiny model stands in."""
    with tempfile.TemporaryDirectory(prefix="weave-bench-") as temporary:
        folder = Path(temporary) / "sdxl"
        large = share >= 0.5 and has_room(folder.parent)
        if large:
            # A separate process: torch keeps memory that it has freed.
            subprocess.run(_command("make", folder), check=True)
        else:
            midsize.make("cpu", folder)
        files = list(folder.rglob("*.safetensors"))
        size = sum(file.stat().st_size for file in files) / 2**20
        for file in files:
            file.read_bytes()  # into the page cache
        merging, putting_back, changed = _read_line("merge", folder)
        rounds = [(*through_daemon(folder), *plain(folder)) for _ in range(ROUNDS if large else 1)]
    ours, our_peak, theirs, their_peak = map(statistics.median, zip(*rounds, strict=True))
    return {
        "large model, MiB of weights": size if large else f"{size:.0f}: a tiny one; the figures mean nothing",
        "large model, loading, seconds through the daemon (median)": ours,
        "large model, loading, seconds of from_pretrained (median)": theirs,
        "large model, loading, ratio": ours / theirs,
        "large model, private memory of the worker, of the size": our_peak / size,
        "large model, private memory with from_pretrained, of the size": their_peak / size,
        "large model, MiB of weights that a LoRA changes": changed,
        "large model, seconds to merge it": merging,
        "large model, seconds to put the weights back": putting_back,
    }


def has_room(folder: Path) -> bool:
    return shutil.disk_usage(folder).free > _DISK << 30 and psutil.virtual_memory().available > _RAM << 30


def through_daemon(folder: Path) -> tuple[float, float]:
    """Seconds, and the worker's peak of MiB. load_model starts the worker too, but the imports are done before."""
    daemon = Daemon(_CONFIG.format(folder)).wait_until_serving()
    try:
        with daemon.client() as client:
            wait_for(lambda: daemon.events("imported"))
            started = time.perf_counter()
            peak = Peak(lambda: [pid for pid, role in daemon.processes().items() if role == "worker"])
            with peak:
                client.load_model("sdxl")
            return time.perf_counter() - started, peak.mib
    finally:
        daemon.stop()


def plain(folder: Path) -> tuple[float, float]:
    """Seconds, and the process's peak of MiB. Its imports are done before."""
    with subprocess.Popen(
        _command("load", folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        with Peak(lambda: [process.pid]) as peak:
            seconds = float(process.stdout.readline())
        process.stdin.close()
    return seconds, peak.mib


class Peak:
    """The most private memory (RssAnon, proc_pid_status(5)) of these processes together, to the end of the `with`
    statement, seen every hundredth of a second."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self.mib = 0.0
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                self.mib = max(self.mib, sum(map(_private_mib, self._processes())))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) / 1024


def _command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "benchmarks.large_model", *arguments]


def make(folder: Path) -> None:
    midsize.make_sdxl(folder, "cpu")
    write_index("sdxl", folder)


def _read_line(name: str, folder: Path) -> list[float]:
    printed = subprocess.run(_command(name, folder), check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(word) for word in printed.split()]


def merge(folder: Path) -> None:
    """A LoRA for all the attention and feed-forward layers of the UNet, as kohya's scripts make them."""
    pipeline = load_pipeline("sdxl", Source(folder), torch.device("cpu"), torch.float16)
    weights = {
        name: layer.weight
        for name, layer in pipeline.unet.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".attentions." in f".{name}"
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": torch.randn(_RANK, columns, dtype=torch.float16)}
        tensors |= {f"{key}.lora_up.weight": torch.randn(rows, _RANK, dtype=torch.float16)}
    save_file(tensors, folder / "lora.safetensors")
    known = FAMILIES["sdxl"]
    file = WorkerLora(
        offer=LoraOffer(id="style", family="sdxl", title="", max_weight=1.0),
        path=str(folder / "lora.safetensors"),
        sha256=None,
    )
    offer = ModelOffer(
        id="sdxl", family="sdxl", title="", bounds=known.bounds, defaults=known.defaults, schedulers=known.schedulers
    )
    model = WorkerModel(offer=offer, path=str(folder), layout=None, parts={}, sha256={}, loras=(file,))
    for _ in range(2):  # the first time, allocations take longer
        started = time.perf_counter()
        with merged(pipeline, model, (RequestedLora("style", 1.0),), Placement(pipeline.device)):
            merging = time.perf_counter() - started
            started = time.perf_counter()
        putting_back = time.perf_counter() - started
    changed = sum(weight.nbytes for weight in weights.values()) / 2**20
    print(merging, putting_back, changed)


def load(folder: Path) -> None:
    torch.set_num_threads(1)  # as the daemon
    started = time.perf_counter()
    Reference("sdxl", folder, "float16")
    print(time.perf_counter() - started, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    {"make": make, "load": load, "merge": merge}[sys.argv[1]](Path(sys.argv[2]))
