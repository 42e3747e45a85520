"""Invalid input over the real socket: each gets its error, and the connection stays open where it can."""

import json
import os
import socket
import struct
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import receive_frame
from weave.broker.admission.audit import LINES
from weave.protocol.frames import Kind, pack_frame
from weave.protocol.version1 import Code, Failure, decode_reply

GENERATE = {"op": "generate", "model": "shapes", "prompt": "a red circle", "steps": 2}


def send(connection: socket.socket, payload: bytes, request: int = 7) -> None:
    connection.sendall(pack_frame(Kind.CONTROL, request, payload))


def receive(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    header, payload = receive_frame(connection)
    return header.request, json.loads(payload)


def lives_on(connection: socket.socket) -> bool:
    send(connection, b'{"op":"status"}', 8)
    return receive(connection)[1]["event"] == "status"


# The start of the next frame is unknown.
HEADERS = {
    "magic": struct.pack(">4sHHII", b"HTTP", 2, 0x10, 2, 1),
    "magic of another version": struct.pack(">4sHHII", b"HTTP", 3, 0x10, 2, 1),
    "version of no length": struct.pack(">4sHHII", b"WEVE", 3, 0x10, 0, 1),
    "version and over 10 MiB": struct.pack(">4sHHII", b"WEVE", 3, 0x10, (10 << 20) + 1, 1),
    "kind of no length": struct.pack(">4sHHII", b"WEVE", 2, 0x12, 0, 1),
    "kind and over 64 KiB": struct.pack(">4sHHII", b"WEVE", 2, 0x12, 65537, 1),
    "length zero": struct.pack(">4sHHII", b"WEVE", 2, 0x10, 0, 1),
    "length over 64 KiB": struct.pack(">4sHHII", b"WEVE", 2, 0x10, 65537, 1),
    "length huge": struct.pack(">4sHHII", b"WEVE", 2, 0x10, 0xFFFFFFFF, 1),
}
# The start of the next frame is known. The length, and the version of the answer.
IN_STEP = {
    "version": (struct.pack(">4sHH", b"WEVE", 3, 0x10), 2, 2),
    "version zero": (struct.pack(">4sHH", b"WEVE", 0, 0x10), 1, 2),
    "version and 10 MiB": (struct.pack(">4sHH", b"WEVE", 9, 1), 10 << 20, 2),
    "kind": (struct.pack(">4sHH", b"WEVE", 2, 0x12), 2, 2),
    "kind and 64 KiB": (struct.pack(">4sHH", b"WEVE", 2, 0xFFFF), 65536, 2),
    "request of an image": (struct.pack(">4sHH", b"WEVE", 2, 0x11), 2, 2),
    "kind of version 1": (struct.pack(">4sHH", b"WEVE", 1, 0x10), 3, 1),
    "kind of version 1 and 10 MiB": (struct.pack(">4sHH", b"WEVE", 1, 2), 10 << 20, 1),
    "reserved": (struct.pack(">4sHH", b"WEVE", 1, 1), 100, 1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_header_gets_an_error_and_closes_the_connection(raw: socket.socket, name: str) -> None:
    # A client that has used version 2 is answered in it, even if its next header names another version.
    assert lives_on(raw)
    raw.sendall(HEADERS[name] + b"{}")
    request, error = receive(raw)
    assert (request, error["code"]) == (0, "invalid_frame")
    assert error["field"] == name.split()[0]
    assert raw.recv(1) == b""


@pytest.mark.parametrize("name", IN_STEP)
def test_a_bad_header_with_a_valid_length_skips_its_frame(raw: socket.socket, name: str) -> None:
    assert lives_on(raw)
    start, length, version = IN_STEP[name]
    for _ in range(2):
        raw.sendall(start + struct.pack(">II", length, 1))
        # Before the payload has arrived.
        header, payload = receive_frame(raw)
        assert header.version == version
        if version == 2:
            error = json.loads(payload)
            assert (header.request, error["code"], error["field"]) == (0, "invalid_frame", name.split()[0])
        else:
            reply = decode_reply(header.kind, payload)
            assert isinstance(reply, Failure) and (reply.request_id, reply.code) == (bytes(8), Code.INTERNAL)
        # A payload that looks like a frame is not parsed as one.
        status = pack_frame(Kind.CONTROL, 5, b'{"op":"status"}')
        raw.sendall((status * (length // len(status) + 1))[:length])
        assert lives_on(raw)


PAYLOADS: dict[str, tuple[bytes, str | None]] = {
    "not JSON": (b"hello", None),
    "invalid UTF-8": (b'{"op":"generate","prompt":"\xff\xfe"}', None),
    "half a surrogate": (b'{"op":"generate","prompt":"\\ud800","model":"shapes"}', None),
    "an array": (b"[1,2]", None),
    "deep nesting": (b"[" * 60000, None),
    "no op": (b"{}", "op"),
    "unknown op": (b'{"op":"exec"}', "op"),
    "unknown field": (b'{"op":"status","path":"/etc/passwd"}', "path"),
    "no prompt": (b'{"op":"generate"}', "prompt"),
    "string for a number": (b'{"op":"generate","prompt":"x","width":"64"}', "width"),
    "fraction for an integer": (b'{"op":"generate","prompt":"x","steps":1.5}', "steps"),
    "true for a number": (b'{"op":"generate","prompt":"x","steps":true}', "steps"),
    "NaN": (b'{"op":"generate","prompt":"x","cfg_scale":NaN}', None),
    "infinity": (b'{"op":"generate","prompt":"x","cfg_scale":1e999}', "cfg_scale"),
    "minus infinity": (b'{"op":"generate","prompt":"x","cfg_scale":-1e999}', "cfg_scale"),
    "a number of 5000 digits": (b'{"op":"generate","prompt":"x","seed":' + b"9" * 5000 + b"}", "seed"),
    "unknown format": (b'{"op":"generate","prompt":"x","format":"gif"}', "format"),
    "loras that are IDs": (b'{"op":"generate","prompt":"x","loras":["a"]}', "loras"),
    "loras in an object": (b'{"op":"generate","prompt":"x","loras":{"a":1}}', "loras"),
    "a LoRA without an ID": (b'{"op":"generate","prompt":"x","loras":[{"weight":1}]}', "loras"),
    "a LoRA with a path": (b'{"op":"generate","prompt":"x","loras":[{"id":"a","path":"/x"}]}', "loras"),
    "a LoRA with a word as weight": (b'{"op":"generate","prompt":"x","loras":[{"id":"a","weight":"1"}]}', "loras"),
    "a LoRA of infinite weight": (b'{"op":"generate","prompt":"x","loras":[{"id":"a","weight":1e999}]}', "loras"),
    "embeddings that are objects": (b'{"op":"generate","prompt":"x","embeddings":[{"id":"a"}]}', "embeddings"),
    "embeddings in a string": (b'{"op":"generate","prompt":"a","embeddings":"a"}', "embeddings"),
    "cancel of nothing": (b'{"op":"cancel"}', "job"),
    "cancel of both": (b'{"op":"cancel","job":1,"request":1}', "job"),
    "cancel of an unknown job": (b'{"op":"cancel","job":99999}', "job"),
    "cancel of an unknown request": (b'{"op":"cancel","request":99999}', "request"),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_bad_payload_gets_an_error_and_the_connection_stays(raw: socket.socket, name: str) -> None:
    payload, field = PAYLOADS[name]
    send(raw, payload)
    request, error = receive(raw)
    assert (request, error["event"], error["code"], error.get("field")) == (7, "error", "invalid_request", field)
    assert lives_on(raw)


BOUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "width below": ({"width": 63}, "width"),
    "width above": ({"width": 136}, "width"),
    "width negative": ({"width": -64}, "width"),
    "height above": ({"height": 136}, "height"),
    "steps below": ({"steps": 0}, "steps"),
    "steps above": ({"steps": 101}, "steps"),
    "cfg_scale below": ({"cfg_scale": -0.1}, "cfg_scale"),
    "cfg_scale above": ({"cfg_scale": 20.1}, "cfg_scale"),
    "seed below": ({"seed": -1}, "seed"),
    "seed above": ({"seed": 2**64}, "seed"),
    "seed of 4000 digits": ({"seed": 10**4000}, "seed"),
    "images below": ({"images": 0}, "images"),
    "images above": ({"images": 9}, "images"),
    "preview_every below": ({"preview_every": -1}, "preview_every"),
    "prompt empty": ({"prompt": ""}, "prompt_bytes"),
    "prompt of too many characters": ({"prompt": "x" * 2049}, "prompt_characters"),
    "prompt of too many bytes": ({"prompt": "x" * 60000}, "prompt_bytes"),
    "negative prompt of too many characters": ({"negative_prompt": "x" * 2049}, "negative_prompt_characters"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_an_out_of_bounds_error_names_field_value_and_bound(raw: socket.socket, name: str) -> None:
    changed, field = BOUNDS[name]
    send(raw, json.dumps(GENERATE | changed).encode())
    request, error = receive(raw)
    assert (request, error["code"], error["field"]) == (7, "out_of_bounds", field)
    assert "value" in error and error["min"] <= error["max"]
    assert lives_on(raw)


@pytest.mark.parametrize(
    "changed",
    [{"steps": 1}, {"cfg_scale": 0.0}, {"cfg_scale": 20.0}, {"seed": 0}, {"seed": 2**64 - 1}, {"images": 2}]
    + [{"prompt": "x"}, {"prompt": "x" * 2048}, {"prompt": "\u20ac" * 2048}, {"negative_prompt": "y" * 2048}],
    ids=str,
)
def test_a_value_just_within_bounds_is_accepted(raw: socket.socket, changed: dict[str, Any]) -> None:
    send(raw, json.dumps({**GENERATE, "deliver": "fd", **changed}).encode())
    while (event := receive(raw)[1])["event"] != "done":
        assert event["event"] != "error", event


@pytest.mark.parametrize(
    "model", ["nothing", "../../etc", "/etc/passwd", "shapes/../shapes", "", "x" * 1000, "shapes\0"]
)
def test_a_model_id_that_is_not_in_the_list_is_unknown(raw: socket.socket, model: str) -> None:
    for op in ("generate", "load_model"):
        message = {"op": op, "model": model} | ({"prompt": "x"} if op == "generate" else {})
        send(raw, json.dumps(message).encode())
        error = receive(raw)[1]
        assert (error["code"], error["field"]) == ("unknown_model", "model")
    assert lives_on(raw)


def test_an_unknown_scheduler_error_lists_the_known_ones(raw: socket.socket) -> None:
    send(raw, json.dumps(GENERATE | {"scheduler": "os.system"}).encode())
    error = receive(raw)[1]
    assert (error["code"], error["field"]) == ("out_of_bounds", "scheduler") and "ddim" in error["message"]


def test_a_request_number_in_flight_cannot_be_used_again(raw: socket.socket) -> None:
    send(raw, json.dumps(GENERATE | {"steps": 50}).encode())
    send(raw, json.dumps(GENERATE).encode())
    events = []
    while not events or events[-1]["event"] not in ("done", "error"):
        events.append(receive(raw)[1])
    assert (events[-1]["code"], events[-1]["field"]) == ("invalid_request", "request")


def test_a_frame_in_single_bytes_is_a_frame(raw: socket.socket) -> None:
    for byte in pack_frame(Kind.CONTROL, 7, b'{"op":"status"}'):
        raw.sendall(bytes([byte]))
    assert receive(raw)[1]["event"] == "status"


def test_a_frame_that_stops_halfway_is_dropped(shared_daemon: Daemon, raw: socket.socket) -> None:
    raw.sendall(pack_frame(Kind.CONTROL, 7, b'{"op":"status"}')[:20])
    raw.shutdown(socket.SHUT_WR)
    assert raw.recv(1) == b""
    with shared_daemon.client() as client:
        assert client.status().version


def test_a_flood_of_refusals_is_counted_instead_of_logged(daemon: Daemon) -> None:
    with daemon.connect() as raw:
        for _ in range(500):
            send(raw, b'{"op":"exec"}')
            assert receive(raw)[1]["code"] == "invalid_request"
    daemon.stop()
    lines, counts = daemon.events("request_refused"), daemon.events("suppressed")
    assert len(lines) == LINES and lines[0]["peer"]["pid"] == os.getpid()
    assert [(count["of"], count["uid"]) for count in counts] == [("request_refused", os.getuid())]
    assert counts[0]["lines"] == 500 - LINES
