"""A virtual environment for the daemon and its tests, created without pip: the machine's torch and our libraries."""

import os
import platform
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

from gpu_kit.machine import Torch

# NAME-VERSION-PYTHON-ABI-PLATFORM.whl
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl")
_COMMANDS = {"weave-compute": "weave.supervisor.main", "weavectl": "weave.weavectl.main"}


def make(kit: Path, folder: Path, torch: Torch) -> Path:
    """Create the environment in `folder`. Returns its interpreter. All users can read it, as system mode's worker must.

    The import path is: our libraries, our source, the path of torch's Python, then what that Python lacks.
    """
    library = folder / "lib" / f"python{torch.version[0]}.{torch.version[1]}"
    first, last = library / "site-packages", library / "lacking" / "site-packages"
    copy(kit / "source", folder / "source")
    ours = unpack(kit / "wheels/first", first, torch.version)
    theirs = unpack(kit / "wheels/last", last, torch.version, without=torch.libraries)
    if not torch.has_prctl:
        shutil.copyfile(kit / "gpu_kit/prctl.py", last / "prctl.py")
        theirs.append("a stand-in for python-prctl")
    if not torch.has_seccomp:
        copy(kit / "lib", folder / "lib")
        theirs.append("libseccomp")
    print("gpu-kit: from the kit:", ", ".join(ours), flush=True)
    print("gpu-kit: from the kit, as this machine lacks them:", ", ".join(theirs) or "nothing", flush=True)
    lines = [folder / "source", *torch.folders, last]
    (first / "kit.pth").write_text("".join(f"{line}\n" for line in lines))
    (folder / "pyvenv.cfg").write_text(f"home = {torch.base / 'bin'}\ninclude-system-site-packages = false\n")
    python = folder / "bin/python"
    python.parent.mkdir()
    python.symlink_to(torch.python)
    for name, module in _COMMANDS.items():
        (folder / "bin" / name).write_text(f"#!{python} -IB\nfrom {module} import main\n\nmain()\n")
        (folder / "bin" / name).chmod(0o755)
    compile_all(python, library, folder / "source/weave")
    return python


def variables(folder: Path, torch: Torch) -> dict[str, str]:
    """The environment variables: the caller's, so that libraries in unusual places are found, with our changes."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    if not torch.has_seccomp:
        before = [found["LD_LIBRARY_PATH"]] if found.get("LD_LIBRARY_PATH") else []
        found["LD_LIBRARY_PATH"] = ":".join([*before, str(folder / "lib")])
    # For ldconfig and useradd, which a user's PATH may not include.
    found["PATH"] = f"{found.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # Write neither next to the machine's libraries nor into the user's home folder.
    found["PYTHONDONTWRITEBYTECODE"] = "1"
    found["TMPDIR"] = str(folder / "t")
    found["XDG_CACHE_HOME"] = found["CUDA_CACHE_PATH"] = str(folder / "cache")
    return found


def compile_all(python: Path, *folders: Path) -> None:
    """The daemon writes no .pyc files. Without them each of its processes would compile what it imports of
    diffusers."""
    command = [str(python), "-m", "compileall", "-q", "-j", "0", *map(str, folders)]
    with subprocess.Popen(command, start_new_session=True) as compiling:
        try:
            compiling.wait()
        finally:
            if compiling.poll() is None:  # we were stopped; its workers would not notice
                os.killpg(compiling.pid, signal.SIGKILL)


def copy(source: Path, target: Path) -> None:
    """Copy all files, with modes from the umask: those of the kit may exclude other users."""
    for file in source.rglob("*"):
        place = target / file.relative_to(source)
        if file.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def unpack(wheels: Path, site: Path, version: tuple[int, int], without: frozenset[str] = frozenset()) -> list[str]:
    """Unpack the wheels that fit this Python. Returns their names and versions. None needs a build step."""
    site.mkdir(parents=True)
    unpacked = []
    for wheel in sorted(wheels.glob("*.whl")):
        tags = _WHEEL.fullmatch(wheel.name)
        assert tags is not None, wheel
        if fits(tags, version) and tags["name"].lower().replace("_", "-") not in without:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            unpacked.append(f"{tags['name']} {tags['version']}")
    return unpacked


def fits(tags: re.Match[str], version: tuple[int, int]) -> bool:
    """Whether a wheel is pure Python, or for this machine and this Python's ABI, or the stable ABI of an earlier
    one."""
    if tags["platform"] == "any":
        return "py3" in tags["python"].split(".")
    if not tags["platform"].endswith(platform.machine()):
        return False
    oldest = int(tags["python"].removeprefix("cp3"))
    return oldest == version[1] or (tags["abi"] == "abi3" and oldest <= version[1])
