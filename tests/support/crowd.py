"""Many UIDs from one process, as with user namespaces and /etc/subuid: without a name, all with the same group."""

import grp
import json
import os
import resource
import socket
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.support.wire import receive_frame
from weave.protocol.frames import Kind, pack_frame

FIRST_SUB_UID = 600_000


def sub_uids(count: int) -> list[int]:
    """None of them has a name."""
    return list(range(FIRST_SUB_UID, FIRST_SUB_UID + count))


class Crowd:
    """Needs root. Its process connects from its UIDs on request, and holds the connections."""

    def __init__(self, orders: socket.socket, answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    def connect(self, message: dict[str, Any], *, each: int = 1) -> dict[str, int]:
        """Each UID connects `each` times and sends the message on each connection. The first answers, counted: the
        event, or what an error names: the field, else the code."""
        return self._ask("connect", message, each)

    def flood(self, message: dict[str, Any], times: int) -> dict[str, int]:
        """Each open connection sends the message so many times. Returns the answers, counted."""
        return self._ask("flood", message, times)

    def send(self, message: dict[str, Any], times: int) -> None:
        """As flood(), but no answer is read."""
        self._ask("send", message, times)

    def _ask(self, *order: Any) -> dict[str, int]:
        self._orders.sendall(json.dumps(order).encode() + b"\n")
        answer = self._answers.readline()
        assert answer, "the crowd has exited"
        counts: dict[str, int] = json.loads(answer)
        return counts


@contextmanager
def crowd(path: Path, uids: list[int], *, group: str | None) -> Iterator[Crowd]:
    """They are in `group` alone. At the end all of their connections are closed."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _obey(theirs, path, uids, [grp.getgrnam(group).gr_gid] if group else [])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    try:
        with ours, ours.makefile() as answers:
            yield Crowd(ours, answers)
    finally:
        os.waitpid(pid, 0)


def _obey(orders: socket.socket, path: Path, uids: list[int], groups: list[int]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.setgroups(groups)
    os.setegid(FIRST_SUB_UID)
    connections: list[socket.socket] = []
    for line in orders.makefile():
        what, message, times = json.loads(line)
        data = pack_frame(Kind.CONTROL, 7, json.dumps(message).encode())
        if what == "connect":
            new = [_connect(path, uid, data) for uid in uids for _ in range(times)]
            connections += new
            counts = Counter(_answer(connection) for connection in new)
        elif what == "send":
            counts = Counter()
            for connection in connections:
                _send(connection, data * times)
        else:
            counts = Counter(_exchange(connection, data) for connection in connections for _ in range(times))
        orders.sendall(json.dumps(counts).encode() + b"\n")


def _connect(path: Path, uid: int, data: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)  # SO_PEERCRED reports this one
    connection.connect(str(path))
    os.seteuid(0)
    connection.settimeout(60)  # not earlier: with a full backlog, connecting would fail instead of waiting
    _send(connection, data)
    return connection


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def _exchange(connection: socket.socket, data: bytes) -> str:
    _send(connection, data)
    return _answer(connection)


def _answer(connection: socket.socket) -> str:
    try:
        answer = json.loads(receive_frame(connection)[1])
    except (AssertionError, ConnectionResetError):
        return "closed"
    named: str = answer.get("field") or answer.get("code") or answer["event"]
    return named
