"""Builds gpu-kit/, which tests the daemon on a GPU machine that has torch, but no network and no compiler.

It contains the launcher (gpu_kit/) and an archive: our source, the wheels that the machine may lack (with the hashes in
requirements.lock), and libseccomp. docs/operations.md, "Prove it on your GPU".
"""

import ctypes
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pins

from weave import __version__

KIT = Path("gpu-kit")
ARCHIVE = KIT / "contents.tar.xz"
LARGEST_BYTES = 55_000_000
# The versions that gpu_kit/run and gpu_kit/machine.py accept.
PYTHONS = ("3.11", "3.12", "3.13")
# Imported instead of the machine's. All others are used only if the machine lacks them.
OURS = {"diffusers", "markdown-it-py", "mdurl", "msgspec", "pygments", "pyseccomp", "rich"}
TESTS = ("pytest", "pytest-timeout")
# The first three are large and usually installed with torch; the next two are for servers and downloads; python-prctl
# has a stand-in.
EXCLUDED = {"torch", "numpy", "pillow", "pydantic", "hf-xet", "python-prctl"}
# They need no GPU, or tools that the kit does not have.
EXCLUDED_TESTS = ("kit", "mac", "packages", "vm")
SECCOMP = "libseccomp.so.2"
# Where distributions have its licence, which the LGPL requires us to include.
LICENCES = (Path("/usr/share/doc/libseccomp2/copyright"), Path("/usr/share/licenses/libseccomp/LICENSE"))


def main() -> None:
    """Replaces an existing kit. Raises SystemExit if it is larger than LARGEST_BYTES."""
    shutil.rmtree(KIT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        contents = Path(temporary)
        take_source(contents / "source")
        take_wheels(contents / "wheels")
        take_seccomp(contents / "libseccomp")
        take_launcher()
        # A higher preset takes a minute longer and saves a tenth.
        with tarfile.open(ARCHIVE, "w:xz", preset=1) as archive:
            archive.add(contents, "", filter=_readable)
    size = sum(file.stat().st_size for file in KIT.rglob("*"))
    print(f"{KIT}/: {size / 1e6:.1f} MB")
    if size > LARGEST_BYTES:
        raise SystemExit(f"{KIT}/ is larger than {LARGEST_BYTES / 1e6:.0f} MB")


def take_source(source: Path) -> None:
    """The daemon, its tests, and the demo model."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree("weave", source / "weave", ignore=ignored)
    shutil.copytree("tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__", *EXCLUDED_TESTS))
    shutil.copytree("models/shapes", source / "models/shapes")
    shutil.copy("pyproject.toml", source)


def take_wheels(folder: Path) -> None:
    """first/ is imported before the machine's libraries, last/ after them."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *TESTS]
    names = set().union(*(pins.needed(wanted, python, EXCLUDED) for python in PYTHONS))
    download(OURS, folder / "first")
    download(names - OURS, folder / "last")


def download(names: Iterable[str], folder: Path) -> None:
    """The wheels of `names` for each Python, each unpacked in a folder of its name; a pure Python wheel only once."""
    with tempfile.TemporaryDirectory() as wheels, tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins.of(set(names))) + "\n")
        file.flush()
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        for python in PYTHONS:
            options = ["--only-binary=:all:", "--python-version", python, "--dest", wheels]
            subprocess.run([*pip, *options, "--requirement", file.name], check=True)
        for wheel in Path(wheels).iterdir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / wheel.stem)


def take_seccomp(folder: Path) -> None:
    """This machine's libseccomp, which depends on libc only, and its licence."""
    ctypes.CDLL(SECCOMP)
    (library,) = set(re.findall(rf"\S+/{SECCOMP}\S*", Path("/proc/self/maps").read_text()))
    folder.mkdir()
    shutil.copy(library, folder / SECCOMP)
    licence = next((file for file in LICENCES if file.exists()), None)
    if licence is None:
        raise SystemExit(f"libseccomp's licence is in none of {', '.join(map(str, LICENCES))}")
    shutil.copy(licence, folder / "licence")


def take_launcher() -> None:
    """`run` starts it with a Python of the machine."""
    shutil.copytree("gpu_kit", KIT / "gpu_kit", ignore=shutil.ignore_patterns("__pycache__", "run"))
    shutil.copy("gpu_kit/run", KIT)
    (KIT / "__main__.py").write_text("from gpu_kit.launch import main\n\nmain()\n")
    (KIT / "made-from").write_text(f"weave-compute {__version__}, commit {commit()}, {platform.machine()}\n")


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Root's, and for all users, whatever this checkout's modes are."""
    entry.mode = 0o755 if entry.isdir() else 0o644
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def commit() -> str:
    """As git describes it; "unknown" outside git."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
