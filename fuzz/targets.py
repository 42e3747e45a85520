"""One function for each target. It accepts only the errors that the decoder's docstring names, and asserts what must
hold for any bytes: any other exception is a crash.

Nothing here needs atheris, so that the tests can run every input that was kept.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, TypeAlias, get_args
from unittest.mock import patch

import msgspec
from safetensors import SafetensorError, safe_open

from fuzz.config_file import config
from fuzz.control import control
from fuzz.controls import controls
from fuzz.fds import no_descriptor_left, sealed
from fuzz.gguf_files import gguf
from fuzz.loras import loras
from fuzz.reading import Reader, pieces
from fuzz.recipes import recipes
from fuzz.uploads import uploads
from fuzz.worker_replies import worker_replies
from weave import log
from weave.broker.front import requests
from weave.client import codec
from weave.config.child_configs import Access, BrokerConfig
from weave.config.schema import Limits
from weave.models import files
from weave.models.assets import SHIPPED, family_of
from weave.models.families import FAMILIES
from weave.models.faults import collect
from weave.models.layouts import folder_checks, part_folders
from weave.models.single_files import tensors_of
from weave.protocol import client_messages, frames, version1
from weave.protocol.bounds import MAX_SEED
from weave.protocol.channel import close_all, sealed_memfd
from weave.protocol.client_messages import Error, Generate, LoadModel, ModelOffer
from weave.protocol.embeddings import EmbeddingOffer
from weave.protocol.errors import FrameError, RequestError
from weave.protocol.inputs import CONTROL, MAX_INPUTS, REFERENCES, ControlOffer, inputs_of
from weave.protocol.loras import LoraOffer
from weave.supervisor.children import stderr_relay

_FAMILY = FAMILIES["sd1"]
_OFFER = ModelOffer(
    id="shapes",
    family="sd1",
    title="",
    bounds=_FAMILY.bounds,
    defaults=_FAMILY.defaults,
    schedulers=_FAMILY.schedulers,
    tasks=(*_FAMILY.tasks, CONTROL, REFERENCES),
)
_PIXELS = _OFFER.bounds.pixels
_BROKER = BrokerConfig(
    mode="user",
    models=(_OFFER,),
    default_model=None,
    loras=(LoraOffer(id="detail", family="sd1", title="", max_weight=2.0),),
    embeddings=(EmbeddingOffer(id="bad-hands", family="sd1", title=""),),
    controls=(ControlOffer(id="edges", family="sd1", title=""),),
    limits=Limits(),
    access=Access((0,)),
    audit_prompts=False,
    deliver_fds=True,
)


def read_frames(data: bytes) -> None:
    """FrameReader: how a stream is split makes no difference, and little is kept in memory."""
    reader = Reader(data)
    from_client, size, filling = bool(reader.byte() & 1), 1 + reader.short(), 256 * reader.byte()
    # A payload may be longer than any input. Larger pieces for long streams keep each run short.
    stream = reader.rest() + bytes(filling)
    size = max(size, len(stream) // 1000)
    whole = _frames(stream, len(stream) or 1, from_client=from_client)
    assert _frames(stream, size, from_client=from_client) == whole
    if from_client:
        longest = max(frames.MAX_CONTROL_BYTES, frames.MAX_VERSION_1_REQUEST_BYTES)
        assert all(isinstance(frame, str) or len(frame[1]) <= longest for frame in whole[0])


_Found: TypeAlias = tuple[frames.Header, bytes] | str


def _frames(stream: bytes, size: int, *, from_client: bool) -> tuple[list[_Found], str | None]:
    """Every frame, or why it was skipped; then why the stream ended early, if it did."""
    reader = frames.FrameReader(from_client=from_client)
    found: list[_Found] = []
    fed = taken = 0
    for piece in pieces(stream, size):
        reader.feed(piece)
        fed += len(piece)
        while True:
            try:
                if (frame := reader.next_frame()) is None:
                    break
                found.append(frame)
                taken += frames.HEADER_BYTES + len(frame[1])
            except FrameError as error:
                _answerable(error)
                if error.skip is None:
                    return found, error.message
                found.append(error.message)
        assert reader.held <= fed - taken and not (reader.skipping and reader.held)
        assert not from_client or reader.held <= frames.MAX_CONTROL_BYTES + size
    return found, None


def operations(data: bytes) -> None:
    """decode_op, and what the broker does next with the message. Every refusal can be sent to the client."""
    try:
        message = client_messages.decode_op(data)
        assert isinstance(message, get_args(client_messages.ClientMessage))
        assert client_messages.decode_op(client_messages.encode(message)) == message
        if isinstance(message, Generate | LoadModel):
            offer = requests.pick_model(_BROKER, message.model, "shapes")
        if isinstance(message, Generate):
            parameters = requests.task_of(message, offer, _BROKER).parameters
            width, height = parameters.output_size
            assert max(parameters.width * parameters.height, width * height) * parameters.images <= _PIXELS.max
            images = inputs_of(parameters)
            assert images == inputs_of(message) and len(images) <= MAX_INPUTS
            assert all(0 < image.size <= frames.MAX_INPUT_BYTES for image in images)
    except RequestError as error:
        _answerable(error)


def _answerable(error: RequestError | FrameError) -> None:
    """Both versions can express the error, and its numbers fit a client's 64 bits."""
    event = Error.from_exception(error)
    assert client_messages.decode_event(client_messages.encode(event)) == event
    assert not isinstance(event.value, int) or -(2**63) <= event.value <= MAX_SEED
    failure = version1.Failure(
        request_id=version1.NO_REQUEST, code=version1.code_of(event.code, event.field), message=event.message
    )
    frame = version1.encode_failure(failure)
    assert version1.decode_reply(frames.Kind.ERROR, frame[frames.HEADER_BYTES :]) == failure


