"""What record mode finds, and the line that adds it to the worker's lists (docs/operations.md)."""

import os
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from weave.sandbox.seccomp import INT, WHOLE, Call, Condition, Refusal, Violation
from weave.supervisor.record_mode.opened_files import Opened

_CALLS, _FILES = "weave/sandbox/worker_calls.py", "weave/sandbox/worker_files.py"


class Addition(NamedTuple):
    """`line` belongs at the end of the tuple `place` in `file`."""

    file: str
    place: str
    line: str


class CallFound(NamedTuple):
    """A system call, with the values of the arguments that the list has conditions on. `listed`: the list allows it."""

    listed: bool
    call: str
    conditions: tuple[Condition, ...] = ()

    def text(self) -> str:
        """For the summary."""
        if self.call == "ioctl":
            return f"ioctl {self._request:#x} (type {_type(self._request)})"
        return " ".join([self.call, *(f"{argument}={value:#x}" for argument, value, _ in self.conditions)])

    def fields(self) -> dict[str, Any]:
        """For the log."""
        if self.call == "ioctl":
            return {"call": self.call, "request": hex(self._request), "type": _type(self._request)}
        return {"call": self.call}

    def addition(self) -> Addition | None:
        """To the list for a worker with a GPU, which record mode compares calls with."""
        conditions = [
            f"Condition({argument}, {value:#x}{', WHOLE' if mask == WHOLE else ''})"
            for argument, value, mask in self.conditions
        ]
        parts = [f'"{self.call}"', '"..."']
        if conditions:
            parts.append(f"({', '.join(conditions)}{',' if len(conditions) == 1 else ''})")
        return Addition(_CALLS, "_GPU", f"Call({', '.join(parts)}),")

    @property
    def _request(self) -> int:
        return self.conditions[0].value


class FileFound(NamedTuple):
    """A file or folder that Landlock would refuse to open for this access. `entry` belongs in the tuple `place`; None
    if no tuple is for such a file."""

    access: str
    name: str
    place: str | None
    entry: str
    listed: bool = False

    def text(self) -> str:
        """For the summary."""
        return f"{self.access} {_quoted(self.name)}"

    def fields(self) -> dict[str, Any]:
        """For the log."""
        return {self.access: self.name}

    def addition(self) -> Addition | None:
        """To worker_files.py."""
        return None if self.place is None else Addition(_FILES, self.place, f"{self.entry},")


class Uncategorized(NamedTuple):
    """Findings that are counted together, without details."""

    words: str
    listed: bool = False

    def text(self) -> str:
        """For the summary."""
        return self.words

    def fields(self) -> dict[str, Any]:
        """For the log."""
        return {"call": self.words}

    def addition(self) -> Addition | None:
        """None: there are no details to add."""
        return None


Finding: TypeAlias = CallFound | FileFound | Uncategorized


def call_found(violation: Violation, calls: Iterable[Call | Refusal], *, listed: bool) -> CallFound:
    """With the arguments that distinguish it from other calls of its name: those that `calls` has conditions on. An
    address is left out: it differs in each run."""
    looked_at: dict[int, list[Condition]] = {}
    for call in calls:
        if call.name == violation.call:
            for condition in call.conditions:
                looked_at.setdefault(condition.argument, []).append(condition)
    conditions = []
    for argument, known in sorted(looked_at.items()):
        value = violation.arguments[argument]
        if all(condition.mask <= INT for condition in known):
            conditions.append(Condition(argument, value & INT))
        elif value in [condition.value for condition in known]:
            conditions.append(Condition(argument, value, WHOLE))
    return CallFound(listed, violation.call, tuple(conditions))


def file_found(opened: Opened, worker: int) -> FileFound:
    """Under the name that the worker used, if that name means the same in another process: a link to a library stays
    valid when the library's version changes. Raises FileNotFoundError."""
    access, own = "write" if opened.writes else "read", f"/proc/{worker}/"
    if opened.path.startswith(own):
        name = opened.path.removeprefix(own)
        name = "task" if name.startswith("task/") else name  # threads of another run have other TIDs
        return FileFound(access, f"/proc/self/{name}", None if opened.writes else "OWN", _quoted(name))
    plain = os.path.normpath(opened.name) == opened.name and opened.name.startswith("/")
    name = opened.name if plain and not opened.name.startswith(("/proc/", "/dev/fd/")) else opened.path
    return FileFound(access, name, _place(opened), f"Path({_quoted(name)})")


def _place(opened: Opened) -> str | None:
    mode = os.stat(opened.path).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "DEVICES"
    _, first, *more = opened.path.split("/")
    of_a_process = first == "proc" and more and more[0].isdecimal()
    # A worker writes to devices only. A file at the root belongs to no driver.
    if opened.writes or of_a_process or not more:
        return None
    return "READ"


def _quoted(text: str) -> str:
    """As a Python literal, in ASCII."""
    return '"' + ascii(text)[1:-1].replace('"', '\\"') + '"'


def _type(request: int) -> str:
    """The type in an ioctl request (linux/ioctl.h), which is a letter for most drivers; its number if not: UVM's is
    0."""
    letter = chr(request >> 8 & 0xFF)
    return letter if letter.isascii() and letter.isprintable() else hex(ord(letter))
