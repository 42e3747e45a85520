"""The supervisor checks in /proc that a child is locked down, instead of trusting the child's message.

Landlock is not visible in /proc (proc_pid_status(5)). For that layer there are only the child's message, and the tests
that attack it from inside.
"""

from pathlib import Path

from msgspec import Struct

from weave.sandbox.account import Account
from weave.sandbox.mac import Mac, Role, label_of

_NO_CAPABILITIES = "0000000000000000"
# A child that starts threads faster than we can check them is refused after this many rounds.
_MOST_ROUNDS = 10
# Seccomp 2 is SECCOMP_MODE_FILTER.
_REQUIRED = {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "CapInh": _NO_CAPABILITIES,
    "CapPrm": _NO_CAPABILITIES,
    "CapEff": _NO_CAPABILITIES,
    "CapAmb": _NO_CAPABILITIES,
    # A tracer from before it was undumpable could still control it.
    "TracerPid": "0",
}


class AttestationFailed(Exception):
    """A child is not confined as required. The message names the thread and the field."""


class Confinement(Struct, frozen=True):
    """What a child is started with and must be attested to have: `account`, and the AppArmor or SELinux label of its
    `role` (weave/sandbox/mac.py). `bounding_set_empty`: CapBnd must be 0 too, which only root can achieve."""

    role: Role
    account: Account
    bounding_set_empty: bool
    mac: Mac | None

    @property
    def label(self) -> str | None:
        """The AppArmor or SELinux label that it must have, if any."""
        return None if self.mac is None else self.mac.labels[self.role]


def attest(pid: int, confinement: Confinement, *, parent: int) -> None:
    """Raise AttestationFailed unless `pid` is a child of `parent`, and every thread of it is locked down with
    `confinement`. We may have been started with seccomp filters (systemd's SystemCallFilter=), which every child
    inherits, so it must have exactly one more than we have."""
    account, label = confinement.account, confinement.label
    locked_down = {"Seccomp_filters": str(_own_filters() + 1)}
    required = (
        # Real, effective, saved and file system ID.
        {"Uid": "\t".join([str(account.uid)] * 4), "Gid": "\t".join([str(account.gid)] * 4)} | _REQUIRED | locked_down
    )
    if confinement.bounding_set_empty:
        required["CapBnd"] = _NO_CAPABILITIES
    checked: set[str] = set()
    found = 0
    for _ in range(_MOST_ROUNDS):
        threads = [thread for thread in _threads(pid) if thread.name not in checked]
        if not threads:
            break
        found += sum(_attest_thread(thread, parent, account, required, label) for thread in threads)
        # A thread that is not locked down can only be started by another one, so check until there are no new ones.
        checked |= {thread.name for thread in threads}
    else:
        raise AttestationFailed(f"process {pid} starts threads faster than they can be checked")
    if not found:
        raise AttestationFailed(f"process {pid} has no threads")


def _attest_thread(thread: Path, parent: int, account: Account, required: dict[str, str], label: str | None) -> bool:
    """False if the thread has exited."""
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
    """The number of seccomp filters that this thread has, and so its children inherit."""
    filters = _status(Path("/proc/thread-self")).get("Seccomp_filters")
    if filters is None:  # Landlock needs 5.13 anyway
        raise AttestationFailed("this kernel does not report Seccomp_filters (Linux 5.9)")
    return int(filters)


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError as error:
        raise AttestationFailed(f"process {pid}: {error.strerror}") from None


def _status(thread: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (thread / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
