"""Mandatory access control: each process has its own AppArmor profile or SELinux domain.

systemd starts the supervisor in the daemon's profile (apparmor/README.md) or domain (selinux/README.md). If it did not,
as in user mode, nothing here applies. The interface to both is /proc/self/attr (proc_pid_attr(5)): a label written to
`exec` applies to the next program that this thread, or a child of it, executes.

Under no_new_privs AppArmor only lets a process add profiles to the one that it had when no_new_privs was set. So each
label is a stack of two: `weave-compute`, which confines the whole daemon, and the profile of the process.
"""

import os
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

Role: TypeAlias = Literal["supervisor", "broker", "worker"]

_ROLES: tuple[Role, ...] = ("supervisor", "broker", "worker")
_APPARMOR_PROFILE = "weave-compute"
_SELINUX_DOMAIN = "weave_t"
OURSELVES = Path("/proc/self")
_SELINUX_ENFORCE = Path("/sys/fs/selinux/enforce")


class Mac(Struct, frozen=True):
    """`labels` are in the kernel's format. `exec_attribute` is a descriptor opened for writing above lock_down(), which
    forbids opening it. `layer` is the name for status; it says if the rules are not enforced."""

    layer: str
    enforced: bool
    labels: dict[Role, str]
    exec_attribute: int
    prefix: str = ""

    def at_next_exec(self, role: Role) -> None:
        """The next program that we start runs as `role`. This stays set, so call it before each start."""
        _write(self.exec_attribute, self.prefix, _name(self.labels[role]))


def enter() -> Mac | None:
    """Enter the supervisor's profile or domain. None if the daemon was not started in one of ours. Raises OSError.

    no_new_privs must be set already, so that AppArmor stacks the profile on the one that the daemon was started in.
    """
    started_as = label_of(OURSELVES)
    if started_as is None:
        return None
    if apparmor := apparmor_labels(started_as):
        current = _open("/proc/self/attr/apparmor/current")
        _write(current, "changeprofile ", _name(apparmor["supervisor"]))
        os.close(current)
        # Read it back: either of the two profiles may be in complain mode.
        enforced = label_of(OURSELVES) == apparmor["supervisor"] and apparmor["supervisor"].endswith(" (enforce)")
        layer = "apparmor" if enforced else "apparmor-complaining"
        return Mac(layer, enforced, apparmor, _open("/proc/self/attr/apparmor/exec"), "exec ")
    if selinux := selinux_labels(started_as):
        enforced = _SELINUX_ENFORCE.read_text() == "1"
        layer = "selinux" if enforced else "selinux-permissive"
        return Mac(layer, enforced, selinux, _open("/proc/self/attr/exec"))
    return None


def layer_of(mac: Mac | None) -> tuple[str, ...]:
    """For status."""
    return () if mac is None else (mac.layer,)


def label_of(task: Path) -> str | None:
    """The label of `task`, a process or thread in /proc; None if it has none.

    Raises FileNotFoundError or ProcessLookupError if it has exited.
    """
    try:
        return (task / "attr/current").read_text().rstrip("\0\n") or None
    except (FileNotFoundError, ProcessLookupError):
        raise
    except OSError:  # EINVAL: neither system is on
        return None


def apparmor_labels(started_as: str) -> dict[Role, str] | None:
    """Each process's label if the daemon was started as `started_as`; None if that is not our AppArmor profile."""
    name, _, mode = started_as.partition(" ")
    if name != _APPARMOR_PROFILE:
        return None
    return {role: f"{name}//&{name}-{role} {mode}" for role in _ROLES}


def selinux_labels(started_as: str) -> dict[Role, str] | None:
    """The same for SELinux: `started_as` with the type replaced."""
    user, role, domain, *level = (*started_as.split(":", 3), "", "")
    if domain != _SELINUX_DOMAIN:
        return None
    types = {"supervisor": domain, "broker": "weave_broker_t", "worker": "weave_worker_t"}
    return {process: ":".join([user, role, types[process], *filter(None, level)]) for process in _ROLES}


def _name(label: str) -> str:
    """`label` without AppArmor's mode."""
    return label.partition(" ")[0]


def _write(attribute: int, prefix: str, name: str) -> None:
    try:
        os.write(attribute, (prefix + name).encode())
    except OSError as error:  # such as ENOENT, which does not say what was not found
        raise OSError(error.errno, f"{error.strerror}, for the profile or domain {name}; is it loaded?") from None


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