def events(data: bytes) -> None:
    """A client's Decoder: any bytes and descriptors give answers or a ProtocolError, and additional fields from a newer
    daemon change no answer."""
    reader = Reader(data)
    size, memfds = 1 + reader.short(), reader.byte() % 3
    sizes = [reader.byte() for _ in range(memfds)]
    stream = reader.rest()
    with no_descriptor_left():
        decoder = codec.Decoder()
        descriptors = [sealed(size) for size in sizes]
        try:
            for piece in pieces(stream, size):
                for answer in decoder.feed(piece, descriptors):
                    _check_answer(answer)
                descriptors = []
        except codec.ProtocolError as error:
            assert str(error)
        finally:
            # Without any bytes the descriptors were passed to nothing.
            close_all(descriptors if not stream else [])
            decoder.close()


def _check_answer(answer: codec.Answer) -> None:
    close_all([] if answer.memfd is None else [answer.memfd])
    assert isinstance(answer.event, get_args(client_messages.Event))
    if isinstance(answer.event, client_messages.Image | client_messages.Preview):
        assert (answer.memfd is not None) != (len(answer.data) == answer.event.size and bool(answer.data))
    newer = b'{"of a newer daemon":0,' + client_messages.encode(answer.event)[1:]
    assert client_messages.decode_event(newer) == answer.event


def version_1(data: bytes) -> None:
    """Version 1 payloads: decode_request as the broker calls it, decode_reply as a client calls it."""
    reader = Reader(data)
    kind, longer = reader.byte(), reader.byte()
    payload = reader.rest()
    if kind % 3 == 0:
        _version_1_request(payload[: frames.MAX_VERSION_1_REQUEST_BYTES], len(payload) + longer)
    else:
        _version_1_reply(frames.Kind.RESPONSE if kind % 3 == 1 else frames.Kind.ERROR, payload)


def _version_1_request(payload: bytes, length: int) -> None:
    assert len(version1.request_id(payload)) == 8
    try:
        request = version1.decode_request(payload, length)
    except RequestError as error:
        assert error.field
        _answerable(error)
        return
    assert all(0 < len(prompt.encode()) <= 2048 for prompt in request.prompts)
    frame = version1.encode_request(request)[frames.HEADER_BYTES :]
    assert version1.decode_request(frame, len(frame)) == request
    with suppress(RequestError):
        requests.task_of_version_1(request, _OFFER, _BROKER)


