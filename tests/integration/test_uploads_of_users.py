"""Several users who send images: no user takes up the others' room, and no user's worker gets another's image."""

import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pytest

from tests.integration.test_isolation import readable
from tests.support.builds import build
from tests.support.daemon import Daemon, wait_for
from tests.support.seams import after
from tests.support.system import MODEL, SYSTEM, system_daemon
from tests.support.uploads import EVERYTHING, SIZE, WITH_IMAGE, inputs_of, last_of, receive, send_image
from tests.support.users import ALICE, BOB, CAROL
from tests.support.wire import send_2
from weave.protocol.frames import Kind, pack_frame

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
MIB = 1024 * 1024
LIMITS = f"[limits]\nincoming_bytes = {4 * MIB}\nincoming_bytes_total = {4 * MIB}\nburst_per_uid = 10000\n"
USERS = SYSTEM.replace(f'["{ALICE}"]', f'["{ALICE}", "{BOB}", "{CAROL}"]')
# A worker notes the digests of the images that it reads.
CURIOUS = (
    after(
        "gpu_worker/inputs.py",
        "read_inputs",
        """
        from weave import log
        log.write("worker", "seen", by=os.getpid(), images=result.digests)
        """,
    ),
)


@contextmanager
def system(*, isolate_users: bool) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="weave-test-"))
    table = f'[system]\nisolate_users = {str(isolate_users).lower()}\nsocket_mode = "0666"'
    config = LIMITS + USERS.replace("[system]", table) + MODEL
    daemon = system_daemon(folder, config, command=readable(build(CURIOUS))).wait_until_serving()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0


def connect_as(daemon: Daemon, name: str) -> socket.socket:
    """SO_PEERCRED reports that user."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(100)
    os.seteuid(pwd.getpwnam(name).pw_uid)
    try:
        connection.connect(str(daemon.socket))
    finally:
        os.seteuid(0)
    return connection


def announce(connection: socket.socket, request: int = 7) -> str:
    """Announces images of 1 MiB and sends none. Returns the field of the error, if the request is refused."""
    send_2(connection, EVERYTHING, request)
    send_2(connection, {"op": "status"}, 99)
    number, event = receive(connection)
    if number == 99:
        return ""
    assert (number, event["code"]) == (request, "queue_full") and receive(connection)[0] == 99
    return str(event["field"])


def test_the_last_quarter_of_images_is_for_users_without(users: None) -> None:
    """On several connections one user takes three quarters. A newcomer finds room; after that nobody does."""
    with system(isolate_users=True) as daemon, ExitStack() as stack:
        hers = [stack.enter_context(connect_as(daemon, ALICE)) for _ in range(4)]
        his, carols = (stack.enter_context(connect_as(daemon, name)) for name in (BOB, CAROL))
        assert [announce(connection) for connection in hers] == ["", "", "", "incoming_bytes_total"]
        assert (announce(his), announce(carols)) == ("", "incoming_bytes_total")
        hers[0].close()
        wait_for(lambda: announce(carols) == "")
        assert announce(his, 8) == "incoming_bytes_total"


@pytest.mark.parametrize("isolate_users", [True, False])
def test_a_worker_gets_other_users_images_only_unisolated(users: None, isolate_users: bool) -> None:
    """Also where they arrive in turns, and where one waits while the other's job runs."""
    with system(isolate_users=isolate_users) as daemon, ExitStack() as stack:
        pixels = {name: bytes([value]) * SIZE for name, value in ((ALICE, 0x11), (BOB, 0x22))}
        connections = {name: stack.enter_context(connect_as(daemon, name)) for name in pixels}
        for name, connection in connections.items():
            send_2(connection, WITH_IMAGE | {"steps": 50 if name == ALICE else 2})
        for half in (slice(0, 6000), slice(6000, None)):
            for name, connection in connections.items():
                connection.sendall(pack_frame(Kind.IMAGE, 7, pixels[name])[half])
        assert all(last_of(connection)["event"] == "done" for connection in connections.values())
        send_2(connections[ALICE], WITH_IMAGE)
        send_image(connections[ALICE], pixels[ALICE])
        assert last_of(connections[ALICE])["event"] == "done" and inputs_of(daemon) == 0
        seen = wait_for(lambda: len(daemon.events("seen")) == 3 and daemon.events("seen"))
    whose = {sha256(data).hexdigest(): name for name, data in pixels.items()}
    workers: dict[int, list[str]] = {}
    for line in seen:
        workers.setdefault(line["by"], []).extend(whose[digest] for digest in line["images"])
    # Whose job runs first is open.
    assert sorted(chain.from_iterable(workers.values())) == [ALICE, ALICE, BOB]
    assert all(len(set(users)) == 1 for users in workers.values()) if isolate_users else len(workers) == 1
