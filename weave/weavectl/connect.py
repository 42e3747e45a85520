"""A connection for a command: with a deadline, and with words for whoever listens but is no weave-compute."""

import argparse
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weave.client import Client, NotRunning, ProtocolError
from weave.protocol.peer import Peer


@contextmanager
def connect(options: argparse.Namespace) -> Iterator[Client]:
    """Raises NotRunning, also where whoever listens does not answer in time; ProtocolError."""
    with Client(options.socket, timeout=options.timeout) as client:
        listener = client.listener
        try:
            yield client
        except TimeoutError as error:
            if error.errno is not None:  # a file's, not the socket's
                raise
            told = f"{describe(listener)} listens on {client.path}, but did not answer in {options.timeout:g} s"
            raise NotRunning(told) from None
        except ProtocolError as error:
            told = f"{describe(listener)} listens on {client.path}, but does not speak our protocol: {error}"
            raise ProtocolError(told) from None
        except NotRunning:
            raise NotRunning(f"{describe(listener)} listens on {client.path}, but closed the connection") from None


@contextmanager
def connect_for_long(options: argparse.Namespace) -> Iterator[Client]:
    """For a request whose one answer may take long: whether there is somebody to answer is seen before."""
    with connect(options) as client:
        client.status()
        client.timeout = None
        yield client


def who_listens(path: Path) -> str:
    """Raises OSError: ConnectionRefusedError where nobody does, BlockingIOError where no more connections may wait."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(path))
        return describe(Peer.of(sock))


def describe(listener: Peer) -> str:
    """Its name, as it says itself, and who it is."""
    try:
        name = Path(f"/proc/{listener.pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:  # it has ended, or lives in another PID namespace
        name = "a process"
    return f"{name} (PID {listener.pid}, UID {listener.uid})"
