"""The supervisor's own look at a child, in /proc, before it believes that the child is locked in.

Landlock does not show in /proc (proc_pid_status(5)): for that layer there is the child's word, and the tests that
attack it from inside.
"""

from pathlib import Path

from msgspec import Struct

from weave.sandbox.mac import Mac, Role, label_of
from weave.sandbox.process import Account

_NO_CAPABILITIES = "0000000000000000"
# Seccomp 2 is SECCOMP_MODE_FILTER.
_REQUIRED = {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "CapInh": _NO_CAPABILITIES,
    "CapPrm": _NO_CAPABILITIES,
    "CapEff": _NO_CAPABILITIES,
    "CapAmb": _NO_CAPABILITIES,
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
    in."""
    account, label = confinement.account, confinement.label
    # Real, effective, saved and of the file system.
    required = {"Uid": "\t".join([str(account.uid)] * 4), "Gid": "\t".join([str(account.gid)] * 4)} | _REQUIRED
    if confinement.bounding_set_empty:
        required["CapBnd"] = _NO_CAPABILITIES
    threads = 0
    for thread in _threads(pid):
        try:
            status = _status(thread)
            found = None if label is None else label_of(thread)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended since; whatever it started was listed with it or is locked in as it was
        threads += 1
        if status.get("PPid") != str(parent):
            raise AttestationFailed(f"thread {thread.name} is not a child of process {parent}")
        if set(map(int, status.get("Groups", "").split())) != set(account.groups):
            raise AttestationFailed(f"thread {thread.name}: Groups is {status.get('Groups')}, not {account.groups}")
        for field, expected in required.items():
            if status.get(field) != expected:
                raise AttestationFailed(f"thread {thread.name}: {field} is {status.get(field)}, not {expected}")
        if found != label:
            raise AttestationFailed(f"thread {thread.name}: Label is {found}, not {label}")
    if not threads:
        raise AttestationFailed(f"process {pid} has no threads")


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError as error:
        raise AttestationFailed(f"process {pid}: {error.strerror}") from None


def _status(thread: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (thread / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
