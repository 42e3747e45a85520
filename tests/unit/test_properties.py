"""Both decoders with arbitrary input: any bytes in any pieces are frames or one of the defined errors."""

import json
import math
import struct
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.uploads import queued
from weave.client.codec import Decoder, ProtocolError
from weave.protocol import client_messages, version1
from weave.protocol.client_messages import decode_event, decode_op, encode
from weave.protocol.errors import ErrorCode, FrameError, RequestError
from weave.protocol.frames import (
    MAX_CONTROL_BYTES,
    FrameReader,
    Header,
    Kind,
    pack_frame,
    pack_header,
)
from weave.protocol.metrics import Histogram, Metrics
from weave.protocol.parameters import Defaults
from weave.protocol.text import MODEL_ID

settings.register_profile("weave", max_examples=150, deadline=None, derandomize=True)
settings.load_profile("weave")
# JSON has no others.
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
# Hypothesis knows nothing of msgspec's default factories.
COUNTS = st.integers(0, 2**50)
st.register_type_strategy(
    Histogram,
    st.builds(Histogram, counts=st.lists(COUNTS, min_size=11, max_size=11), sum=st.floats(0, 1e9, allow_nan=False)),
)
st.register_type_strategy(
    Metrics,
    st.builds(
        Metrics,
        connections=COUNTS,
        errors=st.dictionaries(st.sampled_from([*ErrorCode, "of_a_newer_daemon"]), COUNTS),
        images=COUNTS,
        queued_seconds=st.from_type(Histogram),
        loading_seconds=st.from_type(Histogram),
        generating_seconds=st.from_type(Histogram),
    ),
)

PIECE = 64 * 1024
U32 = st.integers(0, 2**32 - 1)
SMALL = st.integers(0, 70_000)

headers = st.builds(
    lambda *fields: struct.pack(">4sHHII", *fields),
    st.sampled_from([b"WEVE", b"WEVE", b"WEVE", b"HTTP"]),
    st.sampled_from([1, 1, 2, 2, 0, 3]),
    st.sampled_from([1, 2, 0xFF, 0x10, 0x11, 7]),
    st.one_of(SMALL, U32),
    st.sampled_from([0, 0, 1, 2**32 - 1]),
)
valid = st.one_of(
    st.builds(lambda p: pack_frame(Kind.CONTROL, 7, p), st.binary(min_size=1, max_size=200)),
    st.builds(lambda p: pack_frame(Kind.GENERATE, 0, p, version=1), st.binary(min_size=1, max_size=20_000)),
)
streams = st.lists(st.one_of(valid, headers, st.binary(max_size=100)), max_size=6).map(b"".join)

# Nor its patterns. Any valid model ID is also a valid name or title.
IDS = st.from_regex(MODEL_ID, alphabet=st.characters(codec="ascii"))
MAYBE = st.none() | IDS
NAMES = st.lists(IDS, max_size=3).map(tuple)
# Nor of its bounds.
TOKENS = st.lists(
    st.builds(client_messages.EncoderTokens, encoder=IDS, used=st.integers(0, 2**20), cut=st.integers(0, 2**20)),
    max_size=8,
).map(tuple)
PATTERNED: dict[type, dict[str, Any]] = {
    client_messages.Loading: {"model": IDS},
    client_messages.Tokens: {"prompt": TOKENS, "negative_prompt": TOKENS},
    client_messages.Done: {"model": MAYBE, "seed": ..., "timings": ...},
    client_messages.Error: {"code": IDS},
    client_messages.JobStatus: {"model": IDS, "state": IDS},
    client_messages.StatusReport: {
        **dict.fromkeys(("version", "mode", "worker"), IDS),
        "features": NAMES,
        **dict.fromkeys(("model", "device", "dtype"), MAYBE),
        "sandbox": st.dictionaries(IDS, NAMES, max_size=3),
    },
    Defaults: {"scheduler": IDS},
    client_messages.ModelOffer: {
        **dict.fromkeys(("id", "family", "title"), IDS),
        "schedulers": NAMES,
        "tasks": NAMES,
        "v1_id": ...,
    },
    client_messages.Models: {"default": MAYBE, "loaded": MAYBE},
}
for struct_type, patterned in PATTERNED.items():
    st.register_type_strategy(struct_type, st.builds(struct_type, **patterned))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read(data: bytes, cuts: list[int], *, from_client: bool) -> tuple[list[Any], str | None]:
    """Every frame, or the reason why it is skipped, then the reason why the stream ended."""
    reader, frames = FrameReader(from_client=from_client), []
    for piece in pieces(data, cuts):
        for part in (piece[at : at + PIECE] for at in range(0, len(piece), PIECE)):
            reader.feed(part)
            try:
                frames += frames_of(reader)
            except FrameError as error:
                return frames, error.message
            if from_client:
                assert reader.held <= MAX_CONTROL_BYTES + PIECE
    return frames, None


