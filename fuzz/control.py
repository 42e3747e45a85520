"""The target `control`: the channels between our processes. Each side's decoder against a compromised other side."""

import array
import os
import socket
from contextlib import suppress
from typing import Any, get_args

import msgspec

from fuzz.fds import no_descriptor_left
from fuzz.reading import Reader
from weave.models.families import FAMILIES
from weave.protocol.channel import MAX_DESCRIPTORS, Channel, ChannelClosed, ChannelViolation, close_all, socket_pair
from weave.protocol.checks import Offered, check_parameters
from weave.protocol.control_messages import (
    Alive,
    FromBroker,
    FromRecordedStart,
    FromWorkerStart,
    FromZygote,
    ToBroker,
    ToZygote,
)
from weave.protocol.errors import RequestError
from weave.protocol.worker_messages import FromWorker, Run, ToWorker
from weave.supervisor import metrics_file

UNIONS: tuple[Any, ...] = (
    FromBroker,
    FromZygote,
    ToBroker,
    ToZygote,
    ToWorker,
    FromWorker,
    FromWorkerStart,
    FromRecordedStart,
)
OFFERED = Offered(bounds=FAMILIES["sd1"].bounds, schedulers=FAMILIES["sd1"].schedulers, tasks=FAMILIES["sd1"].tasks)
# Less than a socket's buffer, so that sending never blocks.
_LONGEST = 64 * 1024


def control(data: bytes) -> None:
    """Channel.receive returns a message of the union or raises ChannelViolation; handling the message raises no other
    error."""
    reader = Reader(data)
    union = UNIONS[reader.byte() % len(UNIONS)]
    shape = reader.byte()
    payload = as_msgpack(reader.rest()) if shape & 1 else reader.rest()
    with no_descriptor_left():
        message = _through_a_channel(union, payload[:_LONGEST], descriptors=(shape >> 1) % (MAX_DESCRIPTORS + 2))
    if message is None:
        return
    assert isinstance(message, get_args(union) or union)
    again = msgspec.msgpack.encode(message)
    # Compared as bytes: NaN is not equal to itself.
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(again, type=union)) == again
    if isinstance(message, Alive):
        _check_metrics(message)
    elif isinstance(message, Run):
        with suppress(RequestError):
            check_parameters(message.parameters, OFFERED)


def as_msgpack(text: bytes) -> bytes:
    """The same message, converted from JSON: there, inserting a letter into a name leaves the rest of the message
    intact."""
    try:
        return msgspec.msgpack.encode(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return text


def _through_a_channel(union: Any, payload: bytes, *, descriptors: int) -> Any:
    ours, theirs = socket_pair()
    channel: Channel[Any] = Channel(ours, union)
    sent = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(descriptors)]
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
        theirs.sendmsg([payload], rights)
        message, received = channel.receive()
        assert len(received) == descriptors
        close_all(received)
        return message
    except ChannelViolation as error:
        assert str(error)
    except ChannelClosed:
        assert not payload
    finally:
        close_all(sent)
        theirs.close()
        channel.close()
    return None


def _check_metrics(alive: Alive) -> None:
    """A sample is a name, perhaps with labels, and a number (the textfile collector's format)."""
    for line in metrics_file._lines(alive):
        assert "\n" not in line
        name, _, number = line.rpartition(" ")
        assert name.startswith("# TYPE weave_") or (name.startswith("weave_") and number)
        assert line.startswith("#") or float(number) is not None
