"""Files and folders that only root and our user can write to (like sshd's StrictModes)."""

import errno
import itertools
import os
import stat
from pathlib import Path

from weave.config.schema import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024


def read_checked(path: Path) -> bytes:
    """The content of `path`, if only root and our user can write to it and to the folders above it.

    The checks are on the open descriptor, so the file cannot be replaced between check and use. Raises ConfigError.
    """
    folder = path.parent.resolve()
    try:
        above = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=above)
    except OSError as error:
        os.close(above)
        hint = " (symbolic links are not followed)" if error.errno == errno.ELOOP else ""
        raise ConfigError(f"{path}: {error.strerror}{hint}") from None
    try:
        _check_folders(folder, above)
        opened = os.fstat(descriptor)
        if not stat.S_ISREG(opened.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        _check_owner_and_mode(path, opened)
        if opened.st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def open_own_folder(path: Path) -> int:
    """A folder to write files in. It and all folders above it are root's or ours, so no other user can make us follow a
    link. Returns a descriptor, which the caller owns. Raises ConfigError.

    A group may have write access to its parent if that is root's, like /var/log on Ubuntu. Such a group can rename the
    folder, but we do not follow a link in its place.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & stat.S_ISVTX and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{path}: mode {mode:04o} lets others create files in it; use a folder that only you can write to"
            )
        _check_folders(path.resolve(), os.dup(descriptor), group_above=True)
        if os.path.samestat(os.fstat(descriptor), os.stat("/")):
            raise ConfigError(f"{path}: the root folder is not allowed")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_folder(path: Path) -> None:
    """Check that only root and our user can write to `path` and the folders above it. Raises ConfigError, OSError."""
    folder = path.resolve()
    _check_folders(folder, os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def check_open_folder(folder: Path, descriptor: int) -> None:
    """The same for a folder that is already open. The caller still owns `descriptor`. Raises ConfigError."""
    _check_folders(folder, os.dup(descriptor))


def _check_folders(folder: Path, descriptor: int, *, group_above: bool = False) -> None:
    """Check `folder`, open as `descriptor`, and all folders above it. Each is reached by the .. of the one below, so
    they are the folders that the file is really in. Closes `descriptor`. `group_above`: see open_own_folder."""
    for level in itertools.count():
        try:
            found = os.fstat(descriptor)
            _check_owner_and_mode(folder, found, group_may_write=group_above and level == 1 and found.st_uid == 0)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        if os.path.samestat(found, os.fstat(above)):  # the root is its own parent
            os.close(above)
            return
        folder, descriptor = folder.parent, above


def _check_owner_and_mode(path: Path, found: os.stat_result, *, group_may_write: bool = False) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: belongs to UID {found.st_uid}; fix it with: chown {os.geteuid()} {path}")
    writable = found.st_mode & (stat.S_IWOTH | (0 if group_may_write else stat.S_IWGRP))
    # In a folder with the sticky bit (/tmp) other users can add files, but not replace ours.
    if writable and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path}: mode {mode:04o} lets others write to it; fix it with: chmod go-w {path}")
