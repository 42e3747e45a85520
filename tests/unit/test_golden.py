"""Golden frames against the Python implementation; clients/go checks the same files."""

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuzz.uploads import queued
from weave.client.codec import Decoder, ProtocolError, request_frames
from weave.client.pixels import Upload
from weave.protocol import version1
from weave.protocol.channel import close_all, sealed_memfd
from weave.protocol.client_messages import Generate, decode_event, decode_op, encode
from weave.protocol.errors import ErrorCode, FrameError, RequestError
from weave.protocol.frames import FrameReader, Kind, pack_header
from weave.protocol.inputs import inputs_of

FOLDER = Path(__file__).parents[1] / "golden"
ONE, TWO = (json.loads((FOLDER / f"version{number}.json").read_text()) for number in (1, 2))


def cases(entries: list[dict[str, Any]], sender: str) -> Any:
    return pytest.mark.parametrize("golden", [e for e in entries if e["from"] == sender], ids=lambda e: e["name"])


def unframe(data: bytes, *, from_client: bool) -> Any:
    reader = FrameReader(from_client=from_client)
    reader.feed(data)
    frame = reader.next_frame()
    assert frame is not None and reader.held == 0
    return frame


@cases(ONE["frames"], "client")
def test_a_version_1_request(golden: dict[str, Any]) -> None:
    data, message = bytes.fromhex(golden["hex"]), golden["message"]
    header, payload = unframe(data, from_client=True)
    request = version1.decode_request(payload, header.length)
    wanted = msgspec.convert({**message, "request_id": b"", "prompts": tuple(message["prompts"])}, version1.Request)
    wanted = msgspec.structs.replace(wanted, request_id=bytes.fromhex(message["request_id"]))
    assert request == wanted
    if golden["name"] != "overlapping slices":
        assert version1.encode_request(wanted) == data


@cases(ONE["frames"], "daemon")
def test_a_version_1_reply(golden: dict[str, Any]) -> None:
    data, message = bytes.fromhex(golden["hex"]), golden["message"]
    header, payload = unframe(data, from_client=False)
    reply = version1.decode_reply(header.kind, payload)
    identity = bytes.fromhex(message["request_id"])
    if isinstance(reply, version1.Response):
        wanted = (identity, message["milliseconds"], message["width"], message["height"])
        assert (reply.request_id, reply.milliseconds, reply.width, reply.height) == wanted
        assert version1.encode_response_head(*wanted) + reply.pixels == data
    else:
        assert (reply.request_id, reply.code, reply.message) == (identity, message["code"], message["text"])
        assert reply.code.status == message["status"]
        assert version1.encode_failure(reply) == data


@cases(TWO["frames"], "client")
def test_a_version_2_request(golden: dict[str, Any]) -> None:
    header, payload = unframe(bytes.fromhex(golden["hex"]), from_client=True)
    assert (header.version, header.kind, header.request) == (2, Kind.CONTROL, golden["request"])
    message = decode_op(payload)
    assert golden["message"].items() <= json.loads(encode(message)).items()
    assert decode_op(encode(message)) == message


@cases(TWO["uploads"], "client")
def test_a_version_2_request_with_images(golden: dict[str, Any]) -> None:
    request, *images = [bytes.fromhex(frame) for frame in golden["hex"]]
    payloads = tuple(bytes.fromhex(payload) for payload in golden["payloads_hex"])
    message = decode_op(unframe(request, from_client=True)[1])
    assert isinstance(message, Generate) and golden["message"].items() <= json.loads(encode(message)).items()
    announced = inputs_of(message)
    assert [image.size for image in announced] == list(map(len, payloads))
    headers = [pack_header(Kind.IMAGE, golden["request"], len(payload)) for payload in payloads]
    assert images == [header + payload for header, payload in zip(headers, payloads, strict=True)]
    pictures = [Upload(size, partial(iter, [data])) for size, data in zip(announced, payloads, strict=True)]
    sent = b"".join(piece for frame in request_frames(golden["request"], message, pictures) for piece in frame)
    assert sent.endswith(b"".join(images)) and unframe(sent[: -len(b"".join(images))], from_client=True)
    if not (message.control or message.references):  # which that model cannot use
        assert queued([request, *images]) == [list(payloads)]


@cases(TWO["frames"], "daemon")
def test_a_version_2_event(golden: dict[str, Any]) -> None:
    data, message = bytes.fromhex(golden["hex"]), golden["message"]
    event = decode_event(json.dumps(message).encode())
    assert event is not None and says(json.loads(encode(event)), message)
    descriptors = [sealed_memfd("x", bytes(message["size"]))] if message.get("deliver") == "fd" else []
    if message["event"] in ("image", "preview") and golden["kind"] == "control" and not descriptors:
        data += pack_header(Kind.IMAGE, golden["request"], message["size"]) + bytes(message["size"])
    (answer,) = Decoder().feed(data, descriptors)
    assert (answer.request, answer.event) == (golden["request"], event)
    if golden["kind"] == "image":
        assert answer.data == bytes.fromhex(golden["payload_hex"])
    close_all(descriptors)


# What a daemon supports that does not list these bounds, and the default of a model without step caches.
OLDER = ({"min": 0, "max": 0, "multiple": 1}, {"min": 1, "max": 1, "multiple": 1}, {"min": 0.0, "max": 0.0}, "none")


def says(encoded: Any, message: Any) -> bool:
    """Whether they are equal, except for fields newer than the frame: those are empty."""
    if isinstance(message, dict):
        newer = [value for name, value in encoded.items() if name not in message and value not in OLDER]
        return not any(newer) and all(says(encoded[name], value) for name, value in message.items())
    if isinstance(message, list):
        return len(encoded) == len(message) and all(map(says, encoded, message))
    return bool(encoded == message)


@cases(TWO["skipped"], "daemon")
def test_a_skipped_version_2_event(golden: dict[str, Any]) -> None:
    queued = next(frame for frame in TWO["frames"] if frame["name"] == "queued")
    answers = list(Decoder().feed(bytes.fromhex(golden["hex"] + queued["hex"]), []))
    assert [json.loads(encode(answer.event)) for answer in answers] == [queued["message"]]


@cases(TWO["bad"], "client")
def test_a_bad_version_2_request(golden: dict[str, Any]) -> None:
    data = bytes.fromhex(golden["hex"])
    in_header = golden["closes"] or golden.get("skipped")
    with pytest.raises(FrameError if in_header else RequestError) as refused:
        decode_op(unframe(data, from_client=True)[1])
    if isinstance(refused.value, FrameError):
        assert refused.value.skip == (len(data) - 16 if golden.get("skipped") else None)
    assert getattr(refused.value, "field", None) == golden.get("field", getattr(refused.value, "field", None))


@cases(TWO["bad"], "daemon")
def test_a_bad_version_2_event(golden: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(bytes.fromhex(golden["hex"]), []))


def test_every_error_has_a_version_1_code() -> None:
    codes = {error: version1.code_of(error, None) for error in ErrorCode}
    assert codes[ErrorCode.OUT_OF_MEMORY] == 8 and codes[ErrorCode.INTERNAL] == 9 and codes[ErrorCode.TIMED_OUT] == 10
    for error in (ErrorCode.WORKER_FAILED, ErrorCode.QUEUE_FULL, ErrorCode.SHUTTING_DOWN, ErrorCode.CANCELLED):
        assert codes[error] == 99
    assert struct.calcsize(">8sIIIIfQ6I") == 60
