"""A command's connection: it has a deadline, and names the listening process if that is not weave-compute."""

import argparse
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weave.client import Client, NotRunning, ProtocolError
from weave.protocol.peer import Peer


@contextmanager
def connect(options: argparse.Namespace) -> Iterator[Client]:
    """Raises NotRunning, also if the listening process does not answer in time, and ProtocolError."""
    with Client(options.socket, timeout=options.timeout) as client:
        listener = client.listener
        try:
            yield client
        except TimeoutError as error:
            if error.errno is not None:  # a file's, not the socket's
                raise
            problem = f"{describe(listener)} listens on {client.path}, but did not answer in {options.timeout:g} s"
            raise NotRunning(problem) from None
        except ProtocolError as error:
            problem = f"{describe(listener)} listens on {client.path}, but does not speak our protocol: {error}"
            raise ProtocolError(problem) from None
        except NotRunning:
            raise NotRunning(f"{describe(listener)} listens on {client.path}, but closed the connection") from None


@contextmanager
def connect_for_long(options: argparse.Namespace) -> Iterator[Client]:
    """For a request whose only answer may take long. It checks first that the daemon answers."""
    with connect(options) as client:
        client.status()
        client.timeout = None
        yield client


def describe_listener(path: Path) -> str:
    """Describe the process that listens on `path`. Raises OSError: ConnectionRefusedError if none does, BlockingIOError
    if the backlog is full."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(path))
        return describe(Peer.of(sock))


def describe(listener: Peer) -> str:
    """Its name, which it chooses itself, its PID and its UID."""
    try:
        name = Path(f"/proc/{listener.pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:  # it has exited, or is in another PID namespace
        name = "a process"
    return f"{name} (PID {listener.pid}, UID {listener.uid})"
