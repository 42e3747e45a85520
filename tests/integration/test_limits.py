"""Every limit of the config, reached over the real socket: that client gets an error or is dropped, all others are
served."""

import array
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest

from tests.support.builds import DUMPABLE, daemon_of, visible
from tests.support.daemon import Daemon, descriptors_of, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import replaced
from tests.support.system import MODEL
from tests.support.wire import generate_1, receive_2, receive_frame, send_2
from weave.client import WeaveError
from weave.protocol.channel import close_all
from weave.protocol.client_messages import Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.peer import refuse_descriptors

with socket.socket(socket.AF_UNIX) as unused:
    KERNEL_REFUSES = refuse_descriptors(unused)
GENERATE = {"op": "generate", "model": "shapes", "prompt": PROMPT, "steps": 1}


@contextmanager
def limited(limits: str) -> Iterator[Daemon]:
    """A daemon that starts with these limits."""
    daemon = Daemon(f"[limits]\n{limits}\n" + MODEL, command=visible()).wait_until_serving()
    try:
        yield daemon
    finally:
        assert daemon.stop() == 0


@pytest.fixture(scope="module")
def reloadable() -> Iterator[Daemon]:
    """One daemon for all tests that set their limits by a reload."""
    with limited("") as daemon:
        yield daemon


Reload: TypeAlias = Callable[[str], Daemon]


@pytest.fixture
def reload(reloadable: Daemon) -> Reload:
    def with_limits(limits: str) -> Daemon:
        reloadable.reload(f"[limits]\n{limits}\n" + MODEL)
        return reloadable

    return with_limits


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_job_queued_too_long_fails_and_the_running_one_stays(reload: Reload) -> None:
    daemon = reload("queued_seconds = 1.0")
    with daemon.client() as client, daemon.client() as other:
        running = client.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))
        with pytest.raises(WeaveError) as late:
            generate(other)
        assert late.value.code is ErrorCode.TIMED_OUT and "1 s in the queue" in str(late.value)
        assert next(running).event
        assert wait_for(lambda: daemon.events("job_timed_out"))[0]["limit"] == "queued_seconds"


@pytest.mark.parametrize("op", [GENERATE, {"op": "load_model", "model": "shapes"}, {"op": "unload"}])
def test_a_rate_limit_error_says_when_to_retry(reload: Reload, op: dict[str, Any]) -> None:
    with reload("burst_per_uid = 1\nrequests_per_second = 1.0").connect() as connection:

        def end(request: int) -> dict[str, Any]:
            send_2(connection, op, request)
            while True:
                header, payload = receive_frame(connection)
                if header.kind is Kind.CONTROL and header.request == request:
                    event: dict[str, Any] = json.loads(payload)
                    if event["event"] in ("done", "error"):
                        return event

        send_2(connection, op, 1)
        refused = end(2)
        assert refused["code"] == "rate_limited" and 0 < refused["retry_after"] <= 1
        time.sleep(refused["retry_after"])
        assert end(3)["event"] == "done"


def test_a_queue_full_error_names_the_total_or_per_uid_limit(reload: Reload) -> None:
    for limit in ("queue", "queue_per_uid"):
        with reload(f"{limit} = 2").connect() as connection:
            send_2(connection, GENERATE | {"steps": 100, "images": 8}, 1)
            while receive_2(connection)["event"] != "progress":
                pass
            for request in (2, 3, 4):
                send_2(connection, GENERATE, request)
            while (event := receive_2(connection))["event"] != "error":
                pass
            assert (event["code"], event["field"], event["max"]) == ("queue_full", limit, 2)


SLOW: dict[str, Callable[[bytes], list[bytes]]] = {
    "half a header": lambda frame: [frame[:8]],
    "half a payload": lambda frame: [frame[:30]],
    "a byte at a time": lambda frame: [bytes([byte]) for byte in frame],
    "the rest of a frame that was refused": lambda _: [b"WEVE\0\3\0\1" + (1000).to_bytes(4, "big") + bytes(14)],
    "a version 1 payload of 10 MiB": lambda _: [generate_1()[:8] + (10 << 20).to_bytes(4, "big") + bytes(100)],
}


