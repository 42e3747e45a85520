"""Opening a config file that nobody else can have written (as sshd's StrictModes)."""

import os
import stat
from pathlib import Path

from weave.config.schema import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024


def read_checked(path: Path) -> bytes:
    """The bytes of `path`, if it and the folders above it belong to root or to us and only their owner can write.

    What is checked is the opened descriptor, so the file cannot be swapped in between. Raises ConfigError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        opened = os.fstat(file.fileno())
        if not stat.S_ISREG(opened.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        _check_owner_and_mode(path, opened)
        for folder in path.resolve().parents:
            _check_owner_and_mode(folder, os.stat(folder))
        if opened.st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        return file.read()


def _check_owner_and_mode(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: belongs to UID {found.st_uid}; mend it with: chown {os.geteuid()} {path}")
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a folder with the sticky bit (/tmp) others can add files but not replace ours.
    if writable and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path}: mode {mode:04o} lets others write to it; mend it with: chmod go-w {path}")
