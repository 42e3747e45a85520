"""Opening a config file that nobody else can have written (as sshd's StrictModes)."""

import errno
import itertools
import os
import stat
from pathlib import Path

from weave.config.schema import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024


def read_checked(path: Path) -> bytes:
    """The bytes of `path`, if it and the folders above it belong to root or to us and only their owner can write.

    What is checked is the opened descriptor, so the file cannot be swapped in between. Raises ConfigError.
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
        hint = " (a link is not followed)" if error.errno == errno.ELOOP else ""
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
    """A folder to write in, which is root's or ours, as all above it: nobody else can put a link there for us to
    follow. Returns its descriptor. Raises ConfigError.

    A group may write to the folder right above it if that is root's, as to /var/log on Ubuntu: it can take the folder
    away, but no link in its place is followed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & stat.S_ISVTX and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{path}: mode {mode:04o} lets others make files in it; choose a folder of your own")
        _check_folders(path.resolve(), os.dup(descriptor), group_above=True)
        if os.path.samestat(os.fstat(descriptor), os.stat("/")):
            raise ConfigError(f"{path}: files are not kept in the root itself")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_folder(path: Path) -> None:
    """That `path` and all above it are root's or ours, and nobody else can write there. Raises ConfigError, OSError."""
    folder = path.resolve()
    _check_folders(folder, os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def check_open_folder(folder: Path, descriptor: int) -> None:
    """The same for a folder that is open as `descriptor`, and stays open. Raises ConfigError."""
    _check_folders(folder, os.dup(descriptor))


def _check_folders(folder: Path, descriptor: int, *, group_above: bool = False) -> None:
    """`folder`, open as `descriptor`, which is closed, and all above it: each by way of the one below, so that
    what is checked are the folders that the file really is in. `group_above`: see open_own_folder."""
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
        raise ConfigError(f"{path}: belongs to UID {found.st_uid}; mend it with: chown {os.geteuid()} {path}")
    writable = found.st_mode & (stat.S_IWOTH | (0 if group_may_write else stat.S_IWGRP))
    # In a folder with the sticky bit (/tmp) others can add files but not replace ours.
    if writable and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path}: mode {mode:04o} lets others write to it; mend it with: chmod go-w {path}")
