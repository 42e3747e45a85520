"""Pins: the SHA-256 digests that files must have, when they are checked and while they are read."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from weave.models.files import ModelFilesRefused, find_file

_State: TypeAlias = list[tuple[int, ...]]


@contextlib.contextmanager
def pinned(folder: Path, pins: Mapping[str, str]) -> Iterator[None]:
    """Libraries open files by name. What they read in this context has the digests in `pins`, by paths in `folder`.

    A file that was exchanged and put back, or written to and given its old times, has another time of change (ctime),
    which only the kernel sets; so has a link, and each folder on the way. Raises ModelFilesRefused.
    """
    states = {}
    for name, expected in pins.items():
        states[name] = _state(folder, name)
        found = _digest(folder, name)
        if found != expected:
            raise ModelFilesRefused(f"{name}: sha256 is {found}, expected {expected}")
    yield
    for name, state in states.items():
        if _state(folder, name) != state:
            raise ModelFilesRefused(f"{name}: pinned by sha256, but it or its folder changed while it was read")


def pin_of(file: Path, digest: str | None) -> dict[str, str]:
    """For a file that is its model's only one, or a LoRA's: none without a digest."""
    return {} if digest is None else {file.name: digest}


def check_pins(folder: Path, pins: Mapping[str, str]) -> None:
    """As pinned(), without anything to read. Raises ModelFilesRefused."""
    with pinned(folder, pins):
        pass


def _digest(folder: Path, name: str) -> str:
    try:
        with open(find_file(folder, name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFilesRefused(f"{name}: pinned by sha256, but {error.strerror}") from None


def _state(folder: Path, name: str) -> _State:
    """Of the file, or link, and the folders above it; and of the file that it leads to, and its folder."""
    path = find_file(folder, name)
    target = Path(os.path.realpath(path))
    above = list(path.parents)[: len(path.relative_to(folder).parts)]
    try:
        found = [os.lstat(place) for place in (path, *above, target, target.parent)]
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    return [(it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns) for it in found]
