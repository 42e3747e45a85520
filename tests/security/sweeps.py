"""Every call, and every argument of the calls listed by their arguments, made from inside one locked-down process. The
parent acts as the supervisor and answers each notification with a certain error instead of killing: a call with another
result has passed the filter."""

import ctypes
import errno
import fcntl
import json
import os
import select
from collections.abc import Callable, Iterable
from typing import NamedTuple

from weave.protocol.channel import ALL_SEALS, Channel, socket_pair
from weave.protocol.control_messages import FromWorkerStart, LockedDown
from weave.sandbox import libseccomp, seccomp

pyseccomp = libseccomp.load()

# More than Linux 6.18 has, on every architecture; and, below, an error that no call answers with.
LAST_CALL = 600
# uretprobe and uprobe: what the kernel itself puts into a probed program. No filter sees them, and they do nothing
# but raise SIGILL where no probe is (kernel/seccomp.c).
PROBES = {335, 336}
SWEPT = errno.EMULTIHOP
_libc = ctypes.CDLL(None, use_errno=True)


class Sweep(NamedTuple):
    """One argument of a call, the others being nothing: no descriptor, no pointer, no length, so that what passes
    does nothing. `refused`: the errors that the filter itself answers with."""

    call: str
    argument: int
    values: tuple[int, ...]
    others: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    refused: tuple[int, ...] = ()


class Answer(NamedTuple):
    call: int
    error: int


BITS = tuple(1 << bit for bit in range(32))
_NO_FD = (-1, 0, 0, 0, 0, 0)
_SOCKET_LEVEL = (-1, 1, 0, 0, 0, 0)
_MESSAGES = (0, *BITS, 0x40004000)
_OPEN = (0, 1, 2, 3, *BITS, *(mode | bit for mode in (1, 2) for bit in BITS))
# Of terminals, network interfaces, KVM, file systems; each of the GPU's drivers, with and without a size.
_REQUESTS = (
    *(kind | number for kind in (0, 0x4600, 0x4B00, 0x5400, 0x6400, 0x5A00) for number in range(256)),
    *(0xC0200000 | kind | number for kind in (0, 0x4600, 0x4B00, 0x6400) for number in range(256)),
    *(0x30000000 | number for number in range(16)),
    *(0x8912, 0xAE01, 0x40086602),
)
SWEEPS = (
    Sweep("futex", 1, tuple(operation | flags for flags in (0, 128, 256, 384, 512) for operation in range(16))),
    Sweep("sendmsg", 2, _MESSAGES, _NO_FD),
    Sweep("recvmsg", 2, _MESSAGES, _NO_FD),
    Sweep("sendto", 3, _MESSAGES, _NO_FD),
    Sweep("sendto", 4, (1, 1 << 40), _NO_FD),
    Sweep("recvfrom", 3, _MESSAGES, _NO_FD),
    Sweep("accept4", 3, (0, *BITS), _NO_FD),
    Sweep("getsockopt", 2, tuple(range(100)), _SOCKET_LEVEL),
    Sweep("getsockopt", 1, (0, 6, 41, 263), (-1, 0, 17, 0, 0, 0)),
    Sweep("fcntl", 1, (*range(20), *range(1024, 1050)), _NO_FD),
    Sweep("ioctl", 1, _REQUESTS, _NO_FD, (errno.ENOTTY, errno.EINVAL)),
    Sweep("lseek", 2, tuple(range(8)), _NO_FD),
    Sweep("write", 0, (-1, 0, 1, 2, 3, 1000)),
    Sweep("mmap", 2, (0, *BITS), (0, 0, 0, 0x22, -1, 0)),
    Sweep("mmap", 3, tuple(kind | bit for kind in range(4) for bit in (0, *BITS[4:])), (0, 0, 1, 0, -1, 0)),
    Sweep("mprotect", 2, (0, *BITS)),
    Sweep("mremap", 3, tuple(range(16)), (0, 0, 0, 0, 0, 0)),
    Sweep("madvise", 2, tuple(range(110))),
    Sweep("openat", 2, _OPEN, _NO_FD, (errno.EACCES,)),
    Sweep("fcntl", 2, (0, *BITS, ALL_SEALS, *(ALL_SEALS ^ bit for bit in BITS)), (-1, fcntl.F_ADD_SEALS, 0, 0, 0, 0)),
    Sweep("memfd_create", 1, (0, 3, *BITS, *(3 ^ bit for bit in BITS))),
    Sweep("prctl", 0, (*range(80), 0x53564D41, 0x59616D61), (0, 1, 0, 0, 0, 0), (errno.EINVAL,)),
    Sweep("prlimit64", 0, (0, 1)),
    Sweep("prlimit64", 2, (1, 1 << 40)),
    # Not the flags of a thread itself, which would be created
    Sweep("clone", 0, (0, 17, *(0x003D0F00 ^ bit for bit in BITS))),
    Sweep("eventfd2", 1, (0, *BITS)),
    Sweep("pipe2", 1, (0, *BITS)),
)


