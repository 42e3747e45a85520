"""seccomp: which system calls a process may still make (seccomp(2)).

A call that is not on the list is neither made nor answered: it waits in the kernel as a notification to the
supervisor, which logs its name and kills the process (seccomp_unotify(2)). Killing at once, as the filter could,
would leave no trace but a line in the kernel's log that an ordinary user may not read. When the supervisor is
gone the call fails with ENOSYS, and PR_SET_PDEATHSIG has ended the process anyway. In record mode alone
(weave/supervisor/recorder.py) the supervisor answers it: it lets the call through, or refuses it with an error.
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
# SECCOMP_IOCTL_NOTIF_SEND is _IOWR('!', 1, struct seccomp_notif_resp), 24 bytes. A kernel with longer structs has
# other numbers.
_NOTIF_SEND = 0xC0182101
_NOTIF_RESP = struct.Struct("=QqiI")
# SECCOMP_IOCTL_NOTIF_ID_VALID is _IOW('!', 2, __u64).
_NOTIF_ID_VALID = 0x40082102
_USER_NOTIF_FLAG_CONTINUE = 1


# Most arguments are ints: the kernel reads these bits, and what a caller leaves in the others means nothing.
INT = 0xFFFF_FFFF
WHOLE = 0xFFFF_FFFF_FFFF_FFFF


class Condition(NamedTuple):
    """Argument number `argument` (from 0) must be `value` in the bits of `mask`."""

    argument: int
    value: int
    mask: int = INT


def only(argument: int, bits: int, value: int = 0) -> Condition:
    """Argument number `argument` must be `value`, with any of `bits`."""
    # int: what ~ makes of an enum's flag has the bits only that Python has a name for.
    return Condition(argument, value, INT & ~int(bits))


class Call(Struct, frozen=True):
    """One line of an allow list: a system call, why the process needs it, and what its arguments must be."""

    name: str
    reason: str
    conditions: tuple[Condition, ...] = ()


class Refusal(Struct, frozen=True):
    """A call that libraries try and can do without: it fails with `error` instead of ending the process."""

    name: str
    error: int
    reason: str
    conditions: tuple[Condition, ...] = ()


class Violation(NamedTuple):
    """A system call that waits for the supervisor, with its six raw arguments. `notification` is the kernel's number
    for it."""

    notification: int
    pid: int
    call: str
    arguments: tuple[int, ...]


def install(calls: Iterable[Call | Refusal]) -> int:
    """Bind every thread of this process (TSYNC) to `calls`, for ever. Returns the listener for the supervisor.

    Raises OSError: EBUSY where the whole daemon runs inside another sandbox that has a listener of its own.
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
    """Lets nothing through, in any thread."""
    filter_ = pyseccomp.SyscallFilter(pyseccomp.NOTIFY)
    # Another architecture's call (i386 or x32 on x86-64) has other numbers: there is nothing to look up, so kill.
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    filter_.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    return filter_


def receive_violation(listener: int) -> Violation | None:
    """What the listener reports; None where the call was interrupted or its process is gone."""
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
    """Whether its thread still waits for an answer. What was read of /proc by its PID before was then its own."""
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_ID_VALID, struct.pack("=Q", violation.notification))
        except InterruptedError:
            continue
        except FileNotFoundError:
            return False
        return True


def let_through(listener: int, violation: Violation) -> None:
    """Have the kernel make the call as if it were on the list."""
    _answer(listener, _NOTIF_RESP.pack(violation.notification, 0, 0, _USER_NOTIF_FLAG_CONTINUE))


def refuse(listener: int, violation: Violation, error: int) -> None:
    """Have the call fail with `error` as if a Refusal of the list said so."""
    _answer(listener, _NOTIF_RESP.pack(violation.notification, 0, -error, 0))


def _answer(listener: int, answer: bytes) -> None:
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_SEND, answer)
        except InterruptedError:
            continue
        except FileNotFoundError:  # its thread has ended, or was interrupted by a signal and will ask again
            pass
        return


def find(calls: Iterable[Call | Refusal], name: str, arguments: tuple[int, ...]) -> Call | Refusal | None:
    """The line by which a filter of these `calls` would judge this one."""
    for call in calls:
        if call.name == name and all(arguments[at] & mask == value for at, value, mask in call.conditions):
            return call
    return None


def has_ended(listener: int) -> bool:
    """Whether every process that the listener watches is gone: it stays readable then."""
    poll = select.poll()
    poll.register(listener, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def is_listener(descriptor: int) -> bool:
    """Whether `descriptor` really is a seccomp listener, not something else a child would have us read."""
    return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:seccomp notify"


def call_name(number: int) -> str:
    """A system call's name; its number where libseccomp is older than the call."""
    try:
        return str(pyseccomp.resolve_syscall(pyseccomp.system_arch(), number).decode())
    except ValueError:
        return f"#{number}"


def _exists(name: str) -> bool:
    """Whether libseccomp and this architecture have the call: arm64, for one, has no epoll_wait."""
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)) >= 0


def _comparison(condition: Condition) -> Any:
    return pyseccomp.Arg(condition.argument, pyseccomp.MASKED_EQ, condition.mask, condition.value)
