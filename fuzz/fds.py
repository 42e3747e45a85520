"""Descriptors that an untrusted side may send, and a check that none stays open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from weave.protocol.channel import close_all, sealed_memfd

LARGEST_MEMFD = 64 * 1024


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Raises AssertionError unless the same number of descriptors is open afterwards."""
    before = os.listdir("/proc/self/fd")
    yield
    after = os.listdir("/proc/self/fd")
    assert len(after) == len(before), f"descriptors left open: {sorted(set(after) - set(before))}"


def sealed(size: int) -> int:
    """A valid memfd: sealed, of `size` bytes but at most LARGEST_MEMFD."""
    return sealed_memfd("fuzz", bytes(max(0, min(size, LARGEST_MEMFD))))


def forged(kind: int, size: int) -> int:
    """An invalid descriptor in its place."""
    if kind % 4 == 0:
        return sealed(size + 1)
    if kind % 4 == 1:
        return sealed(size - 1)
    if kind % 4 == 2:
        memfd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(memfd, max(0, min(size, LARGEST_MEMFD)))
        return memfd
    reading, writing = os.pipe()
    close_all([writing])
    return reading
