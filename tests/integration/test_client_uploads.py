"""Both Python clients while they send images: of any kind, cancelled, refused, and to older daemons."""

import asyncio
import contextlib
import io
import os
import signal
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.daemon import Daemon, wait_for
from tests.support.fake_daemon import STATUS, FakeDaemon
from tests.support.generation import PROMPT, generate, images
from weave.client import AsyncClient, Client, Control, InvalidRequest, NotRunning, WeaveError
from weave.protocol.client_messages import Progress

OLD = "^{}: the daemon, version 1.0, does not have the feature"
FEATURES = ["control", "input-images", "references"]
PICTURE = np.tile(np.arange(128, dtype=np.uint8)[:, None, None] * 2, (1, 128, 3))
HALF: dict[str, Any] = {
    "model": "shapes",
    "steps": 2,
    "strength": 0.5,
    "seed": 1,
    "width": 128,
    "height": 128,
    "format": "raw",
}
# As many pixels as the demo model takes: more than a socket holds.
LARGE = np.zeros((4096, 4096, 3), np.uint8)


def png_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


async def drawn(client: AsyncClient, **parameters: Any) -> bytes:
    return b"".join([answer.data async for answer in client.generate(PROMPT, **parameters)])


def test_both_clients_give_the_same_for_every_kind_of_image(shared_daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(PICTURE))
    kinds = (PICTURE, Image.fromarray(PICTURE), path, path.read_bytes())

    async def of_async_client() -> list[bytes]:
        async with AsyncClient(shared_daemon.socket) as client:
            return [await drawn(client, image=kind, **HALF) for kind in kinds[1:]]

    with shared_daemon.client() as client:
        first, *others = [images(generate(client, image=kind, **HALF))[0].data for kind in kinds]
        assert {*others, *asyncio.run(of_async_client())} == {first}
        assert images(generate(client, image=255 - PICTURE, **HALF))[0].data != first


def test_a_mask_keeps_what_is_black(shared_daemon: Daemon) -> None:
    mask = np.zeros((128, 128), bool)
    mask[:, 64:] = True
    with shared_daemon.client() as client:
        (answer,) = images(generate(client, image=PICTURE, mask=mask, **HALF))
    found = np.frombuffer(answer.data, np.uint8).reshape(128, 128, 3)
    assert np.array_equal(found[:, :64], PICTURE[:, :64]) and not np.array_equal(found[:, 64:], PICTURE[:, 64:])


def test_an_early_refusal_leaves_both_clients_usable(shared_daemon: Daemon) -> None:
    """The daemon refuses the mask when it reads the request, before any of the 96 MiB."""
    refused = {"image": LARGE, "mask": LARGE[1:], **HALF}

    async def ask() -> None:
        async with AsyncClient(shared_daemon.socket) as client:
            with pytest.raises(WeaveError, match="mask is 4096x4095"):
                await drawn(client, **refused)
            assert len(await drawn(client, image=PICTURE, **HALF)) == 128 * 128 * 3

    with shared_daemon.client() as client:
        with pytest.raises(WeaveError, match="mask is 4096x4095"):
            generate(client, **refused)
        assert images(generate(client, image=PICTURE, **HALF))
    asyncio.run(ask())