def _version_1_reply(kind: frames.Kind, payload: bytes) -> None:
    try:
        reply = version1.decode_reply(kind, payload)
    except ValueError:
        return
    if isinstance(reply, version1.Response):
        head = version1.encode_response_head(reply.request_id, reply.milliseconds, reply.width, reply.height)
        assert head[frames.HEADER_BYTES :] + reply.pixels == payload
    else:
        assert version1.encode_failure(reply)[frames.HEADER_BYTES :] == payload


def safetensors(data: bytes) -> None:
    """check_safetensors_header: in a file that it accepts the tensors cover the data, and safe_open raises nothing
    unexpected."""
    file = _safetensors_file(Reader(data))
    memfd = sealed_memfd("fuzz", file)
    path = Path(f"/proc/self/fd/{memfd}")
    try:
        files.check_safetensors_header(path)
        header = _check_cover(file)
        with suppress(SafetensorError), safe_open(path, framework="np") as opened:
            assert set(opened.keys()) == set(header)
            for name, tensor in header.items():
                assert opened.get_slice(name).get_shape() == tensor["shape"]
    except files.ModelFilesRefused as error:
        assert str(error)
    finally:
        close_all([memfd])


def single_file(data: bytes) -> None:
    """A file's family, the tensors of its components and the values of its configs: other values are faults."""
    memfd = sealed_memfd("fuzz", _safetensors_file(Reader(data)))
    try:
        path = Path(f"/proc/self/fd/{memfd}")
        header = files.check_safetensors_header(path)
        name = family_of(path, header)
        single = FAMILIES[name].single_file
        assert single is not None
        for kind in single.parts.values():
            assert set(tensors_of(kind, header, alone=False).values()) <= header.keys()
        folders, derived = part_folders(name, SHIPPED / name), single.derive(header)
        faults, checked = collect(folder_checks(name, SHIPPED / name, folders, derived))
        for part, config in checked.configs.items():
            assert faults or derived.get(part, {}).items() <= config.items()
    except files.ModelFilesRefused as error:
        assert str(error)
    finally:
        close_all([memfd])


def _safetensors_file(reader: Reader) -> bytes:
    """The input itself, or a header with a correct length and the number of bytes that follow it."""
    if reader.byte() & 1:
        return reader.rest()
    following = reader.short()
    header = reader.rest()
    return len(header).to_bytes(8, "little") + header + bytes(following)


def _check_cover(file: bytes) -> dict[str, Any]:
    """The tensors of a header. Asserts that each byte after the header belongs to exactly one."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    assert isinstance(header, dict)
    header.pop("__metadata__", None)
    begun = 0
    for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"]):
        begin, end = tensor["data_offsets"]
        assert begin == begun and end >= begin and all(side >= 0 for side in tensor["shape"])
        assert (end - begin) * 8 == prod(tensor["shape"]) * files._BITS[tensor["dtype"]]
        begun = end
    assert begun == len(file) - 8 - length
    return header


class _Lines(list[bytes]):
    """Replaces the log's descriptor."""

    def write(self, line: bytes) -> None:
        self.append(line)


def relayed(data: bytes) -> None:
    """stderr_relay._write: any line of a child becomes one line of JSON that names the process."""
    reader = Reader(data)
    audited, line = bool(reader.byte() & 1), reader.rest()
    lines, audit = _Lines(), _Lines()
    with patch.object(log, "_standard_error", lines), patch.object(log, "_audit_file", audit):
        stderr_relay._write("broker", line, audited)
    (written,) = lines
    assert written.endswith(b"\n") and written.count(b"\n") == 1
    fields = msgspec.json.decode(written)
    assert fields["process"] == "broker" and fields["time"].endswith("Z") and isinstance(fields["event"], str)
    assert audit == (lines if audited and fields["event"] in log.AUDITED_OF_BROKER else [])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": read_frames,
    "operations": operations,
    "uploads": uploads,
    "events": events,
    "version1": version_1,
    "config": config,
    "safetensors": safetensors,
    "gguf": gguf,
    "single_file": single_file,
    "loras": loras,
    "controls": controls,
    "recipes": recipes,
    "worker_replies": worker_replies,
    "control": control,
    "relay": relayed,
}
