"""Clients that send images wrongly, or not at all: each gets a clear error or is dropped, the others are served, and
nothing is left."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.builds import visible
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import PROMPT
from tests.support.system import MODEL
from tests.support.uploads import (
    EVERYTHING,
    GENERATE,
    GREY,
    GREY_SIZE,
    IMAGE,
    LIMITS,
    SIDE,
    SIZE,
    WITH_IMAGE,
    begin_image,
    image_of,
    inputs_of,
    last_of,
    lives_on,
    nothing_is_left,
    receive,
    send_image,
)
from tests.support.wire import generate_1, receive_frame, send_2
from weave.protocol.client_messages import Progress
from weave.protocol.frames import MAX_INPUT_BYTES, Kind, pack_frame

PIXELS = bytes(range(256)) * (SIZE // 256)
RAW = {"format": "raw"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    started = Daemon(f"[limits]\n{LIMITS}\n" + MODEL, command=visible()).wait_until_serving()
    yield started
    assert started.stop() == 0


@pytest.fixture
def raw(daemon: Daemon) -> Iterator[socket.socket]:
    """After the test, nothing may be left of its uploads."""
    with daemon.connect() as connection:
        yield connection
    assert nothing_is_left(daemon)


@pytest.fixture
def limited(daemon: Daemon) -> Iterator[Callable[[str], socket.socket]]:
    """Connects to the daemon with other limits."""
    opened: list[socket.socket] = []

    def connect(limits: str) -> socket.socket:
        daemon.reload(f"[limits]\n{LIMITS}\n{limits}\n" + MODEL)
        opened.append(daemon.connect())
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    daemon.reload(f"[limits]\n{LIMITS}\n" + MODEL)
    assert nothing_is_left(daemon)


def whole(raw: socket.socket, message: dict[str, Any], *images: bytes, request: int = 7) -> bytes:
    send_2(raw, message, request)
    for image in images:
        send_image(raw, image, request)
    return image_of(raw, request)


def sized(width: Any, height: Any, **more: Any) -> dict[str, Any]:
    return {"image": {"width": width, "height": height, **more}, "width": SIDE, "height": SIDE}


# What is announced, and the error: its code, and the field that it names.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no width": (sized(0, 64), "out_of_bounds", "image.width"),
    "no height": (sized(64, 0), "out_of_bounds", "image.height"),
    "negative sides": (sized(-64, -64), "out_of_bounds", "image.width"),
    "one pixel too wide": (sized(16385, 1), "out_of_bounds", "image.width"),
    "2^31": (sized(2**31, 2**31), "out_of_bounds", "image.width"),
    "4000 digits": (sized(10**4000, 1), "out_of_bounds", "image.width"),
    "too many pixels": (sized(16384, 16384), "out_of_bounds", "image.pixels"),
    "a fraction": (sized(64.5, 64), "invalid_request", "image"),
    "a word": (sized("64", 64), "invalid_request", "image"),
    "four channels": (sized(64, 64, channels=4), "invalid_request", "image"),
    "no channels": (sized(64, 64, channels=0), "invalid_request", "image"),
    "an unknown field": (sized(64, 64, path="/etc/passwd"), "invalid_request", "image"),
    "a number": ({"image": 64}, "invalid_request", "image"),
    "a file's path": ({"image": "/etc/passwd"}, "invalid_request", "image"),
    "sides that no model can take": ({"image": {"width": 63, "height": 63}}, "out_of_bounds", "width"),
    "a mask of another size": ({"image": IMAGE, "mask": {"width": 65, "height": 64}}, "invalid_request", "mask"),
    "a mask alone": ({"mask": GREY}, "invalid_request", "mask"),
    "padding without a mask": ({"image": IMAGE, "mask_padding": 8}, "invalid_request", "mask_padding"),
    "strength below": ({"image": IMAGE, "strength": -0.1}, "out_of_bounds", "strength"),
    "strength above": ({"image": IMAGE, "strength": 1.1}, "out_of_bounds", "strength"),
    "no step left": ({"image": IMAGE, "strength": 0.4}, "out_of_bounds", "strength"),
    "20 references": ({"references": [IMAGE] * 20}, "out_of_bounds", "references"),
    "a reference for another model": ({"references": [IMAGE]}, "out_of_bounds", "references"),
    "100 controls": ({"control": [{"id": "edges", "image": IMAGE}] * 100}, "out_of_bounds", "control"),
    "an unknown control": ({"control": [{"id": "edges", "image": IMAGE}]}, "out_of_bounds", "control"),
    "more than a user may send": (sized(1024, 1024), "out_of_bounds", "incoming_bytes"),
    "another model's images": ({"image": IMAGE, "model": "none"}, "unknown_model", "model"),
    "an unknown field of the request": ({"image": IMAGE, "photo": IMAGE}, "invalid_request", "photo"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_of_a_refused_request_are_discarded(raw: socket.socket, name: str) -> None:
    """The client has already sent them, in any size and number."""
    changed, code, field = REFUSED[name]
    send_2(raw, GENERATE | changed)
    for size in (SIZE, 1, 300_000):
        send_image(raw, bytes(size))
    request, error = receive(raw)
    assert (request, error["event"], error["code"], error["field"]) == (7, "error", code, field)
    assert lives_on(raw)


@pytest.mark.parametrize("payload", [b"\xff", b"{", b'{"op":"generate"}', b'{"op":"generate","image":{"width":NaN}}'])
def test_images_of_an_undecodable_request_are_discarded(raw: socket.socket, payload: bytes) -> None:
    raw.sendall(pack_frame(Kind.CONTROL, 7, payload))
    send_image(raw, PIXELS)
    assert receive(raw)[1]["code"] == "invalid_request"
    assert lives_on(raw)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 1, MAX_INPUT_BYTES], ids=str)
def test_another_size_than_announced_fails_the_request(daemon: Daemon, raw: socket.socket, size: int) -> None:
    """Before the payload has arrived. The rest is discarded."""
    send_2(raw, WITH_IMAGE)
    begin_image(raw, size)
    request, error = receive(raw)
    assert (request, error["code"], error["field"]) == (7, "invalid_request", "length")
    assert (error["value"], error["min"], error["max"]) == (size, SIZE, SIZE)
    assert inputs_of(daemon) == 0
    if size < MAX_INPUT_BYTES:
        raw.sendall(bytes(size))
        assert lives_on(raw)


def test_an_image_that_no_request_announced_is_refused(raw: socket.socket) -> None:
    """For no request, before its request, one too many, and for a request without images."""
    for request in (7, 0, 0xFFFFFFFF):
        send_image(raw, b"x", request)
        number, error = receive(raw)
        assert (number, error["code"], error["field"], error["value"]) == (0, "invalid_frame", "request", request)
    whole(raw, WITH_IMAGE, PIXELS)
    send_image(raw, PIXELS)
    assert receive(raw)[1]["code"] == "invalid_frame"
    send_2(raw, GENERATE | {"steps": 20}, 8)
    send_image(raw, PIXELS, 8)
    codes = []
    while (event := receive(raw)[1])["event"] != "done":
        codes += [event["code"]] if event["event"] == "error" else []
    assert codes == ["invalid_frame"] and lives_on(raw)


def test_an_impossibly_long_image_closes_the_connection(raw: socket.socket) -> None:
    send_2(raw, WITH_IMAGE)
    begin_image(raw, MAX_INPUT_BYTES + 1)
    assert receive(raw)[1]["field"] == "length" and raw.recv(1) == b""


def test_uploads_may_be_interleaved_in_single_bytes(raw: socket.socket) -> None:
    """Those of two requests, with a version 1 request and a status in between."""
    small: dict[str, Any] = {"width": 16, "height": 9}
    grey = small | {"channels": 1}
    asked = GENERATE | RAW | {"image": small, "mask": grey, "width": SIDE, "height": SIDE}
    pictures = [bytes([3 * n]) * (16 * 9 * 3) for n in (10, 60)]
    mask = bytes([0, 255]) * (16 * 9 // 2)
    expected = [whole(raw, asked, picture, mask) for picture in pictures]
    assert expected[0] != expected[1]
    numbers = (1, 2)
    frames = [pack_frame(Kind.CONTROL, n, json.dumps(asked).encode()) for n in numbers]
    frames += [pack_frame(Kind.IMAGE, n, picture) for n, picture in zip(numbers, pictures, strict=True)]
    frames += [generate_1(), pack_frame(Kind.CONTROL, 3, b'{"op":"status"}')]
    frames += [pack_frame(Kind.IMAGE, n, mask) for n in reversed(numbers)]
    for byte in b"".join(frames):
        raw.sendall(bytes([byte]))
    found: dict[tuple[int, int], bytes] = {}
    done: set[int] = set()
    while done < {1, 2} or (1, 0) not in found:
        header, payload = receive_frame(raw)
        if header.kind is not Kind.CONTROL:
            found[header.version, header.request] = payload
        elif b'"done"' in payload:
            done.add(header.request)
    assert [found[2, number] for number in numbers] == expected


def test_an_upload_can_be_cancelled_by_its_request(daemon: Daemon, raw: socket.socket) -> None:
    send_2(raw, EVERYTHING)
    begin_image(raw, 512 * 512 * 3, sent=1000)
    wait_for(lambda: inputs_of(daemon) == 1)
    raw.sendall(bytes(512 * 512 * 3 - 1000))
    begin_image(raw, 512 * 512, sent=512 * 512)
    last_of(raw)  # it had all of its images
    send_2(raw, EVERYTHING)
    send_2(raw, {"op": "cancel", "request": 7}, 8)
    assert [receive(raw) for _ in range(2)] == [
        (7, {"event": "error", "code": "cancelled", "message": "cancelled"}),
        (8, {"event": "done"}),
    ]
    send_image(raw, PIXELS)
    assert lives_on(raw)
    assert whole(raw, WITH_IMAGE | RAW, PIXELS)


@pytest.mark.parametrize(
    "cancel", [{}, {"request": None}, {"job": 0}, {"request": 5}, {"request": 0, "job": 0}], ids=str
)
def test_a_cancel_that_names_no_upload_ends_none(raw: socket.socket, cancel: dict[str, Any]) -> None:
    send_2(raw, WITH_IMAGE, 0)
    send_2(raw, {"op": "cancel", **cancel}, 8)
    request, error = receive(raw)
    assert (request, error["code"]) == (8, "invalid_request")
    send_image(raw, PIXELS, 0)
    assert last_of(raw, 0)["event"] == "done"


def test_a_number_whose_images_are_arriving_is_in_flight(raw: socket.socket) -> None:
    alone = whole(raw, WITH_IMAGE | RAW, PIXELS)
    send_2(raw, WITH_IMAGE | RAW)
    send_2(raw, WITH_IMAGE)
    request, error = receive(raw)
    assert (request, error["code"], error["field"]) == (7, "invalid_request", "request")
    send_image(raw, PIXELS)
    assert image_of(raw) == alone


def test_a_number_of_a_refused_request_may_be_used_again(raw: socket.socket) -> None:
    alone = whole(raw, WITH_IMAGE | RAW, PIXELS)
    send_2(raw, WITH_IMAGE | {"steps": 0})
    send_image(raw, bytes(SIZE))
    send_2(raw, WITH_IMAGE | RAW)
    send_image(raw, PIXELS)
    assert receive(raw)[1]["field"] == "steps"
    assert image_of(raw) == alone


@pytest.mark.parametrize("sent", ["nothing", "half a header", "half an image", "one of two", "both"])
def test_a_client_that_dies_leaves_nothing(daemon: Daemon, sent: str) -> None:
    image, mask = 512 * 512 * 3, 512 * 512
    with daemon.connect() as dying:
        send_2(dying, EVERYTHING | {"steps": 100, "images": 8})
        if sent == "half a header":
            dying.sendall(b"WEVE\0\2\0\x11")
        elif sent != "nothing":
            begin_image(dying, image, sent=image if sent in ("one of two", "both") else image // 2)
            wait_for(lambda: inputs_of(daemon) == 1)
        if sent == "both":
            begin_image(dying, mask, sent=mask)
            while receive(dying)[1]["event"] != "progress":
                pass
    assert nothing_is_left(daemon)


def test_announced_images_that_do_not_arrive_time_out(daemon: Daemon, limited: Callable[[str], socket.socket]) -> None:
    with limited("upload_seconds = 0.3") as raw:
        send_2(raw, GENERATE | {"image": IMAGE, "mask": GREY})
        send_image(raw, PIXELS)
        request, error = receive(raw)
        assert (request, error["code"], error["field"], error["max"]) == (7, "timed_out", "upload_seconds", 0.3)
        assert inputs_of(daemon) == 0
        send_image(raw, bytes(GREY_SIZE))  # too late
        assert lives_on(raw)


def test_time_runs_out_in_the_middle_of_a_frame(daemon: Daemon, limited: Callable[[str], socket.socket]) -> None:
    """The request fails, and the frame can still be completed."""
    with limited("upload_seconds = 0.3") as raw:
        send_2(raw, WITH_IMAGE)
        begin_image(raw, SIZE, sent=100)
        assert receive(raw)[1]["code"] == "timed_out" and inputs_of(daemon) == 0
        raw.sendall(bytes(SIZE - 100))
        assert lives_on(raw)


def test_an_image_that_stops_halfway_drops_the_client(limited: Callable[[str], socket.socket], daemon: Daemon) -> None:
    with limited("frame_seconds = 0.3") as raw, daemon.client() as other:
        send_2(raw, WITH_IMAGE)
        begin_image(raw, SIZE, sent=SIZE - 1)
        assert raw.recv(1) == b"" and other.status().version
        assert "not complete in time" in wait_for(lambda: daemon.events("client_dropped"))[-1]["reason"]


def test_all_images_of_a_user_count_until_their_jobs_are_over(daemon: Daemon, raw: socket.socket) -> None:
    """On all of the user's connections, from the announcement on."""
    with daemon.connect() as other:
        send_2(other, WITH_IMAGE | {"steps": 100, "images": 8})
        send_2(other, GENERATE | small_pair(), 9)
        for message, field in ((EVERYTHING, "incoming_bytes"), (GENERATE | small_pair(), "incoming_images")):
            assert lives_on(other)  # they have been announced
            send_2(raw, message)
            error = receive(raw)[1]
            assert (error["code"], error["field"]) == ("queue_full", field)
            assert f"({field} is {error['max']}, of which " in error["message"]
        send_2(other, {"op": "cancel", "request": 9}, 8)
        send_image(other, PIXELS)
        while receive(other)[1]["event"] != "progress":
            pass
        send_2(raw, EVERYTHING)
        assert receive(raw)[1]["field"] == "incoming_bytes"
        send_2(other, {"op": "cancel", "request": 7}, 8)
        assert last_of(other)["code"] == "cancelled"
        send_2(raw, EVERYTHING)
        assert lives_on(raw)