def test_cancelling_a_task_in_an_upload_leaves_the_client_usable(shared_daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(shared_daemon.socket) as client:
            await client.status()
            for pause in (0.0, 0.01, 0.05):
                task = asyncio.create_task(drawn(client, image=LARGE, mask=LARGE, **HALF))
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert len(await drawn(client, image=PICTURE, **HALF)) == 128 * 128 * 3
            assert (await client.status()).jobs == ()

    asyncio.run(main())


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGALRM interrupts as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_in_an_upload_ends_the_connection(tmp_path: Path) -> None:
    stop = threading.Event()

    def answers(request: dict[str, Any]) -> list[Any]:
        if request["op"] == "generate":
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            stop.wait(60)  # reads nothing meanwhile
        return [STATUS | {"features": FEATURES}]

    with FakeDaemon(tmp_path / "socket", answers) as daemon, Client(daemon.path) as client:
        with pytest.raises(KeyboardInterrupt):
            list(client.generate("x", image=LARGE))
        stop.set()
        assert not list(client._arrived)
        with pytest.raises(NotRunning, match="the client is closed"):
            client.status()


def test_an_interrupted_upload_leaves_nothing_in_the_daemon(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client, contextlib.suppress(KeyboardInterrupt):
        client.status()
        interrupt_after(20, client)
        list(client.generate(PROMPT, image=LARGE, mask=LARGE, **HALF))
    broker = shared_daemon.pid_of("broker")

    def inputs() -> int:
        folder = Path(f"/proc/{broker}/fd")
        return sum("weave-input" in os.readlink(link) for link in folder.iterdir() if link.is_symlink())

    if os.getuid() == 0:  # the broker is not dumpable
        wait_for(lambda: inputs() == 0)
    with shared_daemon.client() as other:
        assert other.status().jobs == ()


def interrupt_after(pieces: int, client: Client) -> None:
    send, numbers = client._send_piece, count()

    def interrupted(piece: memoryview) -> None:
        if next(numbers) == pieces:
            raise KeyboardInterrupt
        send(piece)

    client._send_piece = interrupted


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_daemon_that_waits_to_be_read_causes_no_deadlock(tmp_path: Path, asynchronous: bool) -> None:
    size = 8 * 2**20
    preview = {"event": "preview", "image": 0, "step": 1, "width": 1, "height": 1, "size": size}

    def answers(request: dict[str, Any]) -> list[Any]:
        if request["op"] == "status":
            return [STATUS | {"features": FEATURES}]
        return [preview, bytes(size), {"event": "done"}]  # before it reads the image

    async def ask(path: Path) -> None:
        async with AsyncClient(path) as client:
            assert len(await drawn(client, image=LARGE)) == size
            await client.status()

    with FakeDaemon(tmp_path / "socket", answers) as daemon:
        if asynchronous:
            asyncio.run(ask(daemon.path))
        else:
            with Client(daemon.path, timeout=60) as client:
                assert sum(len(answer.data) for answer in client.generate("x", image=LARGE)) == size
                client.status()
        assert [len(payload) for payload in daemon.received] == [LARGE.nbytes]


NEEDED: dict[str, dict[str, Any]] = {
    "image": {"image": PICTURE},
    "control": {"control": [Control(id="canny", image=PICTURE)]},
    "references": {"references": [PICTURE]},
}


@pytest.mark.parametrize("field", NEEDED)
def test_no_upload_goes_to_a_daemon_without_the_feature(tmp_path: Path, field: str) -> None:
    async def ask(path: Path) -> None:
        async with AsyncClient(path) as client:
            for _ in range(2):
                with pytest.raises(InvalidRequest, match=OLD.format(field)):
                    await drawn(client, **NEEDED[field])

    with FakeDaemon(tmp_path / "socket", lambda _: [STATUS]) as daemon:
        with Client(daemon.path, timeout=60) as client:
            for _ in range(2):
                with pytest.raises(InvalidRequest, match=OLD.format(field)):
                    list(client.generate("x", **NEEDED[field]))
        asyncio.run(ask(daemon.path))
    assert [request["op"] for request in daemon.asked] == ["status", "status"]  # once for each connection


def test_an_image_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    async def ask(path: Path) -> None:
        async with AsyncClient(path) as client:
            with pytest.raises(InvalidRequest, match="image: its bytes is not a PNG"):
                await drawn(client, image=b"junk")

    with FakeDaemon(tmp_path / "socket", lambda _: [STATUS]) as daemon:
        with Client(daemon.path, timeout=60) as client, pytest.raises(InvalidRequest, match="image: its bytes is not"):
            list(client.generate("x", image=b"junk"))
        asyncio.run(ask(daemon.path))
    assert daemon.asked == []


def test_an_upload_does_not_keep_other_requests_waiting(shared_daemon: Daemon) -> None:
    """Between the frames of one request the async client sends those of others."""

    async def main() -> list[str]:
        order: list[str] = []
        async with AsyncClient(shared_daemon.socket) as client:
            await client.status()

            async def upload() -> None:
                async for answer in client.generate(PROMPT, image=LARGE, mask=LARGE, **HALF):
                    if isinstance(answer.event, Progress):
                        order.append("progress")

            async def ask() -> None:
                await client.status()
                order.append("status")

            await asyncio.gather(upload(), ask())
        return order

    assert asyncio.run(main())[0] == "status"
