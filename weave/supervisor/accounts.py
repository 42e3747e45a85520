"""Looks up users and groups: who may connect, and who the children run as if root starts the daemon."""

import contextlib
import grp
import os
import pwd
from pathlib import Path

from weave.config.child_configs import Access
from weave.config.schema import ConfigError, SystemConfig
from weave.sandbox.account import Account, unmapped_gid, unmapped_uid

# user_namespaces(7): overflowuid, overflowgid.
_SHARED = "the kernel shows for every ID that this user namespace does not map"


def own_access() -> Access:
    """User mode: our own user only, not even root. Raises ConfigError."""
    check_own()
    uid = os.geteuid()
    return Access(uids=(uid,), known=frozenset((uid,)), unmapped=unmapped_uid())


def check_own() -> None:
    """Raise ConfigError if other users may have our UID too."""
    if os.geteuid() == unmapped_uid():
        raise ConfigError(
            f"our UID is {os.geteuid()}, which {_SHARED}; start the daemon as another user, which is mapped"
        )


def system_access(system: SystemConfig) -> Access:
    """System mode: root, and the users and groups in the config. Raises ConfigError if one does not exist."""
    check_own()
    groups = [_group("allowed_groups", name) for name in system.allowed_groups]
    users = [_user("allowed_users", name).pw_uid for name in system.allowed_users]
    members = {uid for group in groups for uid in _members(group)}
    return Access(
        uids=(0, *users),
        gids=tuple(group.gr_gid for group in groups),
        members=tuple(sorted(members)),
        known=frozenset((0, *users, *members, *_listed())) - {unmapped_uid()},
        unmapped=unmapped_uid(),
    )


def socket_group(system: SystemConfig) -> int:
    """The socket's group. Raises ConfigError."""
    return _group("socket_group", system.socket_group).gr_gid


def broker_account(system: SystemConfig) -> Account:
    """Without supplementary groups, which the broker does not need. Raises ConfigError."""
    user = _child("broker_user", system.broker_user)
    return Account(user.pw_uid, user.pw_gid, ())


def worker_account(system: SystemConfig, devices: tuple[Path, ...]) -> Account:
    """With its user's groups and those that own the GPU's devices. Raises ConfigError."""
    user = _child("worker_user", system.worker_user)
    if user.pw_uid == _user("broker_user", system.broker_user).pw_uid:
        raise ConfigError(f"system.worker_user and broker_user are both UID {user.pw_uid}; they must be two users")
    owning = {device.stat().st_gid for device in devices if device.exists()} - {0}
    groups = owning | set(os.getgrouplist(user.pw_name, user.pw_gid))
    return Account(user.pw_uid, user.pw_gid, tuple(sorted(groups)))


def _child(field: str, name: str) -> pwd.struct_passwd:
    user = _user(field, name)
    if user.pw_uid == 0:
        raise ConfigError(f"system.{field} is {name!r}, which is root; it must be an unprivileged user")
    return user


def _user(field: str, name: str) -> pwd.struct_passwd:
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        fix = f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigError(f"system.{field}: there is no user {name!r}; create it with: {fix}") from None
    if user.pw_uid == unmapped_uid():
        raise ConfigError(f"system.{field}: {name!r} is UID {user.pw_uid}, which {_SHARED}; choose another user")
    return user


def _group(field: str, name: str) -> grp.struct_group:
    try:
        group = grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except (KeyError, OverflowError):
        raise ConfigError(
            f"system.{field}: there is no group {name!r}; create it with: groupadd --system {name}"
        ) from None
    if group.gr_gid == unmapped_gid():
        raise ConfigError(f"system.{field}: {name!r} is GID {group.gr_gid}, which {_SHARED}; choose another group")
    return group


def _listed() -> set[int]:
    """Every UID in the user database. SSSD and LDAP list only what they are configured to enumerate."""
    return {user.pw_uid for user in pwd.getpwall()}


def _members(group: grp.struct_group) -> set[int]:
    """By supplementary group, and by primary group for users that the database lists."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group.gr_gid}
    for name in group.gr_mem:
        with contextlib.suppress(KeyError):  # a name without a user
            members.add(pwd.getpwnam(name).pw_uid)
    return members
