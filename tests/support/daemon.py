"""The real daemon, as a user starts it, in its own runtime folder."""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.processes import descendants, start
from weave.client import Client, NotRunning

COMMAND = Path(sys.executable).with_name("weave-compute")
DEMO_MODEL = Path(__file__).resolve().parents[2] / "models" / "shapes"


class Daemon:
    """`config` is TOML; none means the built-in default. `prefix` goes before the command (unshare, ...), `options`
    after it, `variables` into its environment. `command` is another build's (tests/support/builds.py)."""

    _forgotten = 0  # events before the last reload()

    def __init__(
        self,
        config: str | None = None,
        prefix: tuple[str, ...] = (),
        folder: Path | None = None,
        options: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        command: tuple[str, ...] = (str(COMMAND),),
    ) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="weave-test-"))
        self.socket = self.folder / "weave" / "weave.sock"
        self.config = self.folder / "config" / "weave" / "weave-compute.toml"
        if config is not None:
            self.config.parent.mkdir(parents=True, exist_ok=True)
            self.config.write_text(config)
        self._log = open(self.folder / "log", "ab")  # noqa: SIM115 - lives as long as the daemon
        self._served_before = len(self.events("serving"))
        environment = os.environ | {"XDG_RUNTIME_DIR": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config")}
        with open(self.folder / "output", "ab") as output:
            self.process = start(
                [*prefix, *command, *options],
                env=environment | (variables or {}),
                stdout=output,
                stderr=self._log,
                pass_fds=pass_fds,
            )

    def wait_until_serving(self) -> "Daemon":
        wait_for(lambda: len(self.events("serving")) > self._served_before or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()
        return self

    def client(self) -> Client:
        return Client(self.socket, timeout=100)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(self.socket))
        return connection

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def all_events(self) -> list[dict[str, Any]]:
        whole = self.log().rpartition("\n")[0]  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")][self._forgotten :]

    def reload(self, config: str) -> None:
        """SIGHUP with another config. Then events() returns only later events, for tests that share a daemon."""
        before = len(self.events("reloaded"))
        self.config.write_text(config)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(self.events("reloaded")) > before)
        self._forgotten += len(self.all_events())

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.all_events() if line["event"] == name]

    def processes(self) -> dict[int, str]:
        """Every process of this daemon, with its role."""
        found = {}
        for pid in descendants(self.process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            module = command[command.index(b"-m") + 1].decode() if b"-m" in command else "?"
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            found[pid] = "worker" if parent != self.process.pid else module.removeprefix("weave.")
        return found

    def pid_of(self, name: str) -> int:
        return next(pid for pid, role in self.processes().items() if role == name)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._log.close()
        return status


def descriptors_of(pid: int) -> list[str]:
    """The target of each of its descriptors. Other users than root need tests.support.builds.visible() to see them."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        import pytest  # the machines of tests/vm, which run the attacks, have no pytest

        pytest.skip("needs root to read /proc/PID/fd of a process that is not dumpable")
    found = []
    for descriptor in descriptors:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The condition's value once it holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except (NotRunning, ProcessLookupError, FileNotFoundError, StopIteration):
            pass
        time.sleep(0.02)
    raise AssertionError("the condition never held")
