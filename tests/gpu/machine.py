"""Describes the machine. `python -m tests.gpu.machine` prints what torch knows of the card. It is a separate process,
since a process that has initialised CUDA holds VRAM and cannot fork."""

import ctypes
import functools
import grp
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.gpu import driver
from tests.gpu.report import ROOT
from weave.sandbox import landlock, worker_files

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "msgspec", "numpy", "pillow", "triton")
START = ("seconds to warm it up", "VRAM in use then, MiB")
_NAMES_OF_CONTAINERS = re.compile(r"[0-9a-f-]{12,}")


@functools.cache
def card(loading: str = "") -> dict[str, Any]:
    """What torch says; `reason` where it has no card. `loading` is CUDA_MODULE_LOADING; empty, as the worker has it."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.gpu.machine", loading],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        failure = f"status {ended.returncode}: {ended.stderr[-1000:]}" if ended.returncode != 0 else None
    except subprocess.TimeoutExpired as error:
        failure = str(error)
    if failure is not None:  # where there is a device, the tests will say more
        return {"facts" if list(Path("/dev").glob("nvidia[0-9]*")) else "reason": f"torch could not tell: {failure}"}
    facts: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return facts


def why_no_card() -> str | None:
    return card().get("reason")


def facts() -> dict[str, Any]:
    return {
        "card": card(),
        "driver": _or_reason(driver.version),
        "driver's module": _text("/proc/driver/nvidia/version").partition("\n")[0],
        "VRAM in use, MiB": _or_reason(driver.used_mib),
        "versions": {name: _version(name) for name in _PACKAGES} | {"Python": platform.python_version()},
        "glibc": " ".join(platform.libc_ver()),
        "kernel": f"{platform.release()} {platform.machine()}",
        "Landlock ABI": landlock.abi(),
        "LSMs": _text("/sys/kernel/security/lsm"),
        "seccomp's actions": _text("/proc/sys/kernel/seccomp/actions_avail"),
        "libseccomp": _libseccomp(),
        "seccomp filters we are in": _status("Seccomp_filters"),
        "capabilities": _status("CapEff"),
        "UID": os.getuid(),
        "groups": [_group(number) for number in os.getgroups()],
        "device files": device_files(),
        "cgroup": _NAMES_OF_CONTAINERS.sub("...", _text("/proc/self/cgroup")),
        "memory.max": _text("/sys/fs/cgroup/memory.max"),
        "processor": next(iter(re.findall(r"model name\s*: (.*)", _text("/proc/cpuinfo"))), platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "RAM, GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free where files go, GiB": round(shutil.disk_usage(tempfile.gettempdir()).free / 2**30, 1),
    }


def missing(found: dict[str, Any], *, rehearsal: bool) -> list[str]:
    """What the daemon requires."""
    lacks = [] if found["Landlock ABI"] else ["Landlock"]
    if "user_notif" not in found["seccomp's actions"]:
        lacks.append("seccomp's notifications")
    if rehearsal:
        return lacks
    if "reason" in found["card"]:
        lacks.append(f"a card: {found['card']['reason']}")
    files = found["device files"]
    lacks += [name for name in ("/dev/nvidiactl", "/dev/nvidia-uvm") if name not in files]
    return lacks


def device_files() -> dict[str, str]:
    """Owner and mode of each file of the driver's, and whether our worker gets it."""
    found = {}
    places = ("nvidia*", "nvidia-caps/*", "nvidia-caps-imex-channels/*", "dri/*", "kfd")
    for path in sorted(path for place in places for path in Path("/dev").glob(place) if path.is_char_device()):
        status = path.stat()
        ours = "the worker's" if path in worker_files.DEVICES else "not the worker's"
        found[str(path)] = f"{status.st_uid}:{_group(status.st_gid)} {status.st_mode & 0o7777:04o}, {ours}"
    return found


def _or_reason(ask: Any) -> Any:
    try:
        return ask()
    except OSError as error:
        return f"none ({error})"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        return f"none ({error.strerror})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _libseccomp() -> str:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "none"
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))


def _status(name: str) -> str:
    return next(iter(re.findall(rf"^{name}:\s*(\S+)", _text("/proc/self/status"), re.MULTILINE)), "none")


def _group(number: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)


def _mapped() -> set[Path]:
    """The files that this process has mapped."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return {Path(line[5]) for line in lines if len(line) == 6 and line[5].startswith("/")}


def _ask_torch(loading: str) -> dict[str, Any]:
    from weave.gpu_worker import environment

    environment.apply()
    if loading:
        os.environ["CUDA_MODULE_LOADING"] = loading
    import torch

    from weave.gpu_worker import device

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # torch's word for a build without CUDA is the first
        return {"reason": str(error)}
    before = time.monotonic()
    device.warm_up(torch.device("cuda", 0))
    seconds = time.monotonic() - before
    cards = []
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        size = f"{known.total_memory / 2**30:.1f} GiB"
        cards.append(f"{known.name}, {size}, compute capability {known.major}.{known.minor}")
    free, total = torch.cuda.mem_get_info()
    mapped = _mapped()
    readable = tuple(place.resolve() for place in worker_files.READ)
    return {
        "cards": cards,
        "CUDA of torch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(),
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "seconds to warm it up": round(seconds, 2),
        "VRAM in use then, MiB": (total - free) >> 20,
        "threads then": len(os.listdir("/proc/self/task")),
        "the driver's libraries": sorted(str(path) for path in mapped if re.match(r"lib(cuda|nvidia)", path.name)),
        "mapped, and not in the worker's READ": sorted(
            str(path) for path in mapped if not any(path.is_relative_to(place) for place in readable)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(_ask_torch(*sys.argv[1:])))
