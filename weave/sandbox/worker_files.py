"""The files that a GPU worker may open besides its model: the program, its libraries, the GPU."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import weave
from weave.models.files import linked_files
from weave.sandbox.nvidia import Card


def packages(search: Iterable[str]) -> tuple[Path, ...]:
    """The folders of installed packages in `search` (sys.path). A .pth file may add those of another environment, which
    has torch. Not other folders: an editable install adds a whole source tree."""
    named = (Path(entry) for entry in search if entry.startswith("/"))
    return tuple(path for path in named if path.name in ("site-packages", "dist-packages") and os.path.isdir(path))


def libraries(search: str) -> tuple[Path, ...]:
    """The shared libraries in the folders of `search` (LD_LIBRARY_PATH), such as a driver's that /etc/ld.so.cache does
    not list. The user who starts the daemon has set it, so it is trusted. But such a folder may have other files too,
    or be a home folder. So the libraries are allowed, not the folder."""
    found = []
    for folder in sorted({entry for entry in search.split(":") if entry.startswith("/")}):
        with contextlib.suppress(OSError):
            found += sorted(path for path in Path(folder).iterdir() if re.search(r"\.so(\.\d+)*$", path.name))
    return tuple(path for path in found if os.path.isfile(path))


# diffusers, transformers and CUDA load modules and libraries when first used, which may be after the fork. `read` does
# not include Landlock's right to execute.
READ = (
    Path(sys.prefix),
    # The standard library. Some systems have its extension modules in lib64.
    Path(sys.base_prefix) / "lib",
    Path(sys.base_exec_prefix) / sys.platlibdir,
    *packages(sys.path),
    Path(weave.__file__).parent,
    Path("/usr/lib"),
    Path("/usr/lib64"),
    Path("/usr/local/lib"),
    Path("/usr/local/cuda"),
    # The driver's libraries: in NVIDIA's images and on GKE; on NixOS, which has links into its store.
    Path("/usr/local/nvidia"),
    Path("/run/opengl-driver"),
    *([Path("/nix/store")] if os.path.isdir("/run/opengl-driver") else []),
    *libraries(os.environ.get("LD_LIBRARY_PATH", "")),
    Path("/opt/rocm"),
    Path("/etc/ld.so.cache"),
    # The number of cores and the amount of memory, for torch, OpenMP and oneDNN.
    Path("/proc/cpuinfo"),
    Path("/proc/meminfo"),
    Path("/sys/devices/system/cpu"),
    Path("/sys/devices/system/node"),
    # What the NVIDIA driver and ROCm say of the card.
    Path("/proc/driver/nvidia"),
    Path("/proc/driver/nvidia-uvm"),
    Path("/proc/devices"),
    Path("/proc/modules"),
    Path("/proc/sys/vm/mmap_min_addr"),
    Path("/sys/devices/system/memory/block_size_bytes"),
    Path("/sys/bus/pci/devices"),  # links: see cards()
    Path("/sys/class/kfd"),
    Path("/sys/devices/virtual/kfd"),
    Path("/dev/urandom"),
)


def nvidia(devices: Path = Path("/dev")) -> tuple[Path, ...]:
    """The devices that CUDA needs. Not nvidia-modeset (displays), nvidia-uvm-tools (profilers), nvidia-nvlink and
    nvidia-nvswitch (several cards) and nvidia-caps (MIG, which is not supported)."""
    return tuple(sorted(path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia(ctl|-uvm|\d+)", path.name)))


# NVIDIA's character devices; KFD and the render nodes for ROCm.
NVIDIA = nvidia()
DEVICES = (
    *NVIDIA,
    Path("/dev/kfd"),
    *sorted(Path("/dev/dri").glob("renderD*")),
    Path("/dev/null"),
)

# What the supervisor's own ruleset must allow so that its workers can write it. CUDA fails to start if it cannot name
# its threads, by writing to /proc/PID/task/TID/comm (pthread_setname_np(3)). Landlock has no patterns, and the PID is
# not known yet.
WRITABLE = (*DEVICES, *([Path("/proc")] if NVIDIA else []))

# PCI classes of display controllers and processing accelerators, as in sysfs.
_CLASSES_OF_CARDS = ("0x03", "0x12")


def cards(devices: Path = Path("/sys/bus/pci/devices")) -> list[Path]:
    """The folders in /sys of the cards that `devices` has links to."""
    found = []
    for device in sorted(devices.glob("*")):
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith(_CLASSES_OF_CARDS):
                found.append(device.resolve())
    return found


# In the worker's own /proc/PID.
OWN = (
    "maps",
    "stat",
    "status",
)


class FileRules(NamedTuple):
    """The parameters of landlock.restrict() for one worker."""

    read: tuple[Path, ...]
    read_write: tuple[Path, ...]
    unlisted: tuple[Path, ...]

    def existing(self) -> "FileRules":
        """The rules in effect: Landlock resolves links, and leaves out what does not exist, when a ruleset is made."""
        return FileRules(*map(_existing, self))

    def allow(self, path: str, *, writes: bool) -> bool:
        """Whether the worker may open `path`, which has no links. To be called on existing()."""
        unlisted = () if os.path.isdir(path) else self.unlisted
        rules = (*self.read_write, *unlisted, *(() if writes else self.read))
        return any(Path(path).is_relative_to(rule) for rule in rules)


def rules(pid: int, *models: str, card: Card | None = None) -> FileRules:
    """For the worker with this `pid`; `models` are the folders and files of its model. Of the Hub's cache, only a
    snapshot's own blobs: the others belong to other revisions. `card` is the only one whose device it may open; None
    if it may open all."""
    own = Path(f"/proc/{pid}")
    found = [Path(model) for model in models]
    linked = (path for model in found for path in linked_files(model))
    read = (*READ, *cards(), *found, *linked, *(own / name for name in OWN))
    # CUDA opens task/TID/comm for reading and writing to name its threads. The TIDs are not known yet.
    others = [path for path in NVIDIA if card is not None and path.name not in ("nvidiactl", "nvidia-uvm", card.file)]
    devices = tuple(path for path in DEVICES if path not in others)
    return FileRules(read, devices, (own / "task",) if NVIDIA else ())


def _existing(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.resolve(strict=True))
    return tuple(found)
