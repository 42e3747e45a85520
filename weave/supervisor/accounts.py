"""Users and groups by name: who may connect, and who our children become when root starts us."""

import contextlib
import grp
import os
import pwd
from pathlib import Path

from weave.config.child_configs import Access
from weave.config.schema import ConfigError, SystemConfig
from weave.sandbox.process import Account, unmapped_gid, unmapped_uid

# user_namespaces(7): overflowuid, overflowgid.
_SHARED = "the kernel shows for everybody whom it has no number for"


def own_access() -> Access:
    """User mode: ourselves and nobody else, not even root. Raises ConfigError."""
    check_own()
    uid = os.geteuid()
    return Access(uids=(uid,), known=frozenset((uid,)), unmapped=unmapped_uid())


def check_own() -> None:
    """Raise ConfigError where the kernel shows other users under our UID too."""
    if os.geteuid() == unmapped_uid():
        raise ConfigError(
            f"our UID is {os.geteuid()}, which {_SHARED}; start as a user of your own, who is mapped if this is a user "
            "namespace"
        )


def system_access(system: SystemConfig) -> Access:
    """System mode: root, and whom the config names. Raises ConfigError where there is no such user or group."""
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
    """The group that the socket belongs to. Raises ConfigError."""
    return _group("socket_group", system.socket_group).gr_gid


def broker_account(system: SystemConfig) -> Account:
    """The broker needs no group but its own. Raises ConfigError."""
    user = _child("broker_user", system.broker_user)
    return Account(user.pw_uid, user.pw_gid, ())


def worker_account(system: SystemConfig, devices: tuple[Path, ...]) -> Account:
    """The worker is in its user's groups and in those that own the GPU's devices. Raises ConfigError."""
    user = _child("worker_user", system.worker_user)
    if user.pw_uid == _user("broker_user", system.broker_user).pw_uid:
        raise ConfigError(f"system.worker_user and broker_user are both UID {user.pw_uid}; they must be two users")
    owning = {device.stat().st_gid for device in devices if device.exists()} - {0}
    groups = owning | set(os.getgrouplist(user.pw_name, user.pw_gid))
    return Account(user.pw_uid, user.pw_gid, tuple(sorted(groups)))


def _child(field: str, name: str) -> pwd.struct_passwd:
    user = _user(field, name)
    if user.pw_uid == 0:
        raise ConfigError(f"system.{field} is {name!r}, which is root; it must be a user without any right")
    return user


def _user(field: str, name: str) -> pwd.struct_passwd:
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        mend = f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigError(f"system.{field}: there is no user {name!r}; make it with: {mend}") from None
    if user.pw_uid == unmapped_uid():
        raise ConfigError(f"system.{field}: {name!r} is UID {user.pw_uid}, which {_SHARED}; choose another user")
    return user


def _group(field: str, name: str) -> grp.struct_group:
    try:
        group = grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except (KeyError, OverflowError):
        raise ConfigError(
            f"system.{field}: there is no group {name!r}; make it with: groupadd --system {name}"
        ) from None
    if group.gr_gid == unmapped_gid():
        raise ConfigError(f"system.{field}: {name!r} is GID {group.gr_gid}, which {_SHARED}; choose another group")
    return group


def _listed() -> set[int]:
    """Every UID that has a name, as far as the database can be listed: of SSSD or LDAP only what they enumerate."""
    return {user.pw_uid for user in pwd.getpwall()}


def _members(group: grp.struct_group) -> set[int]:
    """By supplementary membership, and by primary group as far as the database can be listed."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group.gr_gid}
    for name in group.gr_mem:
        with contextlib.suppress(KeyError):  # a name that has no user (any more)
            members.add(pwd.getpwnam(name).pw_uid)
    return members
