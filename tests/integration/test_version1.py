"""Version 1 over the real socket. The golden frames cover every field and error; these tests need a running daemon."""

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.wire import PROMPT, generate_1, receive_1, receive_2, send_2
from weave.protocol.client_messages import Progress
from weave.protocol.version1 import Code, Failure, Response

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "version1.json").read_text())


def ask(connection: socket.socket, frame: bytes) -> Response:
    connection.sendall(frame)
    reply = receive_1(connection)
    assert isinstance(reply, Response), reply
    return reply


def code_of(connection: socket.socket, frame: bytes) -> Code:
    connection.sendall(frame)
    reply = receive_1(connection)
    assert isinstance(reply, Failure), reply
    return reply.code


@pytest.mark.parametrize("bad", GOLDEN["bad"], ids=[bad["name"] for bad in GOLDEN["bad"]])
def test_a_bad_version_1_frame_closes_only_if_unrecoverable(raw: socket.socket, bad: dict[str, object]) -> None:
    frame = bytes.fromhex(str(bad["hex"]))
    raw.sendall(frame)
    reply = receive_1(raw)
    assert isinstance(reply, Failure) and reply.code == bad["code"] and reply.message
    if bad["closes"]:
        assert reply.request_id == bytes(8)
        assert raw.recv(1) == b""
    else:
        known = len(frame) >= 24 and not bad.get("skipped")
        assert reply.request_id == (frame[16:24] if known else bytes(8))
        assert code_of(raw, generate_1(steps=0)) is Code.BAD_STEPS


def test_both_versions_give_the_same_image(shared_daemon: Daemon, raw: socket.socket) -> None:
    reply = ask(raw, generate_1(steps=4))
    assert (reply.request_id, reply.width, reply.height) == (b"REQUEST1", 64, 64) and reply.milliseconds > 0
    with shared_daemon.client() as client:
        same = generate(client, PROMPT.decode(), width=64, height=64, steps=4, seed=1, cfg_scale=3.0, format="raw")
    assert reply.pixels == images(same)[0].data


def test_seed_0_is_random(raw: socket.socket) -> None:
    assert ask(raw, generate_1(seed=0)).pixels != ask(raw, generate_1(seed=0)).pixels


def test_many_requests_in_flight_each_get_their_own_image(raw: socket.socket) -> None:
    alone = {seed: ask(raw, generate_1(seed=seed)).pixels for seed in range(1, 7)}
    for seed in alone:
        raw.sendall(generate_1(seed=seed, request_id=seed.to_bytes(8, "little")))
    for _ in alone:
        reply = receive_1(raw)
        assert isinstance(reply, Response)
        assert reply.pixels == alone[int.from_bytes(reply.request_id, "little")]


def test_a_bad_header_is_answered_in_the_version_last_used(raw: socket.socket) -> None:
    ask(raw, generate_1())
    send_2(raw, {"op": "status"})
    assert receive_2(raw)["event"] == "status"
    ask(raw, generate_1())
    assert code_of(raw, b"HTTP" + bytes(12)) is Code.BAD_MAGIC


def test_an_unsupported_version_error_lists_the_supported_ones(raw: socket.socket) -> None:
    raw.sendall(b"WEVE\0\7" + bytes(10))
    reply = receive_1(raw)
    assert isinstance(reply, Failure) and reply.code is Code.UNSUPPORTED_VERSION and "1, 2" in reply.message


def test_ten_mebibytes_of_garbage_are_refused_and_skipped(raw: socket.socket) -> None:
    raw.sendall(generate_1(data=b"x" * (10 * 1024 * 1024 - 60), slices=[(0, 5)] * 3))
    reply = receive_1(raw)
    assert isinstance(reply, Failure) and reply.code is Code.BAD_PROMPT and "6144" in reply.message
    ask(raw, generate_1())


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    config = "[limits]\nqueue = 2\n"
    for number, name in enumerate(("sdxl", "sd3"), start=5):
        tiny_models.make(name, folder / name)
        config += f'[models.{name}]\npath = "{folder / name}"\nfamily = "{name}"\nv1_id = {number}\n'
    config += f'[models.shapes]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\nv1_id = 9\n'
    daemon = Daemon(config).wait_until_serving()
    yield daemon
    daemon.stop()