def frames_of(reader: FrameReader) -> Iterator[Any]:
    while True:
        try:
            frame = reader.next_frame()
        except FrameError as error:
            if error.skip is None:
                raise
            yield error.message
            continue
        if frame is None:
            return
        yield frame


@given(streams, st.lists(st.integers(0, 2**20), max_size=12), st.booleans())
def test_a_stream_decodes_the_same_in_any_pieces(data: bytes, cuts: list[int], from_client: bool) -> None:
    assert read(data, cuts, from_client=from_client) == read(data, [], from_client=from_client)


@given(st.lists(valid, min_size=1, max_size=5), st.lists(st.integers(0, 2**20), max_size=12))
def test_valid_frames_all_come_out(frames: list[bytes], cuts: list[int]) -> None:
    found, error = read(b"".join(frames), cuts, from_client=True)
    assert error is None and [header.length for header, _ in found] == [len(frame) - 16 for frame in frames]


UPLOADS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.booleans()), min_size=1, max_size=3
)


@given(UPLOADS, st.randoms(use_true_random=False), st.lists(st.integers(0, 2**20), max_size=12))
def test_uploads_arrive_byte_by_byte_in_any_order_and_pieces(
    uploads: list[Any], random: Random, cuts: list[int]
) -> None:
    """The images of several requests on one connection, through the broker's real Connection."""
    requests, frames, expected = [], [], {}
    for number, (width, height, channels, masked) in enumerate(uploads):
        sides = {"width": width, "height": height}
        message = {"op": "generate", "prompt": "x", "width": 64, "height": 64, "image": sides | {"channels": channels}}
        message |= {"mask": sides | {"channels": 1}} if masked else {}
        requests.append(pack_frame(Kind.CONTROL, number, json.dumps(message).encode()))
        images = [random.randbytes(width * height * each) for each in (channels, *([1] if masked else []))]
        expected[number] = images
        frames += [number] * len(images)
    random.shuffle(frames)
    waiting = {number: iter(images) for number, images in expected.items()}
    sent = [pack_frame(Kind.IMAGE, number, next(waiting[number])) for number in frames]
    last = {number: at for at, number in enumerate(frames)}
    stream = b"".join([*requests, *sent])
    assert queued(pieces(stream, cuts)) == [expected[number] for number in sorted(last, key=last.__getitem__)]


def test_ten_mebibytes_of_a_request_are_never_held() -> None:
    size = 10 * 1024 * 1024
    frames, error = read(pack_header(Kind.GENERATE, 0, size, version=1) + bytes(size), [], from_client=True)
    assert error is None and frames[0][0].length == size and len(frames[0][1]) < 7000


