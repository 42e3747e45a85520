"""The daemon under test: unchanged, or with longer lists if its worker does not start on the card."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tests.gpu import models
from tests.support import recorded
from tests.support.builds import build
from tests.support.daemon import COMMAND, Daemon
from tests.support.generation import generate, images
from tests.support.system import MODEL
from weave.client import NotRunning, WeaveError

AS_IT_IS: tuple[str, ...] = (
    (str(COMMAND),) if COMMAND.exists() else (sys.executable, "-I", "-B", "-m", "weave.supervisor")
)
# One missing call may hide others, which only the next recording finds.
_ROUNDS = 3
# Of the log: why there is no image.
_REASONS = ("sandbox_violation", "worker_ended", "crashed", "gpu_not_used", "job_failed", "worker_violation")

# Of the product's source: its file within weave/, and its name.
Tuple = tuple[str, str]


class Recording(NamedTuple):
    """`summary` is record mode's, verbatim; `failures` are of the models that gave no image even then."""

    summary: str
    failures: dict[str, str]


class Product(NamedTuple):
    """`extended`: the lines that were added to its lists. `failures`: of the first model that gave no image as it is,
    and `left`: with these lines."""

    command: tuple[str, ...]
    extended: str
    failures: dict[str, str]
    left: dict[str, str]

    @property
    def python(self) -> str:
        """The interpreter that imports this build's `weave`."""
        return sys.executable if self.command == AS_IT_IS else self.command[0]


def config(device: str, tables: str = MODEL, *, dtype: str = "auto", more: str = "") -> str:
    """TOML. On the CPU with one thread, as the plain calls: how sums are split between threads shows in the pixels."""
    threads = "threads = 1\n" if device == "cpu" else ""
    return f'[device]\ndevice = "{device}"\ndtype = "{dtype}"\n{threads}{more}{tables}'


def record(device: str, folder: Path, command: tuple[str, ...] = AS_IT_IS) -> Recording:
    daemon = Daemon(config(device, MODEL + models.tables(folder)), options=("--record",), command=command)
    try:
        failures = dict(islice(_failures(daemon.wait_until_serving(), device), 2))  # each may take a minute
    finally:
        daemon.stop()
    return Recording(daemon.output(), failures)


def as_it_is_or_extended(device: str, folder: Path, recording: Callable[[], Recording]) -> Product:
    """`folder` has the models; `recording` makes that of the product as it is, which is needed only where it fails."""
    command, lines = AS_IT_IS, dict[Tuple, list[str]]()
    first = failures = _attempt(command, device, folder)
    for turn in range(_ROUNDS):
        if not failures:
            break
        found = recorded.to_add((recording() if turn == 0 else record(device, folder, command)).summary)
        new = {place: [line for line in more if line not in lines.get(place, ())] for place, more in found.items()}
        if not any(new.values()):
            break
        lines = {place: lines.get(place, []) + new.get(place, []) for place in lines | new}
        command = build(recorded.additions(_text(lines)))
        failures = _attempt(command, device, folder)
    return Product(command, _text(lines), first, failures)


def _text(lines: dict[Tuple, list[str]]) -> str:
    """As record mode says it."""
    places = (f"weave/{file}: at the end of {place}\n" + "\n".join(added) for (file, place), added in lines.items())
    return "To add:\n" + "\n".join(places) + "\n" if lines else ""


def _attempt(command: tuple[str, ...], device: str, folder: Path) -> dict[str, str]:
    daemon = Daemon(config(device, MODEL + models.tables(folder)), command=command).wait_until_serving()
    try:
        return dict(islice(_failures(daemon, device), 1))  # each may cost a zygote
    finally:
        daemon.stop()


def _failures(daemon: Daemon, device: str) -> Iterator[tuple[str, str]]:
    """Which models gave no image on that device, and why."""
    for name in ("shapes", *models.FAMILIES):
        if (failure := _failure(daemon, device, name)) is not None:
            yield name, failure


def _failure(daemon: Daemon, device: str, model: str) -> str | None:
    logged = len(daemon.all_events())
    try:
        with daemon.client() as client:
            made = images(generate(client, model=model, width=64, height=64, preview_every=2))
            found = client.status().device
    except (WeaveError, NotRunning, TimeoutError) as error:
        reasons = [line for line in daemon.all_events()[logged:] if line["event"] in _REASONS]
        return "\n".join([f"{type(error).__name__}: {error}", *map(str, reasons)])
    if not made or found is None or not found.startswith(device):
        return f"{len(made)} images, on {found}"
    return None
