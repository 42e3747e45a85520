"""The target `config`: a config file, and a file in conf.d that is merged into it."""

import atexit
import os
import pwd  # noqa: F401 (expanduser imports it at its first ~, which would look like a file that load() read)
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from weave.config.child_configs import Access, BrokerConfig, WorkerConfig, from_memfd, to_memfd
from weave.config.load import load
from weave.config.schema import Config, ConfigError
from weave.config.split import broker_config, worker_config

# This line separates the config file from the file in conf.d.
DROP_IN = b"\n#conf.d\n"


def config(data: bytes) -> None:
    """load() returns a Config whose parts can be sent to both children, or raises ConfigError. It reads no other
    file."""
    folder, watch = _folder(), _watch()
    text, separator, drop_in = data.partition(DROP_IN)
    (folder / "config.toml").write_bytes(text)
    other = folder / "conf.d" / "other.toml"
    other.write_bytes(drop_in)
    if not separator:
        other.unlink()
    try:
        with watch.armed():
            loaded = load(folder / "config.toml")
    except ConfigError as error:
        assert str(error)
        return
    assert isinstance(loaded, Config)
    assert all(Path(model.path).is_absolute() for model in loaded.models.values())
    ours = broker_config(loaded, mode="user", access=Access((0,)))
    assert from_memfd(to_memfd(ours), BrokerConfig) == ours
    theirs = worker_config(loaded)
    assert from_memfd(to_memfd(theirs), WorkerConfig) == theirs


class _Watch:
    """An audit hook (PEP 578). Hooks cannot be removed, so it does nothing unless it is armed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed = False
        self._seen: list[str] = []
        sys.addaudithook(self._on_event)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Raises AssertionError if a file or folder outside the test's folder was opened meanwhile."""
        self._seen.clear()
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            assert not self._seen, f"opened outside of the folder: {self._seen}"

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed or event not in ("open", "os.scandir", "os.listdir"):
            return
        path = arguments[0]
        # A descriptor, or O_PATH, through which nothing can be read: read_checked checks the parent folders with it.
        if isinstance(path, int) or (event == "open" and arguments[2] & os.O_PATH):
            return
        text = os.fsdecode(path)
        if text not in ("config.toml", "other.toml") and not Path(text).is_relative_to(self._folder):
            self._seen.append(f"{event} {text}")


@cache
def _folder() -> Path:
    temporary = tempfile.TemporaryDirectory(prefix="fuzz-config-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name).resolve()
    (folder / "conf.d").mkdir()
    # Load once before the watch is armed: the first use imports modules.
    (folder / "config.toml").write_bytes(b"[models]\n")
    load(folder / "config.toml")
    return folder


@cache
def _watch() -> _Watch:
    return _Watch(_folder())
