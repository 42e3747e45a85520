"""Finds the machine's torch, and the Python that it is installed for."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
_SEARCH_SECONDS = 60
_PROBE_SECONDS = 60
# Kernel interfaces and network file systems.
_NOT_SEARCHED = {
    *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "mqueue"),
    *("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "autofs", "nsfs"),
}

# Runs in a candidate of any version. It does not import torch, which takes seconds: torch/version.py says enough.
_PROBE = """
import ctypes, importlib.util, json, os, re, sys
from importlib import metadata

def loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True

spec = importlib.util.find_spec("torch")
file = os.path.join(list(spec.submodule_search_locations)[0], "version.py") if spec else None
text = open(file).read() if file and os.path.exists(file) else ""
named = {name: value for name, value in re.findall(r"^(\\w+)[^=\\n]*= '([^']+)'", text, re.MULTILINE)}
standard = os.path.dirname(os.__file__)
print(json.dumps({
    "python": os.path.realpath(sys.executable),
    "version": list(sys.version_info[:2]),
    "base": sys.base_prefix,
    "folders": [path for path in sys.path if os.path.isdir(path) and path not in (standard, standard + "/lib-dynload")],
    "torch": named.get("__version__"),
    "built_for": "CUDA " + named["cuda"] if "cuda" in named else "ROCm " + named["hip"] if "hip" in named else "",
    "libraries": sorted({(each.metadata["Name"] or "").lower().replace("_", "-") for each in metadata.distributions()}),
    "has_prctl": importlib.util.find_spec("prctl") is not None,
    "has_seccomp": loads("libseccomp.so.2"),
}))
"""


class CannotRun(Exception):
    """The tests cannot start on this machine. The message says why, and what to do."""


@dataclass(frozen=True)
class Torch:
    """An installed torch. `folders` are its Python's import path in order, without the standard library."""

    interpreter: str  # as we found it
    python: Path  # with links resolved
    version: tuple[int, int]
    base: Path
    folders: tuple[Path, ...]
    torch: str
    built_for: str  # a GPU's platform; empty for a CPU build
    libraries: frozenset[str]  # canonical names
    has_prctl: bool
    has_seccomp: bool

    def __str__(self) -> str:
        major, minor = self.version
        return f"torch {self.torch} ({self.built_for or 'CPU only'}) of {self.interpreter}, Python {major}.{minor}"


def find() -> Torch:
    """The torch of $TORCH_PYTHON. Without that variable, the first one built for a GPU, looking on PATH first and then
    on the whole machine; or the first one, if there is none for a GPU. Raises CannotRun, with what was found."""
    fallback, seen = None, []
    for interpreter in _interpreters():
        found = _probe(interpreter)
        if isinstance(found, str):
            seen.append(f"{interpreter}: {found}")
        elif not OLDEST <= found.version <= NEWEST:
            seen.append(f"{found}: the kit works on Python 3.11, 3.12 and 3.13")
        elif found.built_for:
            return found
        else:
            fallback = fallback or found
    if fallback is None:
        lines = ["found no torch; set the Python that has it: TORCH_PYTHON=/path/to/bin/python", *seen]
        raise CannotRun("\n  ".join(lines))
    return fallback


def _interpreters() -> Iterator[str]:
    """Candidates, each once. The search of the machine starts only if the others were not taken."""
    if named := os.environ.get("TORCH_PYTHON"):
        yield os.path.abspath(shutil.which(named) or named)
        return
    seen = set()
    environments = [os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    near = [shutil.which("python3"), shutil.which("python"), *(f"{folder}/bin/python" for folder in environments)]
    for interpreter in (*near, *_searched()):
        if interpreter is not None and interpreter not in seen:
            seen.add(interpreter)
            yield interpreter


def _searched() -> Iterator[str]:
    """The interpreters of all library folders that have torch."""
    print("gpu-kit: searching the file systems of this machine for torch ...", flush=True)
    for site in _folders_with_torch():
        name = site.parent.name  # pythonX.Y; Debian has a python3/dist-packages too
        for place in list(site.parents)[2:4]:  # PREFIX/lib/NAME/, /usr/local/lib/NAME/ of /usr/bin/NAME
            interpreters = [place / "bin" / executable for executable in (name, "python3", "python")]
            if found := next((path for path in interpreters if os.access(path, os.X_OK)), None):
                yield str(found)
                break


def _folders_with_torch() -> Iterator[Path]:
    """Searches for _SEARCH_SECONDS at most. Follows no links."""
    end = time.monotonic() + _SEARCH_SECONDS
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    skipped = {mount[1] for mount in mounts if mount[2] in _NOT_SEARCHED} | {"/proc", "/sys", "/dev"}
    for folder, folders, _ in os.walk("/"):
        if time.monotonic() > end:
            print(f"gpu-kit: stopped searching after {_SEARCH_SECONDS} s", flush=True)
            return
        if os.path.basename(folder) in ("site-packages", "dist-packages"):
            if os.path.exists(os.path.join(folder, "torch/version.py")):
                yield Path(folder)
            folders.clear()
        else:
            folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]


def _probe(interpreter: str) -> Torch | str:
    """Its torch, or why it cannot be used."""
    try:
        command = [interpreter, "-B", "-c", _PROBE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True, cwd="/")
        said = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"does not run ({error})"
    if said["torch"] is None:
        return "has no torch"
    return Torch(
        interpreter=interpreter,
        python=Path(said["python"]),
        version=(said["version"][0], said["version"][1]),
        base=Path(said["base"]),
        folders=tuple(Path(folder) for folder in said["folders"] if folder),
        torch=said["torch"],
        built_for=said["built_for"],
        libraries=frozenset(said["libraries"]),
        has_prctl=said["has_prctl"],
        has_seccomp=said["has_seccomp"],
    )
