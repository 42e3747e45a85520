"""The daemon that is tested: as it is, or with longer lists where its worker does not come up on the card."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.gpu import models
from tests.support.builds import Changes, build
from tests.support.daemon import COMMAND, Daemon
from tests.support.pictures import draw, images
from tests.support.system import MODEL
from weave.client import NotRunning, WeaveError

AS_IT_IS = (str(COMMAND),) if COMMAND.exists() else (sys.executable, "-I", "-B", "-m", "weave.supervisor")
# A call that is missing may hide others, which only the next recording finds.
_ROUNDS = 3
# Of the log: why there is no image.
_REASONS = ("sandbox_violation", "worker_ended", "crashed", "gpu_not_used", "job_failed", "worker_violation")
# Where the lines that record mode prints belong.
_SECTION = re.compile(r"^(weave/sandbox/worker_(?:calls|files)\.py):$")
_STARTS = {
    "weave/sandbox/worker_calls.py": "_COMMON: tuple[Call | Refusal, ...] = (\n",
    "weave/sandbox/worker_files.py": "READ = (\n",
}


class Recording(NamedTuple):
    """`summary` is record mode's, verbatim; `failures` are of the models that gave no image even then."""

    summary: str
    failures: dict[str, str]


class Product(NamedTuple):
    """`extended`: the lines that were added to its lists; `failure`: why it gave no image as it is."""

    command: tuple[str, ...]
    extended: str = ""
    failure: str = ""

    @property
    def python(self) -> str:
        """The interpreter that imports this build's `weave`."""
        return sys.executable if self.command == AS_IT_IS else self.command[0]


def config(device: str, tables: str = MODEL, *, dtype: str = "auto", more: str = "") -> str:
    """TOML. On the CPU with one thread, as the plain calls: how sums are split between threads shows in the pixels."""
    threads = "threads = 1\n" if device == "cpu" else ""
    return f'[device]\ndevice = "{device}"\ndtype = "{dtype}"\n{threads}{more}{tables}'


def record(device: str, folder: Path, command: tuple[str, ...] = AS_IT_IS) -> Recording:
    """Record mode, with a job of each model."""
    tables = MODEL + models.tables(models.make(folder))
    daemon = Daemon(config(device, tables), options=("--record",), command=command).wait_until_serving()
    failures = {}
    for name in ("shapes", *models.FAMILIES):
        if (failure := _failure(daemon, device, model=name, width=64, height=64, preview_every=2)) is not None:
            failures[name] = failure
    daemon.stop()
    return Recording(daemon.output(), failures)


def as_it_is_or_extended(device: str, recording: Callable[[], Recording]) -> Product:
    """`recording` makes that of the product as it is, which is needed only where it fails."""
    command, lines, failure = AS_IT_IS, dict.fromkeys(_STARTS, ""), _attempt(AS_IT_IS, device)
    first = failure
    for turn in range(_ROUNDS):
        if failure is None:
            break
        found = recording() if turn == 0 else record(device, Path(build({})[0]).parents[1] / "models", command)
        more = additions(found.summary)
        if all(more[name] in lines[name] for name in lines):
            break
        lines = {name: lines[name] + more[name] for name in lines}
        command = build(changes(lines))
        failure = _attempt(command, device)
    told = "".join(f"{name}:\n{text}" for name, text in lines.items() if text)
    return Product(command, told, "\n".join(filter(None, (first, f"and then: {failure}" if failure else ""))))


def additions(summary: str) -> dict[str, str]:
    """By file, the lines that record mode says to add."""
    found, section = dict.fromkeys(_STARTS, ""), None
    for line in summary.partition("To add:")[2].splitlines():
        if heading := _SECTION.match(line.strip()):
            section = heading[1]
        elif section is not None and line.strip():
            found[section] += line.rstrip() + "\n"
    return found


def changes(lines: dict[str, str]) -> Changes:
    """Of the product's source, for a build with these lines."""
    return {
        name.removeprefix("weave/"): [(_STARTS[name], _STARTS[name] + text)] for name, text in lines.items() if text
    }


def _attempt(command: tuple[str, ...], device: str) -> str | None:
    daemon = Daemon(config(device), command=command).wait_until_serving()
    try:
        return _failure(daemon, device, model="shapes")
    finally:
        daemon.stop()


def _failure(daemon: Daemon, device: str, **parameters: object) -> str | None:
    """Why it gave no image on that device; None where it did."""
    try:
        with daemon.client() as client:
            made = images(draw(client, **parameters))
            found = client.status().device
    except (WeaveError, NotRunning, TimeoutError) as error:
        reasons = [line for line in daemon.all_events() if line["event"] in _REASONS]
        return "\n".join([f"{type(error).__name__}: {error}", *map(str, reasons[-6:])])
    if not made or found is None or not found.startswith(device):
        return f"{len(made)} images, on {found}"
    return None
