"""A virtual environment for the daemon and its tests, created without pip: the machine's torch and our libraries."""

import os
import platform
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

from gpu_kit.machine import Torch

# A wheel's name.
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)")
_COMMANDS = {"weave-compute": "weave.supervisor.main", "weavectl": "weave.weavectl.main"}


def make(kit: Path, folder: Path, torch: Torch) -> Path:
    """Create the environment in `folder`. Returns its interpreter. All users can read it, as system mode's worker must.

    The import path is: our libraries, our source, the path of torch's Python, then what that Python lacks.
    """
    library = folder / "lib" / f"python{torch.version[0]}.{torch.version[1]}"
    first, last = library / "site-packages", library / "lacking" / "site-packages"
    extract(kit, folder)
    ours = choose(folder / "wheels/first", first, torch.version)
    theirs = choose(folder / "wheels/last", last, torch.version, without=torch.libraries)
    shutil.rmtree(folder / "wheels")
    if not torch.has_prctl:
        shutil.copyfile(kit / "gpu_kit/prctl.py", last / "prctl.py")
        theirs.append("a stand-in for python-prctl")
    if not torch.has_seccomp:
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
        found["LD_LIBRARY_PATH"] = ":".join([*before, str(folder / "libseccomp")])
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


def extract(kit: Path, folder: Path) -> None:
    """source/, wheels/ and libseccomp/, readable to all users."""
    with tarfile.open(kit / "contents.tar.xz") as archive:
        # We made it. Without a filter Python 3.12 and 3.13 warn; not every 3.11 has those of tarfile.
        archive.extraction_filter = lambda member, path: member
        archive.extractall(folder)


def choose(wheels: Path, site: Path, version: tuple[int, int], without: frozenset[str] = frozenset()) -> list[str]:
    """Copy into `site` what the wheels that fit this Python contain. Returns their names and versions. None needs a
    build step."""
    site.mkdir(parents=True)
    chosen = []
    for wheel in sorted(wheels.iterdir()):
        tags = _WHEEL.fullmatch(wheel.name)
        assert tags is not None, wheel
        if fits(tags, version) and tags["name"].lower().replace("_", "-") not in without:
            shutil.copytree(wheel, site, dirs_exist_ok=True)
            chosen.append(f"{tags['name']} {tags['version']}")
    return chosen


def fits(tags: re.Match[str], version: tuple[int, int]) -> bool:
    """Whether a wheel is pure Python, or for this machine and this Python's ABI, or the stable ABI of an earlier
    one."""
    if tags["platform"] == "any":
        return "py3" in tags["python"].split(".")
    if not tags["platform"].endswith(platform.machine()):
        return False
    oldest = int(tags["python"].removeprefix("cp3"))
    return oldest == version[1] or (tags["abi"] == "abi3" and oldest <= version[1])
