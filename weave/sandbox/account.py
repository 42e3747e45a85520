"""Users and groups as the kernel has them."""

import os
from pathlib import Path

from msgspec import Struct


class Account(Struct, frozen=True):
    """What a process runs as: user, primary group, supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def own(cls) -> "Account":
        """This process's."""
        return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def unmapped_uid() -> int:
    """The UID that the kernel shows for all UIDs outside our user namespace (user_namespaces(7)). Since it may stand
    for several users, it identifies none."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


def unmapped_gid() -> int:
    """The same for groups."""
    return int(Path("/proc/sys/kernel/overflowgid").read_text())
