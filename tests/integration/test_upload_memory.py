"""The broker's memory while clients upload."""

from pathlib import Path

import pytest

from tests.support.builds import DUMPABLE, build
from tests.support.daemon import Daemon, wait_for
from tests.support.seams import Seams, before
from tests.support.system import MODEL
from tests.support.uploads import GENERATE, inputs_of
from tests.support.wire import send_2
from weave.protocol.frames import Kind, pack_header

CLIENTS, SIDE = 16, 2048
SIZE = SIDE * SIDE * 3  # 12 MiB
SIDES = {"width": SIDE, "height": SIDE}
# The mask does not arrive, so no job runs.
REQUEST = GENERATE | {"image": SIDES, "mask": SIDES | {"channels": 1}, "width": 64, "height": 64}
COPYING: Seams = (
    before("protocol/channel.py", "MemfdWriter.write", 'globals().setdefault("kept", []).append(bytes(data))'),
)


def peak(pid: int) -> int:
    """The peak of resident memory, in bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("copying", [False, True])
def test_the_broker_keeps_no_copy_of_what_clients_upload(copying: bool) -> None:
    """16 clients, 12 MiB each. A broker that kept what it writes would hold all of it."""
    daemon = Daemon(MODEL, command=build((*DUMPABLE, *(COPYING if copying else ())))).wait_until_serving()
    try:
        broker = daemon.pid_of("broker")
        before_uploads = peak(broker)
        connections = [daemon.connect() for _ in range(CLIENTS)]
        for connection in connections:
            send_2(connection, REQUEST)
            connection.sendall(pack_header(Kind.IMAGE, 7, SIZE))
        for _ in range(16):
            for connection in connections:
                connection.sendall(bytes(SIZE // 16))
        wait_for(lambda: inputs_of(daemon) == CLIENTS)
        with daemon.client() as client:
            assert client.status().connections == CLIENTS + 1
        grown = peak(broker) - before_uploads
        for connection in connections:
            connection.close()
        assert grown > CLIENTS * SIZE if copying else (grown < 6 * 2**20 and peak(broker) < 40 * 2**20)
    finally:
        daemon.stop()
