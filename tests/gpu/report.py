"""The report of one visit to a machine: what it is, what each test found. Written again after each test, so that it has
all that is known even where the visit ends in the middle."""

import getpass
import json
import os
import re
import socket
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from msgspec import Struct, field, to_builtins

ROOT = Path(__file__).resolve().parents[2]
_LONGEST_REASON = 3000


class Step(Struct, kw_only=True):
    """One test. `letter` is of its part of the visit, a to g; `seconds` include its fixtures."""

    letter: str
    name: str
    outcome: str = "not run"
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Report:
    """`folder` gets report.json and report.txt."""

    def __init__(self, folder: Path, *, rehearsal: bool) -> None:
        self.folder = folder
        self.rehearsal = rehearsal
        self.machine: dict[str, Any] = {}
        self.notes: list[str] = []
        self.steps: dict[str, Step] = {}
        self._started = time.monotonic()

    def plan(self, identity: str) -> None:
        """`identity` is pytest's: tests/gpu/test_b_daemon.py::test_it_works[x]."""
        file, _, name = identity.partition("::")
        found = re.match(r"test_([a-z])_", Path(file).name)
        self.steps[identity] = Step(
            letter=found[1] if found else "?", name=name.removeprefix("test_").replace("_", " ")
        )

    def note(self, text: str) -> None:
        """For the top of the page."""
        self.notes.append(clean(text))
        self.write()

    def write(self) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        whole = {
            "rehearsal": self.rehearsal,
            "seconds": seconds,
            "notes": self.notes,
            "machine": self.machine,
            "steps": [to_builtins(step, enc_hook=str) for step in self.steps.values()],
        }
        text = json.dumps(_cleaned(whole), indent=1, default=str)
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "report.json", text + "\n")
        _replace(self.folder / "report.txt", self._page(seconds))

    def _page(self, seconds: float) -> str:
        counts: dict[str, int] = {}
        for step in self.steps.values():
            counts[step.outcome] = counts.get(step.outcome, 0) + 1
        lines = [
            "weave-compute: tests on a GPU" + (", REHEARSED WITHOUT ONE" if self.rehearsal else ""),
            ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f"; {seconds} s",
            *self.notes,
            "",
            *_lines("The machine", self.machine),
        ]
        for step in self.steps.values():
            lines += ["", f"{step.letter}  {step.outcome.upper():<8} {step.seconds:6.1f} s  {step.name}"]
            lines += textwrap.indent(step.reason, "     ").splitlines()
            lines += [f"     {line}" for line in _lines("", step.figures)]
        return clean("\n".join(lines) + "\n")


def _lines(title: str, figures: dict[str, Any]) -> list[str]:
    lines = [title] if title else []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {line}" for line in _lines("", value))]
        elif isinstance(value, str) and "\n" in value:
            lines += [f"{name}:", *(f"  {line}" for line in value.splitlines())]
        else:
            lines.append(f"{name}: {value}")
    return lines


def shortened(text: str) -> str:
    """The end of an error message, which has the reason."""
    return text if len(text) <= _LONGEST_REASON else f"[...]{text[-_LONGEST_REASON:]}"


def clean(text: str) -> str:
    """Removes names of the machine and its user, since people send this page."""
    # Longest first: one path may be below another.
    places = {str(ROOT): "CHECKOUT", sys.prefix: "PREFIX", str(Path.home()): "HOME", tempfile.gettempdir(): "TMP"}
    for place in sorted(places, key=len, reverse=True):
        if place not in ("/", "/tmp", "/usr", "/usr/local"):
            text = text.replace(place, places[place])
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a UID without a name
        user = "root"
    for name, stands in ((socket.gethostname(), "HOST"), (user, "USER")):
        if name not in ("root", "localhost", ""):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stands, text)
    return text


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text)
    os.replace(new, path)
