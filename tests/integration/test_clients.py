"""The Python clients: they buffer nothing unread, send nothing that cannot be encoded, and trust no daemon."""

import asyncio
import contextlib
import gc
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.fake_daemon import STATUS, FakeDaemon, models
from tests.support.generation import PROMPT, generate
from weave.client import AsyncClient, Client, InvalidRequest, NotRunning, ProtocolError
from weave.client.codec import Answer, Decoder, Inbox
from weave.protocol.channel import sealed_memfd
from weave.protocol.client_messages import Image, Preview, Progress
from weave.protocol.frames import Kind, pack_frame, pack_header

MANY: dict[str, Any] = {"model": "shapes", "steps": 1, "images": 8, "seed": 1}
HOSTILE = ["$(id>file)", "`id`", "-rf", "a b", "a\x1b[31m", "a\x9b1m", "a\u202e", "a\n", ""]


def image_memfds() -> int:
    gc.collect()
    links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum("weave-image" in os.readlink(link) for link in links if link.is_symlink())


def leave_after_the_first_image(client: Client, **parameters: Any) -> None:
    for answer in client.generate(PROMPT, **MANY, **parameters):
        if isinstance(answer.event, Image):
            if answer.memfd is not None:
                os.close(answer.memfd)
            break


def test_a_job_left_early_leaves_no_memfd_and_no_answer(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        client.load_model("shapes")
        for deliver in ("fd", "inline"):
            leave_after_the_first_image(client, deliver=deliver)
            wait_for(lambda: client.status().worker == "idle")
            assert len(client._arrived) == 0 and image_memfds() == 0
        assert isinstance(generate(client)[-2].event, Image)  # the connection stays usable


def test_a_closed_client_closes_the_memfds_it_received(shared_daemon: Daemon) -> None:
    client = shared_daemon.client()
    answers = client.generate(PROMPT, **MANY, deliver="fd")
    wait_for(lambda: next(answers).event.__class__ is Image)  # the test owns its memfd
    wait_for(lambda: shared_daemon_is_idle(shared_daemon))
    client._receive()
    assert image_memfds() > 1
    client.close()
    assert image_memfds() == 1


def shared_daemon_is_idle(daemon: Daemon) -> bool:
    with daemon.client() as other:
        return other.status().worker == "idle"


@pytest.fixture(autouse=True)
def no_memfd_of_another_test() -> Any:
    yield
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "weave-image" in os.readlink(f"/proc/self/fd/{number}"):
                os.close(int(number))


def test_a_job_the_async_client_leaves_early_leaves_no_memfd(shared_daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(shared_daemon.socket) as client:
            async with contextlib.aclosing(client.generate(PROMPT, **MANY, deliver="fd")) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    if isinstance(answer.event, Image):
                        assert answer.memfd is not None
                        os.close(answer.memfd)
                        break
            while (await client.status()).worker != "idle":
                await asyncio.sleep(0.02)
            assert len(client._inbox) == 0 and image_memfds() == 0

    asyncio.run(main())


def test_closing_the_async_client_fails_pending_requests(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with AsyncClient(path) as client:
            asking = asyncio.create_task(client.status())
            await asyncio.sleep(0)
        with pytest.raises(NotRunning, match="the client is closed"):
            await asking

    with FakeDaemon(tmp_path / "socket") as silent:
        asyncio.run(main(silent.path))


def test_only_old_previews_are_dropped_from_a_full_inbox() -> None:
    inbox = Inbox()
    inbox.expect(1)
    for step in range(1, 41):
        inbox.put(Answer(1, Progress(image=0, step=step, steps=40)))
        inbox.put(Answer(1, Preview(image=0, step=step, width=8, height=8, size=2**20), b"x" * 2**20))
        inbox.put(Answer(2, Progress(image=0, step=step, steps=40)))  # of a request without a reader
    held = list(iter(lambda: inbox.take(1), None))
    assert [a.event.step for a in held if isinstance(a.event, Progress)] == list(range(1, 41))
    assert [a.event.step for a in held if isinstance(a.event, Preview)] == list(range(25, 41))
    assert len(inbox) == 0


def test_an_inbox_closes_untaken_memfds() -> None:
    inbox = Inbox()
    inbox.expect(1)
    event = Image(image=0, seed=1, format="raw", deliver="fd", width=1, height=1, channels=3, size=3)
    for request in (1, 1, 2):
        inbox.put(Answer(request, event, memfd=sealed_memfd("weave-image", b"abc")))
    assert image_memfds() == 2
    taken = inbox.take(1)
    assert taken is not None and taken.memfd is not None
    inbox.forget(1)
    assert image_memfds() == 1
    os.close(taken.memfd)


def test_an_image_other_than_announced_is_refused_unbuffered() -> None:
    announcement = (
        b'{"event":"image","image":0,"seed":1,"format":"raw","deliver":"inline",'
        b'"width":1,"height":1,"channels":3,"size":3}'
    )
    for header in (
        pack_header(Kind.IMAGE, 1, 0xFFFFFFFF),
        pack_header(Kind.IMAGE, 2, 3),
        pack_header(Kind.CONTROL, 1, 3),
    ):
        with pytest.raises(ProtocolError, match="announced"):
            list(Decoder().feed(pack_frame(Kind.CONTROL, 1, announcement) + header, []))
    with pytest.raises(ProtocolError, match="an image came without an announcement"):
        list(Decoder().feed(pack_header(Kind.IMAGE, 1, 0xFFFFFFFF), []))


def test_a_closed_decoder_holds_nothing() -> None:
    decoder = Decoder()
    list(decoder.feed(pack_header(Kind.CONTROL, 1, 60_000) + b"x" * 50_000, [sealed_memfd("weave-image", b"abc")]))
    assert decoder._frames.held == 50_000 and image_memfds() == 1
    decoder.close()
    assert decoder._frames.held == 0 and image_memfds() == 0


def test_descriptors_without_an_image_are_a_violation_and_closed() -> None:
    with pytest.raises(ProtocolError, match="without an image"):
        list(Decoder().feed(b"", [sealed_memfd("weave-image", b"abc")]))
    assert image_memfds() == 0


UNSENDABLE: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"cfg_scale": math.nan}, "cfg_scale is nan; it must be a finite number"),
    "infinity": ({"cfg_scale": math.inf}, "cfg_scale is inf"),
    "minus infinity": ({"cfg_scale": -math.inf}, "cfg_scale is -inf"),
    "half a surrogate": ({"negative_prompt": "caf\udce9"}, "negative_prompt is not valid Unicode"),
    "too long": ({"negative_prompt": "x" * 70_000}, "bytes; it must have at most 65536"),
    "a number of 70 bits": ({"seed": 2**70}, "seed is 0x400000000000000000; it must fit 64 bits"),
    "a number of 5000 digits": ({"steps": -(10**5000)}, "steps is -0x"),
}


