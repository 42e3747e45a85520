"""The config file of one model, embedding or ControlNet, in conf.d."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from weave.config.ownership import check_open_folder
from weave.config.schema import ConfigError
from weave.models.assets import Source

_LONGEST_ID = 64


class DropIn(NamedTuple):
    """A file that is planned, or exists."""

    path: Path
    text: str


def plan(
    config: Path,
    table: str,
    added_id: str,
    *,
    source: Source,
    family: str,
    title: str,
    scheduler: str | None = None,
    references: bool = False,
) -> DropIn:
    """The drop-in that adds something to `config`, the main file. `table` is models, embeddings or controls. All
    arguments are printable text. `scheduler` is a model's default, if the family's does not fit it; `references`
    says that it takes reference images, unlike others of its family."""
    values = {"path": str(source.path), "family": family, "title": title}
    values |= {"layout": str(source.layout)} if source.layout else {}
    values |= {f"parts.{part}": str(path) for part, path in source.parts.items()}
    values |= {"defaults.scheduler": scheduler} if scheduler else {}
    # JSON's strings of printable characters are TOML's too.
    key = _quoted(added_id) if "." in added_id else added_id
    lines = [f"[{table}.{key}]", *(f"{name} = {_quoted(value)}" for name, value in values.items())]
    lines += ["references = true"] if references else []
    return DropIn(config.parent / "conf.d" / f"{added_id}.toml", "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def free_id(name: str, taken: Container[str]) -> str:
    """A model ID made from a name, with a number where that ID is taken."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:_LONGEST_ID] or "model"
    numbered = (f"{plain[: _LONGEST_ID - 6]}-{number}" for number in range(2, 10**5))
    return next(found for found in itertools.chain([plain], numbered) if found not in taken)


def write(drop_in: DropIn) -> None:
    """Create the file and the folders that it lacks, for their owner alone. Replaces nothing.

    Raises OSError, ConfigError: also if the daemon would refuse the file, because others can write to its folder.
    """
    folder = drop_in.path.parent
    for missing in (above for above in [*reversed(folder.parents), folder] if not above.exists()):
        missing.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_open_folder(folder.resolve(), descriptor)
        _create(drop_in, descriptor)
    finally:
        os.close(descriptor)


def _create(drop_in: DropIn, folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(drop_in.path.name, flags, 0o600, dir_fd=folder)
    except FileExistsError:
        raise ConfigError(f"{drop_in.path} exists, and is not overwritten") from None
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(drop_in.text)
    except OSError:  # a full disk: the daemon would read half a file
        with contextlib.suppress(OSError):
            os.unlink(drop_in.path.name, dir_fd=folder)
        raise
