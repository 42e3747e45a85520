"""The supervisor's own look at a child, in /proc, before it believes that the child is locked in.

Landlock does not show in /proc (proc_pid_status(5)): for that layer there is the child's word, and the tests that
attack it from inside.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from weave.sandbox import mac
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


def attest(pid: int, *, parent: int, account: Account, bounding_set_empty: bool, label: str | None = None) -> None:
    """Raise AttestationFailed unless every thread of `pid`, a child of `parent`, runs as `account` and is locked in.

    `bounding_set_empty`: also demand CapBnd 0, which only a daemon started as root can reach. `label`: also demand
    that AppArmor or SELinux holds it by this one (weave/sandbox/mac.py).
    """
    # Real, effective, saved and of the file system.
    required = {"Uid": "\t".join([str(account.uid)] * 4), "Gid": "\t".join([str(account.gid)] * 4)} | _REQUIRED
    if bounding_set_empty:
        required["CapBnd"] = _NO_CAPABILITIES
    if label is not None:
        required["Label"] = label
    statuses = list(_thread_statuses(pid))
    if not statuses:
        raise AttestationFailed(f"process {pid} has no threads")
    for status in statuses:
        thread = status.get("Pid", "?")
        if status.get("PPid") != str(parent):
            raise AttestationFailed(f"thread {thread} is not a child of process {parent}")
        if set(map(int, status.get("Groups", "").split())) != set(account.groups):
            raise AttestationFailed(f"thread {thread}: Groups is {status.get('Groups')}, not {account.groups}")
        for field, expected in required.items():
            if status.get(field) != expected:
                raise AttestationFailed(f"thread {thread}: {field} is {status.get(field)}, not {expected}")


def _thread_statuses(pid: int) -> Iterator[Mapping[str, str]]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError as error:
        raise AttestationFailed(f"process {pid}: {error.strerror}") from None
    for thread in threads:
        try:
            text = (thread / "status").read_text()
            label = mac.label_of(f"{pid}/task/{thread.name}")
        except (
            FileNotFoundError,
            ProcessLookupError,
        ):  # this thread ended since; whatever it started was listed with it or is locked in as it was
            continue
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
        yield fields | {"Label": label or "none"}
