"""What every process of ours does to itself before anything else: prctl(2), capabilities(7)."""

import os
import signal
from pathlib import Path

import prctl
from msgspec import Struct


class Account(Struct, frozen=True):
    """Who a process runs as: user, primary group, supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def own(cls) -> "Account":
        """Who we are."""
        return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def own_signals() -> None:
    """Whoever started us may have blocked what stops us, or ignored SIGCHLD, without which no child's status is known;
    both are inherited."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def unmapped_uid() -> int:
    """What the kernel shows for each UID that our user namespace has no number for (user_namespaces(7)): it is nobody's
    identity, for it may be several users'."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


def unmapped_gid() -> int:
    """The same for groups."""
    return int(Path("/proc/sys/kernel/overflowgid").read_text())


def harden(*, parent: int | None = None) -> None:
    """No new privileges, no core dump, no ptrace by the same user; and no life without `parent`.

    `parent` is the PID that must be our parent: if it died before PR_SET_PDEATHSIG took hold, so do we.
    """
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)
    if parent is not None:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit("the parent is gone")
        # From a terminal or a service manager these reach the whole group, but who stops is the parent's to say.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def drop_capabilities(*, keep: tuple[int, ...] = ()) -> str:
    """Empty every capability set of this thread, but for `keep` (which no child inherits). Returns the layer's
    name for status.

    The bounding set can only be emptied by a process with CAP_SETPCAP (root); for all others no_new_privs
    already makes sure that nothing in it can ever be gained.
    """
    if prctl.cap_effective.setpcap:
        prctl.capbset.limit()
    # Effective goes before permitted, which must hold all of it (capabilities(7)).
    for capability_set in (prctl.cap_inheritable, prctl.cap_effective, prctl.cap_permitted):
        capability_set.limit(*(keep if capability_set is not prctl.cap_inheritable else ()))
    return "few-capabilities" if keep else "no-capabilities"