@pytest.mark.parametrize("name", SLOW)
def test_an_unfinished_frame_drops_the_client(slow_daemon: Daemon, name: str) -> None:
    frame = pack_frame(Kind.CONTROL, 7, json.dumps(GENERATE).encode())
    with slow_daemon.connect() as slow, slow_daemon.client() as client:
        dropped = len(slow_daemon.events("client_dropped"))
        try:
            for piece in SLOW[name](frame):
                slow.sendall(piece)
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert client.status().version and is_closed(slow)
        wait_for(lambda: len(slow_daemon.events("client_dropped")) > dropped)
        assert "not complete in time" in slow_daemon.events("client_dropped")[-1]["reason"]


@pytest.fixture(scope="module")
def slow_daemon() -> Iterator[Daemon]:
    with limited("frame_seconds = 0.3") as daemon:
        yield daemon


def test_a_connection_may_be_idle_before_a_frame(slow_daemon: Daemon) -> None:
    with slow_daemon.connect() as connection:
        time.sleep(0.6)
        send_2(connection, {"op": "status"})
        assert receive_2(connection)["event"] == "status"


# What a client that requests much and reads nothing leaves in the broker: bytes, or images that hold descriptors.
UNREAD = {
    "bytes": ("outgoing_bytes = 1048576", GENERATE | {"images": 8, "format": "raw", "preview_every": 1}),
    "images": ("outgoing_images = 20", GENERATE | {"images": 8, "deliver": "fd", "steps": 4, "preview_every": 1}),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_client_that_does_not_read_is_dropped_alone(reload: Reload, name: str) -> None:
    limit, request = UNREAD[name]
    daemon = reload(f"{limit}\nburst_per_uid = 1000\nqueue_per_uid = 100")
    with daemon.client() as client, daemon.connect() as deaf:
        expected = images(generate(client))[0].data
        for number in range(30):
            send_2(deaf, request, number)
        # Another connection of the same user, which reads, generates meanwhile and is not dropped.
        assert images(generate(client))[0].data == expected
        dropped = wait_for(lambda: daemon.events("client_dropped"))
        assert [f"{name} together" in line["reason"] for line in dropped] == [True]
        assert images(generate(client))[0].data == expected
        assert is_closed(deaf)
    broker = daemon.pid_of("broker")
    wait_for(lambda: not [link for link in descriptors_of(broker) if "memfd:weave-image" in link])


def test_all_connections_of_a_user_count_together(reload: Reload) -> None:
    daemon = reload("outgoing_images = 20\nburst_per_uid = 1000\nqueue_per_uid = 100")
    with daemon.connect() as one, daemon.connect() as other:
        fill_socket_buffers(one)
        fill_socket_buffers(other)
        for number in range(2):
            for deaf in (one, other):
                send_2(deaf, GENERATE | {"images": 8}, number)
        assert wait_for(lambda: daemon.events("client_dropped"))
        # Neither alone had more than 16.
        assert "more than 20 images together" in daemon.events("client_dropped")[0]["reason"]


def fill_socket_buffers(connection: socket.socket) -> None:
    """Unread answers, as many as the kernel buffers: later ones wait in the broker."""
    for number in range(300):
        send_2(connection, {"op": "list_models"}, number + 1000)


def deliveries(daemon: Daemon, **parameters: Any) -> tuple[list[str], list[bytes]]:
    """How each image requested as a descriptor was delivered, and its pixels."""
    with daemon.client() as client:
        generated = images(generate(client, steps=1, format="raw", deliver="fd", **parameters))
        found = [os.pread(image.memfd, image.event.size, 0) if image.memfd else image.data for image in generated]
        close_all([image.memfd for image in generated if image.memfd])
        return [image.event.deliver for image in generated], found


def test_beyond_the_delivered_bytes_limit_images_come_inline() -> None:
    size = 128 * 128 * 3
    with limited(f"delivered_bytes = {3 * size + 1}") as daemon:
        ways, first = deliveries(daemon, images=2)
        assert ways == ["fd", "fd"]
        # Another connection of the same user shares the limit.
        ways, second = deliveries(daemon, images=2)
        assert ways == ["fd", "inline"] and second == first and len(first[0]) == size
        with daemon.client() as client:
            client.unload()
        # Memory that a client holds is not returned with the worker, nor by a reload.
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.events("reloaded"))
        assert deliveries(daemon, images=2) == (["inline", "inline"], first)