def test_a_refused_frame_is_not_buffered_and_the_next_decodes() -> None:
    size, reader = 10 * 1024 * 1024, FrameReader(from_client=True)
    reader.feed(pack_header(Kind.GENERATE, 0, size, version=3))
    with pytest.raises(FrameError, match="unsupported version 3") as refused:
        reader.next_frame()
    assert refused.value.skip == size
    for _ in range(size // PIECE):
        assert reader.skipping and reader.begun is False
        reader.feed(bytes(PIECE))
        assert reader.held == 0
    assert not reader.skipping
    reader.feed(pack_frame(Kind.CONTROL, 7, b"{}"))
    assert reader.next_frame() == (Header(2, Kind.CONTROL, 2, 7), b"{}")


@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_control_payload_is_a_message_or_a_request_error(payload: bytes) -> None:
    try:
        assert isinstance(decode_op(payload), get_args(client_messages.ClientMessage))
    except RequestError as error:
        assert error.message


@given(st.data(), st.binary(max_size=200), st.integers(0, 10))
def test_any_version_1_payload_is_a_request_or_a_request_error(data: st.DataObject, rest: bytes, extra: int) -> None:
    near = st.sampled_from([0, 1, 63, 64, 100, 101, 2048, 2049, 2**32 - 1])
    fields = [data.draw(near) for _ in range(4)]
    scale = data.draw(st.floats(width=32))
    slices = [data.draw(st.one_of(near, st.integers(0, 40))) for _ in range(6)]
    payload = struct.pack(">8sIIIIfQ6I", b"12345678", *fields, scale, 1, *slices) + rest
    try:
        request = version1.decode_request(payload, len(payload) + extra)
    except RequestError as error:
        assert error.field and error.message
    else:
        assert math.isfinite(request.cfg_scale) and all(request.prompts)


@given(st.binary(max_size=70))
def test_a_short_version_1_payload_is_a_request_error(payload: bytes) -> None:
    with pytest.raises(RequestError):
        version1.decode_request(payload[:59], len(payload))


@given(streams, st.lists(st.integers(0, 2**20), max_size=12))
def test_a_client_survives_anything_that_a_daemon_says(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces(data, cuts):
            list(decoder.feed(piece, []))
    except ProtocolError as error:
        assert str(error)


@pytest.mark.parametrize("kind", get_args(client_messages.ClientMessage), ids=lambda kind: kind.__name__)
def test_every_operation_survives_the_round_trip(kind: type) -> None:
    @given(st.from_type(kind))
    def round_trip(message: Any) -> None:
        assert decode_op(encode(message)) == message

    round_trip()


@pytest.mark.parametrize("kind", get_args(client_messages.Event), ids=lambda kind: kind.__name__)
def test_every_event_survives_the_round_trip(kind: type) -> None:
    @settings(max_examples=40)
    @given(st.from_type(kind))
    def round_trip(message: Any) -> None:
        assert decode_event(encode(message)) == message

    round_trip()


def grown(value: Any) -> Any:
    """A message with an additional field in each of its objects, except where the keys are data."""
    if isinstance(value, dict):
        kept = {name: one if name in ("sandbox", "errors") else grown(one) for name, one in value.items()}
        return kept | {"of_a_newer_daemon": [{"": None}]}
    return [grown(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", get_args(client_messages.Event), ids=lambda kind: kind.__name__)
def test_an_unknown_field_changes_no_event(kind: type) -> None:
    @settings(max_examples=40)
    @given(st.from_type(kind))
    def is_skipped(message: Any) -> None:
        newer = json.dumps(grown(json.loads(encode(message)))).encode()
        assert b"of_a_newer_daemon" in newer and decode_event(newer) == message

    is_skipped()


prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=500)
requests = st.builds(
    version1.Request,
    request_id=st.binary(min_size=8, max_size=8),
    model_id=U32,
    width=st.sampled_from(range(64, 1665, 64)),
    height=st.sampled_from(range(64, 1665, 64)),
    steps=st.integers(1, 100),
    cfg_scale=st.floats(0, 20, width=32),
    seed=st.integers(0, 2**64 - 1),
    prompts=st.tuples(prompts, prompts, prompts),
)


@given(requests)
def test_a_version_1_request_survives_the_round_trip(request: version1.Request) -> None:
    ((header, payload),), _ = read(version1.encode_request(request), [], from_client=True)
    assert version1.decode_request(payload, header.length) == request


@given(st.binary(min_size=8, max_size=8), st.sampled_from(version1.Code), st.text(max_size=100))
def test_a_version_1_failure_survives_the_round_trip(identity: bytes, code: version1.Code, text: str) -> None:
    failure = version1.Failure(request_id=identity, code=code, message=text.encode(errors="replace").decode())
    ((header, payload),), _ = read(version1.encode_failure(failure), [], from_client=False)
    assert version1.decode_reply(header.kind, payload) == failure
