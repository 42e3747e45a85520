"""The supervisor's own look at a child, in /proc, before it believes that the child is locked in.

Landlock does not show in /proc (proc_pid_status(5)): for that layer there is the child's word, and the tests that
attack it from inside.
"""

from pathlib import Path

from msgspec import Struct

from weave.sandbox.mac import Mac, Role, label_of
from weave.sandbox.process import Account

_NO_CAPABILITIES = "0000000000000000"
# A child that makes threads as fast as they are looked at is not waited for.
_MOST_LOOKS = 10
# Seccomp 2 is SECCOMP_MODE_FILTER.
_REQUIRED = {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "CapInh": _NO_CAPABILITIES,
    "CapPrm": _NO_CAPABILITIES,
    "CapEff": _NO_CAPABILITIES,
    "CapAmb": _NO_CAPABILITIES,
    # Whoever traces it from before it was not dumpable can change what it does.
    "TracerPid": "0",
}


class AttestationFailed(Exception):
    """A child is not locked in as it must be; the message says which thread lacks what."""


class Confinement(Struct, frozen=True):
    """What a child is started as, and must be found to be: `account`, and what AppArmor or SELinux knows of its `role`
    (weave/sandbox/mac.py). `bounding_set_empty`: CapBnd must be 0 too, which only a daemon started as root can reach.
    """

    role: Role
    account: Account
    bounding_set_empty: bool
    mac: Mac | None

    @property
    def label(self) -> str | None:
        """What AppArmor or SELinux must hold it by, if anything."""
        return None if self.mac is None else self.mac.labels[self.role]


def attest(pid: int, confinement: Confinement, *, parent: int) -> None:
    """Raise AttestationFailed unless every thread of `pid`, a child of `parent`, is as `confinement` says and locked
    in. Inside a sandbox that we were started in (systemd's SystemCallFilter=) every process has filters: what counts is
    that it has one more than we have."""
    account, label = confinement.account, confinement.label
    # Real, effective, saved and of the file system.
    locked_in = {"Seccomp_filters": str(_own_filters() + 1)}
    required = (
        {"Uid": "\t".join([str(account.uid)] * 4), "Gid": "\t".join([str(account.gid)] * 4)} | _REQUIRED | locked_in
    )
    if confinement.bounding_set_empty:
        required["CapBnd"] = _NO_CAPABILITIES
    looked_at: set[str] = set()
    found = 0
    for _ in range(_MOST_LOOKS):
        threads = [thread for thread in _threads(pid) if thread.name not in looked_at]
        if not threads:
            break
        found += sum(_attest_thread(thread, parent, account, required, label) for thread in threads)
        # Only a thread that was there before could start one that is not locked in: look until there is no new one.
        looked_at |= {thread.name for thread in threads}
    else:
        raise AttestationFailed(f"process {pid} makes threads faster than they can be looked at")
    if not found:
        raise AttestationFailed(f"process {pid} has no threads")


def _attest_thread(thread: Path, parent: int, account: Account, required: dict[str, str], label: str | None) -> bool:
    """False where it has ended meanwhile."""
    try:
        status = _status(thread)
        found = None if label is None else label_of(thread)
    except (FileNotFoundError, ProcessLookupError):
        return False
    if status.get("PPid") != str(parent):
        raise AttestationFailed(f"thread {thread.name} is not a child of process {parent}")
    if set(map(int, status.get("Groups", "").split())) != set(account.groups):
        raise AttestationFailed(f"thread {thread.name}: Groups is {status.get('Groups')}, not {account.groups}")
    for field, expected in required.items():
        if status.get(field) != expected:
            raise AttestationFailed(f"thread {thread.name}: {field} is {status.get(field)}, not {expected}")
    if found != label:
        raise AttestationFailed(f"thread {thread.name}: Label is {found}, not {label}")
    return True


def _own_filters() -> int:
    """How many seccomp filters this thread, which starts the children, was started with."""
    filters = _status(Path("/proc/thread-self")).get("Seccomp_filters")
    if filters is None:  # Landlock needs 5.13 anyway
        raise AttestationFailed("this kernel does not tell Seccomp_filters (Linux 5.9)")
    return int(filters)


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError as error:
        raise AttestationFailed(f"process {pid}: {error.strerror}") from None


def _status(thread: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (thread / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
