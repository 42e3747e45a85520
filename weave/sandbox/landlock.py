"""Landlock: which files a process may access (landlock(7), Documentation/userspace-api/landlock.rst).

A ruleset binds the calling thread and everything that it starts, so it is applied while there is only one thread. It
cannot be lifted.
"""

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from weave.sandbox import libc

# linux/landlock.h
_CREATE_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH = 1
_ACCESS_FS_WRITE_FILE = 1 << 1
_ACCESS_FS_READ_FILE = 1 << 2
_ACCESS_FS_READ_DIR = 1 << 3
_ACCESS_FS_IOCTL_DEV = 1 << 15
_ACCESS_FS_OF_FILES = _ACCESS_FS_WRITE_FILE | _ACCESS_FS_READ_FILE | 1 << 14 | _ACCESS_FS_IOCTL_DEV
# Everything that creates, changes or removes a file: WRITE_FILE, REMOVE_DIR to MAKE_SYM, TRUNCATE.
_ACCESS_FS_CHANGE = _ACCESS_FS_WRITE_FILE | 0b1_1111_1111 << 4 | 1 << 14
_ACCESS_FS_KEEP_FILES = _ACCESS_FS_WRITE_FILE | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 14  # REMOVE_FILE, MAKE_REG, MAKE_SOCK
_ACCESS_NET_BIND_AND_CONNECT_TCP = 0b11
_SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL = 0b11

# The number of LANDLOCK_ACCESS_FS_* bits in each ABI; version 5 added IOCTL_DEV as bit 15.
_FS_BITS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_ABI_WITH_NETWORK = 4
_ABI_WITH_SCOPES = 6


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The kernel's Landlock ABI; 0 if it has no Landlock."""
    try:
        return libc.syscall(libc.SYS_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict_changes(*, folders: Iterable[Path] = (), written: Iterable[Path] = ()) -> str:
    """Allow this thread to create, change and remove files in `folders` only, and to write to files at or below
    `written`. Reading is not restricted. Returns the layer's name for status. Raises OSError."""
    version = _abi()
    handled = _ACCESS_FS_CHANGE & (1 << _FS_BITS_BY_ABI[min(version, 5)]) - 1
    ruleset = _create_ruleset(handled)
    try:
        for path in folders:
            _allow(ruleset, path, _ACCESS_FS_KEEP_FILES, handled)
        for path in written:
            _allow(ruleset, path, _ACCESS_FS_WRITE_FILE, handled)
        libc.syscall(libc.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"landlock-{version}-changes"


def restrict(*, read: Iterable[Path] = (), read_write: Iterable[Path] = (), unlisted: Iterable[Path] = ()) -> str:
    """Allow this thread to access only these files and folders, as far as they exist. Files in `unlisted` folders can
    be read and written, but the folders cannot be listed.

    no_new_privs must be set. Returns the layer's name for status. Raises OSError, also if the kernel has no Landlock.
    """
    version = _abi()
    handled = (1 << _FS_BITS_BY_ABI[min(version, 5)]) - 1
    ruleset = _create_ruleset(handled, **_all_but_files(version))
    try:
        for path in read:
            _allow(ruleset, path, _ACCESS_FS_READ_FILE | _ACCESS_FS_READ_DIR, handled)
        for path in read_write:
            access = _ACCESS_FS_READ_FILE | _ACCESS_FS_READ_DIR | _ACCESS_FS_WRITE_FILE | _ACCESS_FS_IOCTL_DEV
            _allow(ruleset, path, access, handled)
        for path in unlisted:
            _allow(ruleset, path, _ACCESS_FS_READ_FILE | _ACCESS_FS_WRITE_FILE, handled)
        libc.syscall(libc.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"landlock-{version}"


def restrict_all_but_opening() -> str:
    """For record mode: this thread may open all existing files and devices, but execute no program, create or remove no
    file, use no TCP and no abstract socket, and signal no other process. Returns the layer's name for status. Raises
    OSError."""
    version = _abi()
    opening = _ACCESS_FS_OF_FILES | _ACCESS_FS_READ_DIR
    handled = (1 << _FS_BITS_BY_ABI[min(version, 5)]) - 1 & ~opening
    ruleset = _create_ruleset(handled, **_all_but_files(version))
    try:
        libc.syscall(libc.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return "landlock-recording"


def _abi() -> int:
    version = abi()
    if not version:
        raise OSError("this kernel has no Landlock; it is needed (Linux 5.13 or later, lsm=landlock)")
    return version


def _all_but_files(version: int) -> dict[str, int]:
    """What this ABI can deny a process that uses no network and signals no other process."""
    return {
        "network": _ACCESS_NET_BIND_AND_CONNECT_TCP if version >= _ABI_WITH_NETWORK else 0,
        "scoped": _SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL if version >= _ABI_WITH_SCOPES else 0,
    }


def _create_ruleset(handled: int, *, network: int = 0, scoped: int = 0) -> int:
    attr = _RulesetAttr(handled_access_fs=handled, handled_access_net=network, scoped=scoped)
    # An older kernel accepts a longer struct than it knows if the rest is zero.
    pointer = ctypes.cast(ctypes.pointer(attr), ctypes.c_void_p)
    return libc.syscall(libc.SYS_LANDLOCK_CREATE_RULESET, pointer, ctypes.sizeof(attr), 0)


def _allow(ruleset: int, path: Path, access: int, handled: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _ACCESS_FS_OF_FILES
        attr = _PathBeneathAttr(allowed_access=access & handled, parent_fd=descriptor)
        pointer = ctypes.cast(ctypes.pointer(attr), ctypes.c_void_p)
        libc.syscall(libc.SYS_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, pointer, 0)
    except BaseException:
        os.close(descriptor)
        raise
    # A rule refers to an inode, and procfs recreates inodes that are not in use. So keep this one open.
    if not path.is_relative_to("/proc"):
        os.close(descriptor)
