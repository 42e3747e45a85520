"""What each of our processes does first: signals, prctl(2), capabilities(7)."""

import os
import signal

import prctl


def reset_signals() -> None:
    """The program that started us may have blocked the signals that stop us, or ignored SIGCHLD, without which we get
    no exit statuses. Both are inherited."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def harden(*, parent: int | None = None) -> None:
    """No new privileges, no core dumps, no ptrace by processes of the same user. Exits with `parent`, which is the PID
    that our parent must have: it may exit before PR_SET_PDEATHSIG is set."""
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)
    if parent is not None:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit("the parent has exited")
        # A terminal or a service manager sends these to the whole process group. Our parent decides what they mean.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def drop_capabilities(*, keep: tuple[int, ...] = ()) -> str:
    """Empty this thread's capability sets except for `keep`, which no child inherits. Returns the layer's name for
    status.

    Only a process with CAP_SETPCAP (root) can empty the bounding set. For others no_new_privs ensures that nothing in
    it can be gained.
    """
    if prctl.cap_effective.setpcap:
        prctl.capbset.limit()
    # Effective before permitted, of which it must be a subset (capabilities(7)).
    for capability_set in (prctl.cap_inheritable, prctl.cap_effective, prctl.cap_permitted):
        capability_set.limit(*(keep if capability_set is not prctl.cap_inheritable else ()))
    return "few-capabilities" if keep else "no-capabilities"
