"""Mandatory access control: each process in an AppArmor profile or SELinux domain of its own.

The service manager starts the supervisor in the daemon's profile (apparmor/README.md) or domain (selinux/README.md).
Where it did not, as in user mode, nothing here applies. Both systems are spoken to through /proc/self/attr
(proc_pid_attr(5)): what is written to `exec` counts for the next program that this thread, or a child of it, executes.

Under no_new_privs AppArmor lets a process only add profiles to the one that it had then. So every label is a stack of
two: `weave-compute`, the outer wall around the whole daemon, and the profile of the one process.
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
    """Labels that processes must have, as the kernel writes them; `exec_attribute` is open for writing, since
    lock_down() leaves us no way to open it. `layer` is the name for status, which tells where nothing is enforced."""

    layer: str
    enforced: bool
    labels: dict[Role, str]
    exec_attribute: int
    prefix: str = ""

    def at_next_exec(self, role: Role) -> None:
        """The next program that we start runs as `role`. It stays set: whoever starts one says as what."""
        _write(self.exec_attribute, self.prefix, _name(self.labels[role]))


def enter() -> Mac | None:
    """Enter the supervisor's own profile. None where the daemon was started in none of ours. Raises OSError.

    no_new_privs must be set already: AppArmor takes the profile of this moment for the outer wall.
    """
    started_as = label_of(OURSELVES)
    if started_as is None:
        return None
    if apparmor := apparmor_labels(started_as):
        current = _open("/proc/self/attr/apparmor/current")
        _write(current, "changeprofile ", _name(apparmor["supervisor"]))
        os.close(current)
        # Asked again: of two profiles one may only complain.
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
    """The label of `task`, a process or thread in /proc; None where the kernel gives none.

    Raises FileNotFoundError, ProcessLookupError where it has ended.
    """
    try:
        return (task / "attr/current").read_text().rstrip("\0\n") or None
    except (FileNotFoundError, ProcessLookupError):
        raise
    except OSError:  # EINVAL: no such system is on
        return None


def apparmor_labels(started_as: str) -> dict[Role, str] | None:
    """The label of each process of a daemon that AppArmor has started as `started_as`; None unless it is ours."""
    name, _, mode = started_as.partition(" ")
    if name != _APPARMOR_PROFILE:
        return None
    return {role: f"{name}//&{name}-{role} {mode}" for role in _ROLES}


def selinux_labels(started_as: str) -> dict[Role, str] | None:
    """The same for SELinux: the supervisor's context, with the type of each process in it."""
    user, role, domain, *level = (*started_as.split(":", 3), "", "")
    if domain != _SELINUX_DOMAIN:
        return None
    types = {"supervisor": domain, "broker": "weave_broker_t", "worker": "weave_worker_t"}
    return {process: ":".join([user, role, types[process], *filter(None, level)]) for process in _ROLES}


def _name(label: str) -> str:
    """Without AppArmor's mode."""
    return label.partition(" ")[0]


def _write(attribute: int, prefix: str, name: str) -> None:
    try:
        os.write(attribute, (prefix + name).encode())
    except OSError as error:  # ENOENT, say: the kernel does not tell what it has not found
        raise OSError(error.errno, f"{error.strerror}, for the profile or domain {name}; is it loaded?") from None


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