def test_a_model_is_picked_by_its_number_and_loads_by_itself(families: Daemon) -> None:
    with families.connect() as raw, families.client() as client:
        for number, model in ((9, "shapes"), (5, "sdxl"), (0, "sdxl")):
            ask(raw, generate_1(model=number))
            assert client.status().model == model
        assert code_of(raw, generate_1(model=1)) is Code.UNKNOWN_MODEL
        assert {model.id: model.v1_id for model in client.list_models().models} == {"sdxl": 5, "sd3": 6, "shapes": 9}


def test_each_text_encoder_gets_its_own_prompt(families: Daemon) -> None:
    texts = b"a red circlea blue squarea green star"
    third = [(0, 12), (0, 12), (25, 12)]
    with families.connect() as raw:
        for number, sees_third in ((6, True), (5, False)):
            same = ask(raw, generate_1(model=number, data=texts, slices=[(0, 12)] * 3)).pixels
            assert same == ask(raw, generate_1(model=number, data=b"a red circle" * 3, slices=[(0, 12)] * 3)).pixels
            assert (same != ask(raw, generate_1(model=number, data=texts, slices=third)).pixels) is sees_third
            second = [(0, 12), (12, 13), (0, 12)]
            assert same != ask(raw, generate_1(model=number, data=texts, slices=second)).pixels


def test_a_full_queue_is_code_99(families: Daemon) -> None:
    with families.connect() as raw:
        for _ in range(6):
            raw.sendall(generate_1(model=9, steps=60))
        codes = [reply.code for reply in (receive_1(raw) for _ in range(6)) if isinstance(reply, Failure)]
        assert codes and set(codes) == {Code.INTERNAL}


def test_a_timeout_is_code_10_and_the_next_request_is_served() -> None:
    model = f'[models.shapes]\npath = "{DEMO_MODEL}"\nfamily = "sd1"\n'
    daemon = Daemon(f"[limits]\nv1_seconds = 3.0\n{model}").wait_until_serving()
    try:
        with daemon.connect() as raw, daemon.client() as client:
            client.load_model("shapes")
            assert code_of(raw, generate_1(width=192, height=192, steps=100)) is Code.TIMED_OUT
            wait_for(lambda: client.status().worker == "idle")
            ask(raw, generate_1(steps=1))
    finally:
        daemon.stop()


def test_a_killed_worker_is_code_99_and_the_next_request_served(daemon: Daemon) -> None:
    with daemon.connect() as raw, daemon.client() as client:
        expected = ask(raw, generate_1()).pixels
        raw.sendall(generate_1(steps=100))
        killed = None
        # A worker killed before it has begun the job is replaced without an error.
        while not select.select([raw], [], [], 0.05)[0]:
            with suppress(StopIteration, FileNotFoundError, ProcessLookupError):  # the previous one is being reaped
                if client.status().worker == "running" and (worker := daemon.pid_of("worker")) != killed:
                    os.kill(worker, signal.SIGKILL)
                    killed = worker
        reply = receive_1(raw)
        assert isinstance(reply, Failure) and reply.code is Code.INTERNAL
        assert ask(raw, generate_1()).pixels == expected


def test_a_client_that_leaves_takes_its_version_1_job_along(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        with shared_daemon.connect() as raw:
            raw.sendall(generate_1(steps=100) * 8)
            wait_for(lambda: client.status().queue_length >= 5)
        wait_for(lambda: client.status().queue_length == 0)
        assert any(isinstance(answer.event, Progress) for answer in generate(client))
