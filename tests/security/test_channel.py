"""On a channel between two processes a malformed message, too many descriptors or a memfd that can still change is a
violation."""

import os
import socket
from collections.abc import Callable

import msgspec
import pytest

from weave.protocol.channel import Channel, ChannelViolation, check_sealed_memfd, sealed_memfd, socket_pair
from weave.protocol.worker_messages import FromWorker, Load


def unsealed() -> int:
    memfd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(memfd, b"12345678")
    return memfd


@pytest.mark.parametrize(
    "forged",
    [
        unsealed,
        lambda: sealed_memfd("x", b"1234567"),
        lambda: sealed_memfd("x", b"123456789"),
        lambda: os.open("/dev/zero", 0),
    ],
    ids=["unsealed", "short", "long", "not a memfd"],
)
def test_a_forged_image_memfd_is_a_violation(forged: Callable[[], int]) -> None:
    check_sealed_memfd(good := sealed_memfd("x", b"12345678"), 8)
    os.close(good)
    descriptor = forged()
    with pytest.raises(ChannelViolation):
        check_sealed_memfd(descriptor, 8)
    os.close(descriptor)


@pytest.mark.parametrize(
    "data",
    [b"\xc1", b"\x00", msgspec.msgpack.encode({"type": "exec"}), msgspec.msgpack.encode(Load()), b"\x91" * 100_000],
    ids=["not msgpack", "a number", "unknown type", "for the other side", "deep nesting"],
)
def test_a_malformed_message_on_a_channel_is_a_violation(data: bytes) -> None:
    ours, theirs = socket_pair()
    with theirs:
        theirs.send(data)
        channel: Channel[FromWorker] = Channel(ours, FromWorker)
        with pytest.raises(ChannelViolation):
            channel.receive()
        channel.close()


def test_descriptors_beyond_the_limit_are_closed_and_a_violation() -> None:
    ours, theirs = socket_pair()
    before = len(os.listdir("/proc/self/fd"))
    with theirs, open("/dev/null") as null:
        socket.send_fds(theirs, [msgspec.msgpack.encode({"type": "finished"})], [null.fileno()] * 9)
        channel: Channel[FromWorker] = Channel(ours, FromWorker)
        with pytest.raises(ChannelViolation):
            channel.receive()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    channel.close()
