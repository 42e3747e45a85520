"""The files that generate writes. They are checked before the daemon is asked."""

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Protocol

from weave.weavectl.output import UsageError

_STANDARD_OUTPUT = 1
# What link(2) returns on file systems without hard links, such as FAT.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class ImageFiles(Protocol):
    """One file for each image."""

    def display_name(self, image: int) -> str:
        """The name of an image's file, for people."""

    def write(self, image: int, data: bytes) -> None:
        """Write a preview, or the image that replaces it. Raises OSError."""

    def close(self) -> None:
        """Release the descriptors."""


def is_standard_output(output: str) -> bool:
    """Whether the image would be mixed with weavectl's own lines: for /dev/stdout, or the file that standard output is
    redirected to. /dev/null does not count."""
    if output == "-":
        return True
    try:
        found, ours = os.stat(output), os.fstat(_STANDARD_OUTPUT)
    except OSError:
        return False
    return os.path.samestat(found, ours) and (not stat.S_ISCHR(ours.st_mode) or os.isatty(_STANDARD_OUTPUT))


def open_image_files(output: str, images: int, *, force: bool, previews: bool) -> ImageFiles:
    """Raises UsageError, OSError."""
    found = None
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(output or ".")
    if output.endswith("/") or (found is not None and stat.S_ISDIR(found.st_mode)):
        raise UsageError(f"{output or '.'} is a folder; name a file in it")
    stream = output == "-" or (found is not None and not stat.S_ISREG(found.st_mode))
    if not stream:
        return _RegularFiles(Path(output), images, force=force)
    if images > 1 or previews:
        raise UsageError(f"{output} takes one image, without previews; name a regular file for more")
    if output != "-":
        return _Stream(output, os.open(output, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC))
    if os.isatty(_STANDARD_OUTPUT):
        raise UsageError("standard output is a terminal; redirect it, or name a file with -o")
    return _Stream("standard output", os.dup(_STANDARD_OUTPUT))


class _Stream:
    """A pipe, a device or standard output: written to, never replaced."""

    def __init__(self, shown: str, descriptor: int) -> None:
        self._shown = shown
        self._descriptor = descriptor

    def display_name(self, image: int) -> str:
        return self._shown

    def write(self, image: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise _named(error, self._shown) from None

    def close(self) -> None:
        os.close(self._descriptor)


class _RegularFiles:
    """Each image is written to a temporary file and then renamed, so that no incomplete image is ever visible. The
    folder stays the one that was checked, even if it is renamed. A file that is created meanwhile is not overwritten
    either."""

    def __init__(self, path: Path, images: int, *, force: bool) -> None:
        self._path = path
        self._images = images
        self._force = force
        self._written: set[str] = set()
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def display_name(self, image: int) -> str:
        return self._shown(self._name(image))

    def write(self, image: int, data: bytes) -> None:
        name, part = self._name(image), f".weave-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(part, flags, 0o666, dir_fd=self._folder)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                self._put(part, name)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=self._folder)
        except OSError as error:
            raise _named(error, self.display_name(image)) from None

    def close(self) -> None:
        os.close(self._folder)

    def _name(self, image: int) -> str:
        return self._path.name if self._images <= 1 else f"{self._path.stem}-{image + 1}{self._path.suffix}"

    def _shown(self, name: str) -> str:
        return str(self._path.parent / name)

    def _check(self) -> None:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._folder):
            raise PermissionError(f"no file can be created in {self._path.parent}")
        if self._images > 1:
            # There may be more images than files in the folder, so look through the latter.
            numbered = re.compile(rf"{re.escape(self._path.stem)}-([1-9][0-9]{{0,18}}){re.escape(self._path.suffix)}")
            found = filter(None, map(numbered.fullmatch, os.listdir(self._path.parent)))
            for number in sorted(int(name[1]) for name in found):
                if number <= self._images:
                    self._check_place(self._name(number - 1))
        self._check_place(self._name(max(self._images, 1) - 1))  # the longest name

    def _check_place(self, name: str) -> None:
        shown = self._shown(name)
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _named(error, shown) from None
        if not self._force and name not in self._written:
            raise FileExistsError(_exists(shown))
        if not stat.S_ISREG(found.st_mode):
            raise FileExistsError(f"{shown} is not a regular file, and is not replaced")

    def _put(self, part: str, name: str) -> None:
        self._check_place(name)
        if not self._force and name not in self._written:
            self._create(part, name)
        os.replace(part, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._written.add(name)

    def _create(self, part: str, name: str) -> None:
        """Create `name`, unless it exists. Raises FileExistsError."""
        try:
            os.link(part, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileExistsError:
            raise FileExistsError(_exists(self._shown(name))) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=self._folder))


def _exists(shown: str) -> str:
    return f"{shown} exists; --force overwrites it"


def _named(error: OSError, shown: str) -> OSError:
    """An error of the system, with the name that the user gave."""
    return error if error.errno is None else OSError(error.errno, error.strerror, shown)