@pytest.mark.parametrize("name", UNSENDABLE)
def test_an_unencodable_request_is_refused_by_field_name(tmp_path: Path, name: str) -> None:
    parameters, message = UNSENDABLE[name]

    async def main(path: Path) -> None:
        async with AsyncClient(path) as client:
            with pytest.raises(InvalidRequest, match=message):
                async for _ in client.generate("x", **parameters):
                    pass
            await client.status()

    with FakeDaemon(tmp_path / "socket", lambda _: [STATUS]) as daemon:
        with Client(daemon.path, timeout=60) as client:
            with pytest.raises(InvalidRequest, match=message):
                list(client.generate("x", **parameters))
            client.status()
        asyncio.run(main(daemon.path))
    assert [request["op"] for request in daemon.asked] == ["status", "status"]


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "loading.model": lambda text: {"event": "loading", "model": text},
    "done.model": lambda text: {"event": "done", "model": text},
    "models.id": lambda text: models(id=text),
    "models.family": lambda text: models(family=text),
    "models.schedulers": lambda text: models(schedulers=[text]),
    "models.default": lambda text: models() | {"default": text},
    "models.loaded": lambda text: models() | {"loaded": text},
    "status.version": lambda text: STATUS | {"version": text},
    "status.model": lambda text: STATUS | {"model": text},
    "status.device": lambda text: STATUS | {"device": text},
    "status.devices": lambda text: STATUS | {"devices": [{"device": text, "state": "idle"}]},
    "status.dtype": lambda text: STATUS | {"dtype": text},
    "status.sandbox": lambda text: STATUS | {"sandbox": {"worker": [text]}},
    "status.jobs": lambda text: STATUS | {"jobs": [{"job": 1, "model": text, "state": "queued", "position": 0}]},
}


@pytest.mark.parametrize("field", FIELDS)
def test_clients_refuse_a_malformed_name_from_a_daemon(tmp_path: Path, field: str) -> None:
    texts = iter(HOSTILE)
    with FakeDaemon(tmp_path / "socket", lambda _: [FIELDS[field](next(texts))]) as daemon:
        for _ in HOSTILE:
            with Client(daemon.path, timeout=60) as client, pytest.raises(ProtocolError, match="matching regex"):
                list(client.generate("x"))


def test_clients_refuse_a_title_with_terminal_escapes(tmp_path: Path) -> None:
    titles = iter(["a\x1b]0;x\x07", "a\x9b1m", "a\x7f", "a\u202eb", "a\nb", "x" * 257])
    with FakeDaemon(tmp_path / "socket", lambda _: [models(title=next(titles))]) as daemon:
        for _ in range(6):
            with Client(daemon.path, timeout=60) as client, pytest.raises(ProtocolError):
                client.list_models()


def test_a_silent_listener_ends_in_a_timeout(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket") as silent, Client(silent.path, timeout=0.2) as client:
        assert client.listener.pid == os.getpid() and client.listener.uid == os.getuid()
        with pytest.raises(TimeoutError):
            client.status()


def test_a_full_backlog_ends_in_a_timeout_unless_it_empties(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "socket", backlog=0) as silent, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(silent.path))
        with pytest.raises(NotRunning, match=r"did not accept a connection in 0\.2 s"):
            Client(silent.path, timeout=0.2)
        silent._listener.accept()[0].close()
        Client(silent.path, timeout=60).close()


def test_an_empty_weave_socket_counts_as_unset(monkeypatch: pytest.MonkeyPatch, shared_daemon: Daemon) -> None:
    monkeypatch.setenv("WEAVE_SOCKET", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_daemon.folder))
    with Client(timeout=60) as client:
        assert client.status().mode == "user"
