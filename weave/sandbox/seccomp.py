"""seccomp: which system calls a process may still make (seccomp(2)).

A call that is not on the list is not made: the kernel blocks it and notifies the supervisor, which logs its name and
kills the process (seccomp_unotify(2)). If the filter killed the process itself, the only trace would be in the kernel's
log, which an ordinary user may not read. When the supervisor has exited, the call fails with ENOSYS, and
PR_SET_PDEATHSIG kills the process anyway. Only in record mode (supervisor/record_mode) does the supervisor answer: it
allows the call, or has it fail with an error.
"""

import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from msgspec import Struct

from weave.sandbox import libseccomp

pyseccomp = libseccomp.load()

# linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV is _IOWR('!', 0, struct seccomp_notif), 80 bytes.
_NOTIF_RECV = 0xC0502100
_NOTIF = struct.Struct("=QII iIQ 6Q")
# SECCOMP_IOCTL_NOTIF_SEND is _IOWR('!', 1, struct seccomp_notif_resp), 24 bytes. Longer structs would have other
# request numbers.
_NOTIF_SEND = 0xC0182101
_NOTIF_RESP = struct.Struct("=QqiI")
# SECCOMP_IOCTL_NOTIF_ID_VALID is _IOW('!', 2, __u64).
_NOTIF_ID_VALID = 0x40082102
_USER_NOTIF_FLAG_CONTINUE = 1


# Most arguments are ints, of which the kernel reads the low 32 bits. The others may hold anything.
INT = 0xFFFF_FFFF
WHOLE = 0xFFFF_FFFF_FFFF_FFFF


class Condition(NamedTuple):
    """Argument `argument`, counted from 0, must equal `value` in the bits of `mask`."""

    argument: int
    value: int
    mask: int = INT


def only(argument: int, bits: int, value: int = 0) -> Condition:
    """Argument `argument` must equal `value`, except that any of `bits` may be set."""
    # int(): on an enum flag ~ gives only the bits that the enum has names for.
    return Condition(argument, value, INT & ~int(bits))


class Call(Struct, frozen=True):
    """A line of an allow list: a system call that may be made if all `conditions` hold."""

    name: str
    reason: str
    conditions: tuple[Condition, ...] = ()


class Refusal(Struct, frozen=True):
    """A call that libraries try but do not need: it fails with `error`, and the process goes on."""

    name: str
    error: int
    reason: str
    conditions: tuple[Condition, ...] = ()


class Violation(NamedTuple):
    """A blocked system call with its six raw arguments. `notification` is its ID for the answer; `pid` is the
    thread's."""

    notification: int
    pid: int
    call: str
    arguments: tuple[int, ...]


def install(calls: Iterable[Call | Refusal]) -> int:
    """Restrict every thread of this process (TSYNC) to `calls`. Returns the listener for the supervisor, which the
    caller owns.

    Raises OSError: EBUSY if the daemon runs inside another sandbox that has its own listener.
    """
    filter_ = _empty_filter()
    for call in calls:
        action = pyseccomp.ALLOW if isinstance(call, Call) else pyseccomp.ERRNO(call.error)
        if _exists(call.name):
            filter_.add_rule(action, call.name, *map(_comparison, call.conditions))
    filter_.load()
    # pyseccomp 0.1.2 has no public name for seccomp_notify_fd(3).
    return int(pyseccomp._libseccomp.seccomp_notify_fd(filter_._filter))


def _empty_filter() -> Any:
    """Allows no call, in any thread."""
    filter_ = pyseccomp.SyscallFilter(pyseccomp.NOTIFY)
    # Calls of another ABI (i386 or x32 on x86-64) have other numbers, which we could not name. So kill.
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    filter_.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    return filter_


def receive_violation(listener: int) -> Violation | None:
    """The next blocked call; None if it was interrupted or its process has exited. Raises OSError."""
    notification = bytearray(_NOTIF.size)
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, notification)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, pid, _, number, _, _, *arguments = _NOTIF.unpack(notification)
    return Violation(identity, pid, call_name(number), tuple(arguments))


def still_waits(listener: int, violation: Violation) -> bool:
    """Whether its thread still waits. If so, what we have read in /proc under its PID was that thread's."""
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_ID_VALID, struct.pack("=Q", violation.notification))
        except InterruptedError:
            continue
        except FileNotFoundError:
            return False
        return True


def let_through(listener: int, violation: Violation) -> None:
    """The kernel makes the call, as if it were on the list."""
    _answer(listener, _NOTIF_RESP.pack(violation.notification, 0, 0, _USER_NOTIF_FLAG_CONTINUE))


def refuse(listener: int, violation: Violation, error: int) -> None:
    """The call fails with `error`, as with a Refusal."""
    _answer(listener, _NOTIF_RESP.pack(violation.notification, 0, -error, 0))


def _answer(listener: int, answer: bytes) -> None:
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_SEND, answer)
        except InterruptedError:
            continue
        except FileNotFoundError:  # its thread has exited, or was interrupted by a signal and will retry
            pass
        return


def find(calls: Iterable[Call | Refusal], name: str, arguments: tuple[int, ...]) -> Call | Refusal | None:
    """The line that a filter of `calls` would apply to this call; None if none matches."""
    for call in calls:
        if call.name == name and all(arguments[at] & mask == value for at, value, mask in call.conditions):
            return call
    return None


def has_ended(listener: int) -> bool:
    """Whether all processes that the listener watches have exited. It stays readable then."""
    poll = select.poll()
    poll.register(listener, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def is_listener(descriptor: int) -> bool:
    """Whether `descriptor`, which a child has sent, is a seccomp listener."""
    return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:seccomp notify"


def call_name(number: int) -> str:
    """A system call's name; `#` and its number if this libseccomp does not know it."""
    try:
        return str(pyseccomp.resolve_syscall(pyseccomp.system_arch(), number).decode())
    except ValueError:
        return f"#{number}"


def _exists(name: str) -> bool:
    """Whether libseccomp and this architecture have the call: arm64 has no epoll_wait, for example."""
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)) >= 0


def _comparison(condition: Condition) -> Any:
    return pyseccomp.Arg(condition.argument, pyseccomp.MASKED_EQ, condition.mask, condition.value)
