"""Version 1: fixed binary payloads, big-endian, for existing clients (docs/protocol.md, "Version 1")."""

import enum
import struct
from typing import TypeAlias

from msgspec import Struct

from weave.protocol.bounds import FloatRange, Range, check_range
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.frames import MAX_VERSION_1_BYTES, Kind, pack_frame, pack_header

NO_REQUEST = bytes(8)
ENCODERS = ("clip_l", "clip_g", "t5")

_FIELDS = struct.Struct(">8sIIIIfQ" + "II" * len(ENCODERS))
_RESPONSE = struct.Struct(">8sIIIIII")
_ERROR = struct.Struct(">8sIIH")
_CHANNELS = 3
_OK = 200

_SIDE = Range(64, 2048, 64)
_STEPS = Range(1, 100)
_CFG_SCALE = FloatRange(0.0, 20.0)
_PROMPT_BYTES = Range(1, 2048)
_PROMPT_DATA_BYTES = Range(1, len(ENCODERS) * _PROMPT_BYTES.max)
_PAYLOAD_BYTES = Range(1, MAX_VERSION_1_BYTES)


class Code(enum.IntEnum):
    """Why a request failed."""

    BAD_MAGIC = 1
    UNSUPPORTED_VERSION = 2
    UNKNOWN_MODEL = 3
    BAD_PROMPT = 4
    BAD_DIMENSIONS = 5
    BAD_STEPS = 6
    BAD_CFG_SCALE = 7
    OUT_OF_MEMORY = 8
    GPU_FAILURE = 9
    TIMED_OUT = 10
    INTERNAL = 99

    @property
    def status(self) -> int:
        """400 if the request is at fault, else 500."""
        return 400 if self <= Code.BAD_CFG_SCALE else 500


_CODE_OF_FIELD = {
    "magic": Code.BAD_MAGIC,
    "version": Code.UNSUPPORTED_VERSION,
    "model": Code.UNKNOWN_MODEL,
    "width": Code.BAD_DIMENSIONS,
    "height": Code.BAD_DIMENSIONS,
    "pixels": Code.BAD_DIMENSIONS,
    "payload_len": Code.BAD_DIMENSIONS,
    "steps": Code.BAD_STEPS,
    "cfg_scale": Code.BAD_CFG_SCALE,
    "prompt_data": Code.BAD_PROMPT,
    "prompt": Code.BAD_PROMPT,
    "prompt_bytes": Code.BAD_PROMPT,
    "prompt_characters": Code.BAD_PROMPT,
    **dict.fromkeys(ENCODERS, Code.BAD_PROMPT),
}
_CODE_OF_ERROR: dict[str, Code] = {
    ErrorCode.OUT_OF_MEMORY: Code.OUT_OF_MEMORY,
    ErrorCode.INTERNAL: Code.GPU_FAILURE,
    ErrorCode.TIMED_OUT: Code.TIMED_OUT,
}


def code_of(error: str, field: str | None) -> Code:
    """The version 1 code for an error code of version 2; INTERNAL where version 1 has no equivalent."""
    if error in (ErrorCode.INVALID_FRAME, ErrorCode.INVALID_REQUEST, ErrorCode.UNKNOWN_MODEL, ErrorCode.OUT_OF_BOUNDS):
        return _CODE_OF_FIELD.get(field or "", Code.INTERNAL)
    return _CODE_OF_ERROR.get(error, Code.INTERNAL)


class Request(Struct, frozen=True, kw_only=True):
    """A generate request. `prompts` has one prompt for each of ENCODERS; seed 0 requests a random seed."""

    request_id: bytes
    model_id: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int
    prompts: tuple[str, str, str]


class Response(Struct, frozen=True, kw_only=True):
    """An image: `pixels` are RGB, height x width x 3 bytes, rows from the top."""

    request_id: bytes
    milliseconds: int
    width: int
    height: int
    pixels: bytes


class Failure(Struct, frozen=True, kw_only=True):
    """An error; `message` is for people."""

    request_id: bytes
    code: Code
    message: str


Reply: TypeAlias = Response | Failure


def request_id(payload: bytes) -> bytes:
    """The 8 bytes that every reply echoes; zeros if the payload is too short."""
    return payload[:8] if len(payload) >= len(NO_REQUEST) else NO_REQUEST


