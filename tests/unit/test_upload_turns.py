"""Reading what clients upload goes by turns of users, not of connections."""

import asyncio
import json

import pytest

from fuzz.uploads import Broker
from weave.broker.admission.principal import Principal
from weave.broker.front.connection import _READ_BYTES, Connection
from weave.protocol.frames import Kind, pack_frame

SIDE = 240
SIZE = SIDE * SIDE * 3
HERS = 5  # fewer than incoming_images allows
IMAGE = {"width": SIDE, "height": SIDE}
REQUEST = {"op": "generate", "prompt": "x", "width": 64, "height": 64, "image": IMAGE}


async def read_meanwhile() -> int:
    """How many of the bytes that one user has sent on several connections are read before the one image of another
    user, whose connection came last, is complete."""
    broker = Broker()
    connections = [broker.connect(Principal(uid)) for uid in (*[1] * HERS, 2)]
    serving = [asyncio.create_task(connection.serve()) for connection, _ in connections]
    for _, theirs in connections:
        theirs.sendall(pack_frame(Kind.CONTROL, 7, json.dumps(REQUEST).encode()))
    while not all(connection.session.uploads._uploads for connection, _ in connections):
        await asyncio.sleep(0)
    for number, (_, theirs) in enumerate(connections):
        theirs.sendall(pack_frame(Kind.IMAGE, 7, bytes([number]) * SIZE))  # it fits into the socket's buffer
    while not any(image[0] == HERS for (image,) in broker.scheduler.done):
        await asyncio.sleep(0)
    hers = [connection.session.uploads._uploads.get(7) for connection, _ in connections[:HERS]]
    begun = sum(upload.writer._size for upload in hers if upload is not None and upload.writer is not None)
    complete = sum(image[0] != HERS for (image,) in broker.scheduler.done)
    for _, theirs in connections:
        theirs.close()
    await asyncio.gather(*serving)
    assert not broker.admission._incoming
    return begun + complete * SIZE


def test_many_connections_read_no_more_than_one_of_another_user() -> None:
    """Except for the first piece of each, which is read with the frame's header."""
    first = HERS * _READ_BYTES
    assert first < asyncio.run(read_meanwhile()) <= first + SIZE + _READ_BYTES


def test_without_turns_each_connection_reads_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_more(connection: Connection) -> None:
        await asyncio.sleep(0)
        await connection._read()

    monkeypatch.setattr(Connection, "_read_more", read_more)
    assert asyncio.run(read_meanwhile()) > (HERS - 1) * SIZE