def small_pair() -> dict[str, Any]:
    return {"image": {"width": 1, "height": 1}, "mask": {"width": 1, "height": 1}, "width": SIDE, "height": SIDE}


def test_a_queue_that_fills_meanwhile_refuses_the_upload(
    limited: Callable[[str], socket.socket], daemon: Daemon
) -> None:
    with limited("queue = 1") as raw, daemon.client() as other:
        send_2(raw, WITH_IMAGE)
        running = other.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))
        send_2(raw, GENERATE, 8)
        assert receive(raw)[1]["event"] == "queued"
        send_image(raw, PIXELS)
        assert last_of(raw)["field"] == "queue" and inputs_of(daemon) == 0


def test_a_full_queue_refuses_images_before_they_come(limited: Callable[[str], socket.socket], daemon: Daemon) -> None:
    with limited("queue = 1") as raw, daemon.client() as other:
        running = other.generate(PROMPT, model="shapes", steps=100, images=8)
        wait_for(lambda: isinstance(next(running).event, Progress))
        send_2(raw, GENERATE, 8)
        send_2(raw, WITH_IMAGE)
        send_image(raw, PIXELS)
        assert last_of(raw)["field"] == "queue"


def test_a_reload_in_the_middle_changes_nothing(limited: Callable[[str], socket.socket], daemon: Daemon) -> None:
    with limited("") as raw:
        alone = whole(raw, WITH_IMAGE | RAW, PIXELS)
        send_2(raw, WITH_IMAGE | RAW)
        begin_image(raw, SIZE)
        daemon.reload(f"[limits]\n{LIMITS}\nupload_seconds = 0.3\n" + MODEL)
        raw.sendall(PIXELS)
        assert image_of(raw) == alone