def decode_request(payload: bytes, length: int) -> Request:
    """`length` is the payload's length before FrameReader cut it off. Raises RequestError that names the field."""
    if len(payload) < _FIELDS.size:
        raise RequestError(
            ErrorCode.INVALID_REQUEST,
            f"the payload has {length} bytes; the fields before prompt_data have {_FIELDS.size}",
            field="prompt_data",
        )
    identity, model_id, width, height, steps, cfg_scale, seed, *slices = _FIELDS.unpack_from(payload)
    check_range("width", width, _SIDE)
    check_range("height", height, _SIDE)
    check_range("payload_len", _RESPONSE.size + width * height * _CHANNELS, _PAYLOAD_BYTES)
    check_range("steps", steps, _STEPS)
    check_range("cfg_scale", cfg_scale, _CFG_SCALE)
    check_range("prompt_data", length - _FIELDS.size, _PROMPT_DATA_BYTES)
    data = payload[_FIELDS.size :]
    clip_l, clip_g, t5 = (
        _prompt(field, data, offset, size)
        for field, offset, size in zip(ENCODERS, slices[::2], slices[1::2], strict=True)
    )
    return Request(
        request_id=identity,
        model_id=model_id,
        width=width,
        height=height,
        steps=steps,
        cfg_scale=cfg_scale,
        seed=seed,
        prompts=(clip_l, clip_g, t5),
    )


def _prompt(field: str, data: bytes, offset: int, length: int) -> str:
    check_range(field, length, _PROMPT_BYTES)
    if offset + length > len(data):
        raise RequestError(
            ErrorCode.INVALID_REQUEST,
            f"{field} ends at byte {offset + length} of prompt_data, which has {len(data)}",
            field=field,
        )
    try:
        return data[offset : offset + length].decode()
    except UnicodeDecodeError:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is not valid UTF-8", field=field) from None


def encode_request(request: Request) -> bytes:
    """A complete frame, with the three prompts one after the other."""
    texts = [prompt.encode() for prompt in request.prompts]
    slices: list[int] = []
    for number, text in enumerate(texts):
        slices += [sum(map(len, texts[:number])), len(text)]
    fields = _FIELDS.pack(
        request.request_id,
        request.model_id,
        request.width,
        request.height,
        request.steps,
        request.cfg_scale,
        request.seed,
        *slices,
    )
    return pack_frame(Kind.GENERATE, 0, fields + b"".join(texts), version=1)


def encode_response_head(request_id: bytes, milliseconds: int, width: int, height: int) -> bytes:
    """The start of an image's frame, up to its pixels."""
    size = width * height * _CHANNELS
    fields = _RESPONSE.pack(request_id, _OK, milliseconds, width, height, _CHANNELS, size)
    return pack_header(Kind.RESPONSE, 0, len(fields) + size, version=1) + fields


def encode_failure(failure: Failure) -> bytes:
    """A complete frame."""
    text = failure.message.encode()
    fields = _ERROR.pack(failure.request_id, failure.code.status, failure.code, len(text))
    return pack_frame(Kind.ERROR, 0, fields + text, version=1)


def decode_reply(kind: Kind, payload: bytes) -> Reply:
    """Decode a reply in the client. Raises ValueError if the payload contradicts itself."""
    if kind is Kind.RESPONSE and len(payload) >= _RESPONSE.size:
        identity, status, milliseconds, width, height, channels, size = _RESPONSE.unpack_from(payload)
        pixels = payload[_RESPONSE.size :]
        if (status, channels) == (_OK, _CHANNELS) and len(pixels) == size == width * height * channels:
            return Response(request_id=identity, milliseconds=milliseconds, width=width, height=height, pixels=pixels)
    elif kind is Kind.ERROR and len(payload) >= _ERROR.size:
        identity, status, code, size = _ERROR.unpack_from(payload)
        text = payload[_ERROR.size :]
        if len(text) == size and Code(code).status == status:
            return Failure(request_id=identity, code=Code(code), message=text.decode())
    raise ValueError(f"a version 1 payload of kind {kind.name} with {len(payload)} bytes contradicts itself")