def number_of(call: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), call))


def make(calls: list[tuple[int, ...]], lock_down: Callable[[int], None]) -> tuple[list[int], list[int]]:
    """The error of each (0 for none), in one process, and the numbers of those that the parent was notified of."""
    ours, theirs = socket_pair()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 2)
        lock_down(theirs.fileno())
        errors = []
        for number, *arguments in calls:
            ctypes.set_errno(0)
            _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
            errors.append(ctypes.get_errno())
        answer = json.dumps(errors).encode()
        while answer:
            answer = answer[os.write(2, answer) :]
        os._exit(0)
    theirs.close()
    os.close(writing)
    channel: Channel[LockedDown] = Channel(ours, FromWorkerStart)
    _, (listener,) = channel.receive()
    noticed, told = [], b""
    while ready := select.select([listener, reading], [], [], 60)[0]:
        if listener in ready and not seccomp.has_ended(listener):
            noticed.append(_answer(listener))
        elif more := os.read(reading, 65536):
            told += more
        else:
            break
    os.waitpid(pid, 0)
    return json.loads(told.rpartition(b"\n")[2]), noticed  # after any warnings of a library


def _answer(listener: int) -> int:
    notification = bytearray(seccomp._NOTIF.size)
    fcntl.ioctl(listener, seccomp._NOTIF_RECV, notification)
    identity, _, _, number, *_ = seccomp._NOTIF.unpack(notification)
    fcntl.ioctl(listener, seccomp._NOTIF_SEND, seccomp._NOTIF_RESP.pack(identity, 0, -SWEPT, 0))
    return int(number)


def calls_that_are_not_listed(
    listed: Iterable[seccomp.Call | seccomp.Refusal], lock_down: Callable[[int], None]
) -> dict[str, object]:
    """Every number of the kernel's table."""
    numbers = {number_of(call.name) for call in listed}
    swept = [number for number in range(LAST_CALL) if number not in numbers | PROBES]
    errors, noticed = make([(number, *[0] * 6) for number in swept], lock_down)
    made = [number for number, error in zip(swept, errors, strict=True) if error != SWEPT]
    return {"made": [seccomp.call_name(number) for number in made], "unnoticed": sorted({*swept} - {*noticed})}


def arguments_that_pass(
    listed: Iterable[seccomp.Call | seccomp.Refusal], lock_down: Callable[[int], None]
) -> dict[str, list[int]]:
    """Of each sweep whose call is on the list at all, by call and number of the argument."""
    names = {call.name for call in listed if isinstance(call, seccomp.Call)}
    cases = [(sweep, value) for sweep in SWEEPS if sweep.call in names for value in dict.fromkeys(sweep.values)]
    calls = [
        (number_of(sweep.call), *sweep.others[: sweep.argument], value, *sweep.others[sweep.argument + 1 :])
        for sweep, value in cases
    ]
    errors, _ = make(calls, lock_down)
    passed: dict[str, list[int]] = {f"{sweep.call} {sweep.argument}": [] for sweep, _ in cases}
    for (sweep, value), error in zip(cases, errors, strict=True):
        if error not in (SWEPT, *sweep.refused):
            passed[f"{sweep.call} {sweep.argument}"].append(value)
    return passed
