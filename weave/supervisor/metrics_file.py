"""The broker's metrics in a file for node_exporter's textfile collector, so that the daemon needs no port
(https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import contextlib
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from msgspec import structs

from weave.config.ownership import open_own_folder
from weave.protocol.control_messages import Alive
from weave.protocol.errors import ErrorCode
from weave.protocol.metrics import BUCKETS, Histogram


def write_metrics(path: Path, alive: Alive) -> None:
    """Replace the file atomically, by a temporary file that the collector ignores. Raises OSError, ConfigError."""
    part = f".{path.name}.part"
    folder = open_own_folder(path.parent)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(descriptor, "w") as file:
            file.writelines(f"{line}\n" for line in _lines(alive))
            os.fchmod(descriptor, 0o644)  # the collector runs as another user
        os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _lines(alive: Alive) -> Iterator[str]:
    yield from _gauge("connections", alive.connections)
    yield from _gauge("queue_length", alive.queue_length)
    yield from _gauge("devices_failed", alive.devices_failed)
    for name, value in structs.asdict(alive.metrics).items():
        if isinstance(value, Histogram):
            yield from _histogram(name, value)
        elif isinstance(value, dict):
            yield f"# TYPE weave_{name}_total counter"
            yield from (f'weave_{name}_total{{code="{code}"}} {value[code]}' for code in ErrorCode if code in value)
        else:
            yield f"# TYPE weave_{name}_total counter"
            yield f"weave_{name}_total {value}"


def _gauge(name: str, value: int) -> Iterator[str]:
    yield f"# TYPE weave_{name} gauge"
    yield f"weave_{name} {value}"


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    yield f"# TYPE weave_{name} histogram"
    bounds = (*map(repr, BUCKETS), "+Inf")
    for bound, below in zip(bounds, accumulate(histogram.counts), strict=True):
        yield f'weave_{name}_bucket{{le="{bound}"}} {below}'
    yield f"weave_{name}_sum {histogram.sum!r}"
    yield f"weave_{name}_count {sum(histogram.counts)}"