def test_with_no_bytes_to_deliver_every_image_comes_inline() -> None:
    with limited("delivered_bytes = 0") as daemon:
        assert deliveries(daemon)[0] == ["inline"]


def send_descriptors(connection: socket.socket, count: int) -> None:
    with open("/dev/null") as null:
        rights = array.array("i", [null.fileno()] * count)
        frame = pack_frame(Kind.CONTROL, 7, b'{"op":"status"}')
        connection.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


@pytest.mark.skipif(not KERNEL_REFUSES, reason="SO_PASSRIGHTS needs Linux 6.16")
def test_a_descriptor_from_a_client_never_arrives(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as connection:
        with pytest.raises(PermissionError):
            send_descriptors(connection, 1)
        send_2(connection, {"op": "status"})
        assert receive_2(connection)["event"] == "status"


@pytest.fixture(scope="module")
def older_kernel() -> Iterator[Daemon]:
    """Behaves as on a kernel that cannot refuse descriptors."""
    daemon = daemon_of((replaced("protocol/peer.py", "refuse_descriptors", "return False"), *DUMPABLE))
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.parametrize("count", [1, 10, 200])
def test_a_client_that_sends_a_descriptor_is_dropped(older_kernel: Daemon, count: int) -> None:
    with older_kernel.connect() as connection, older_kernel.client() as client:
        before = descriptors_of(older_kernel.pid_of("broker")).count("/dev/null")
        dropped = len(older_kernel.events("client_dropped"))
        send_descriptors(connection, count)
        assert is_closed(connection)
        wait_for(lambda: client.status().connections == 1)
        assert descriptors_of(older_kernel.pid_of("broker")).count("/dev/null") == before
        wait_for(lambda: len(older_kernel.events("client_dropped")) > dropped)
        assert older_kernel.events("client_dropped")[-1]["reason"] == "sent a descriptor"


def test_cancelling_a_finished_job_is_an_error(shared_daemon: Daemon) -> None:
    def answer(connection: socket.socket, message: dict[str, Any], request: int) -> dict[str, Any]:
        send_2(connection, message, request)
        while (found := receive_frame(connection))[0].request != request or found[0].kind is Kind.IMAGE:
            pass
        event: dict[str, Any] = json.loads(found[1])
        return event

    with shared_daemon.connect() as connection:
        job = answer(connection, GENERATE, 5)["job"]
        while receive_2(connection)["event"] != "image":
            pass
        receive_frame(connection)
        assert receive_2(connection)["event"] == "done"
        for stale in ({"request": 5}, {"job": job}):
            refused = answer(connection, {"op": "cancel", **stale}, 6)
            assert (refused["code"], refused["value"]) == ("invalid_request", *stale.values())
        # The number is free again, and in use while an unload waits for the running job.
        send_2(connection, GENERATE | {"steps": 50}, 5)
        while receive_2(connection)["event"] != "progress":
            pass
        send_2(connection, {"op": "unload"}, 8)
        send_2(connection, {"op": "unload"}, 8)
        events = []
        while not events or events[-1]["event"] != "error":
            header, payload = receive_frame(connection)
            if header.request == 8:
                events.append(json.loads(payload))
        assert (events[-1]["code"], events[-1]["value"]) == ("invalid_request", 8)
