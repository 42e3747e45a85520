"""A compromised worker in record mode: the supervisor allows every call that its list does not refuse."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def start_program(_: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            os._exit(error.errno or 255)
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(status, "execve")


def folder(path: Path) -> int:
    return os.open(path, os.O_PATH)


# On files in the socket's folder, because there the supervisor's ruleset, which its children inherit, allows changes.
# unlinkat(2), because the worker's list refuses unlink(2), in record mode too.
ATTACKS: dict[str, Callable[[Path], object]] = {
    "start a program": start_program,
    "create a file": lambda path: os.mknod(path / "created"),
    "rename a file": lambda path: os.rename(path / "victim", path / "renamed"),
    "remove a file": lambda path: os.unlink("other victim", dir_fd=folder(path)),
    "connect by TCP": lambda _: socket.create_connection(("127.0.0.1", 9)),
    "bind a TCP port": lambda _: socket.socket().bind(("127.0.0.1", 0)),
    "signal another process": lambda _: os.kill(os.getppid(), 0),
}


def run(place: str, _: object) -> NoReturn:
    """Attack in `place`, and report the error of each attack; 0 if it succeeded."""
    outcomes = {}
    for name, attack in ATTACKS.items():
        try:
            attack(Path(place))
            outcomes[name] = 0
        except OSError as error:
            outcomes[name] = error.errno or 255
    raise RuntimeError(f"outcomes: {json.dumps(outcomes)}")
