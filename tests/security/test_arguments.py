"""Which arguments pass, of the calls listed by their arguments: swept from inside the real broker and worker, and
compared with the intended ones. One value more is a hole, one less kills a worker for nothing."""

import os
from typing import Any

import pytest

from tests.security.sweeps import BITS
from tests.security.test_attacks import attack

NOSIGNAL, CMSG_CLOEXEC, CLOEXEC = 0x4000, 0x40000000, 0x80000
PRIVATE, CLOCK_REALTIME = 128, 256
# For reading, with any other flag of open(2), but not O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE.
READING = [0, *(bit for bit in BITS if bit not in (1, 2, 0o100, 0o1000, os.O_TMPFILE & ~os.O_DIRECTORY))]
# The same for reading and writing, and not O_APPEND either.
READING_AND_WRITING = [2 | bit for bit in READING if bit != 0o2000]
EXECUTABLE, ANONYMOUS, NORESERVE = 4, 0x20, 0x4000
# What gVisor's nvproxy passes on; of AMD's, all but the debugger (0x0d to 0x10), events of other processes (0x1f) and
# checkpoints (0x22). Neither NV_ESC_IOCTL_XFER_CMD (0xd3), which wraps any request, nor the tools of unified memory (56
# to 64), which reach into other processes.
NVIDIA = [
    *(0x27, 0x29, 0x2A, 0x2B, 0x34, 0x35, 0x4A, 0x4E, 0x4F, 0x5E),
    *(200, 201, 206, 207, 210, 212, 214, 215, 218),
]
UNIFIED_MEMORY = [*range(23, 32), 33, 34, *range(37, 40), *range(42, 48), 51, 53, 65, 66, 68, *range(70, 76)]
KFD = [*range(0x01, 0x0D), *range(0x11, 0x1F), 0x20, 0x21, 0x23, 0x24, 0x25]
DRM = [0x00, 0x05, 0x09, 0x0C, 0x2D, 0x2E, 0x40, 0x41, 0x45, 0x46, 0x48, 0x53]

BROKER: dict[str, list[int]] = {
    # WAIT, WAKE, WAIT_BITSET: within the process alone
    "futex 1": [PRIVATE, PRIVATE | 1, PRIVATE | 9, CLOCK_REALTIME | PRIVATE | 9],
    "sendmsg 2": [0, NOSIGNAL],
    "recvmsg 2": [0, CMSG_CLOEXEC],
    "sendto 3": [0, NOSIGNAL],
    "sendto 4": [],
    "recvfrom 3": [0],
    "accept4 3": [CLOEXEC],
    # SO_TYPE, SO_PEERCRED, SO_PROTOCOL, SO_PEERGROUPS of SOL_SOCKET
    "getsockopt 2": [3, 17, 38, 59],
    "getsockopt 1": [],
    # F_GET_SEALS; F_ADD_SEALS with SEAL, SHRINK, GROW and WRITE together
    "fcntl 1": [1034],
    "fcntl 2": [15],
    # MFD_CLOEXEC | MFD_ALLOW_SEALING
    "memfd_create 1": [3],
    "ioctl 1": [0x5421],
    "lseek 2": [2],
    "write 0": [2],
    "mmap 2": [0, 1, 2],
    "mmap 3": [2 | ANONYMOUS],
    "mprotect 2": [0, 1, 2],
    "mremap 3": [1],
    "madvise 2": [4],
}
WORKER: dict[str, list[int]] = {
    # WAIT, WAKE, WAIT_BITSET, WAKE_BITSET
    "futex 1": [flags | operation for flags in (0, 128, 256, 384) for operation in (0, 1, 9, 10)],
    "sendmsg 2": [NOSIGNAL],
    "recvmsg 2": [CMSG_CLOEXEC],
    # F_DUPFD to F_GETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS
    "fcntl 1": [0, 1, 2, 3, 1030, 1033, 1034],
    "fcntl 2": [0, *BITS, 15, *(15 ^ bit for bit in BITS if 15 ^ bit not in BITS)],
    "lseek 2": list(range(8)),
    "write 0": [-1, 0, 1, 2, 3, 1000],
    "mmap 2": [0, *BITS],
    "mmap 3": [
        kind | flag
        for kind in (1, 2)
        for flag in (0, 0x10, ANONYMOUS, 0x40, 0x800, NORESERVE, 0x8000, 0x20000, 0x100000)
    ],
    "mprotect 2": [0, 1, 2, EXECUTABLE],
    "mremap 3": [0, 1],
    "madvise 2": [0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 102, 103],
    "openat 2": READING,
    # MFD_CLOEXEC, MFD_ALLOW_SEALING
    "memfd_create 1": [0, 1, 2, 3],
    "prctl 0": [15, 16],
    "prlimit64 0": [0],
    "prlimit64 2": [],
    "clone 0": [],
}
WORKER_WITH_A_GPU = WORKER | {
    "openat 2": [*READING, *READING_AND_WRITING],
    "ioctl 1": [
        *(size | 0x4600 | number for size in (0, 0xC0200000) for number in NVIDIA),
        *UNIFIED_MEMORY,
        *(0x30000001, 0x30000002),
        *(size | 0x4B00 | number for size in (0, 0xC0200000) for number in KFD),
        *(size | 0x6400 | number for size in (0, 0xC0200000) for number in DRM),
    ],
    "eventfd2 1": [0, 1, 0o4000, CLOEXEC],
    "pipe2 1": [0, 0o4000, CLOEXEC],
}


@pytest.mark.parametrize(
    "role, expected",
    [("broker", BROKER), ("worker", WORKER), ("worker-with-a-gpu", WORKER_WITH_A_GPU)],
    ids=["broker", "worker", "worker with a GPU"],
)
def test_each_listed_call_passes_only_the_intended_arguments(role: str, expected: dict[str, Any]) -> None:
    swept = attack(role, "--sweep=arguments")["sweep"]
    assert {name: sorted(passed) for name, passed in swept.items() if name != "attack"} == {
        name: sorted(passed) for name, passed in expected.items()
    }


def test_the_sweep_finds_an_argument_that_passes() -> None:
    """Of a process whose filter lets every futex(2) through, each operation is seen to pass."""
    swept = attack("worker", "--sweep=arguments", "--let-through=futex")["sweep"]
    assert len(swept["futex 1"]) == 80