@pytest.mark.parametrize("stage", ["idle", "running"])
def test_a_worker_that_dies_costs_at_most_the_running_job(daemon: Daemon, raw: socket.socket, stage: str) -> None:
    """Killed before it gets the images, the next worker gets them; killed later, the job fails. The queued one, which
    has images too, is not affected."""
    alone = whole(raw, WITH_IMAGE | RAW, PIXELS)
    with daemon.connect() as other:
        if stage == "idle":
            os.kill(daemon.pid_of("worker"), signal.SIGKILL)
        send_2(raw, WITH_IMAGE | RAW | ({"steps": 100, "images": 8} if stage == "running" else {}))
        send_image(raw, PIXELS)
        send_2(other, WITH_IMAGE | RAW)
        send_image(other, PIXELS)
        if stage == "running":
            while receive(raw)[1]["event"] != "progress":
                pass
            os.kill(daemon.pid_of("worker"), signal.SIGKILL)
            assert last_of(raw)["code"] == "worker_failed"
        else:
            assert image_of(raw) == alone
        assert image_of(other) == alone


def test_a_stop_ends_an_upload_with_an_error() -> None:
    daemon = Daemon(f"[limits]\n{LIMITS}\n" + MODEL).wait_until_serving()
    with daemon.connect() as raw:
        send_2(raw, WITH_IMAGE)
        begin_image(raw, SIZE, sent=100)
        assert lives_on_mid_frame(daemon)
        assert daemon.stop() == 0
        assert receive(raw) == (7, {"event": "error", "code": "shutting_down", "message": "the daemon is stopping"})


def lives_on_mid_frame(daemon: Daemon) -> bool:
    with daemon.client() as client:
        return bool(client.status().version)
