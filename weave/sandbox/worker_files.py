"""All files that a GPU worker may still open, beside its own model: the program itself, and the GPU."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import weave


def packages(search: Iterable[str]) -> tuple[Path, ...]:
    """Of the places that Python imports from (`sys.path`), those that hold installed packages: a .pth file may name
    another environment's, which has torch. Not the others, for an editable install's is a whole checkout."""
    named = (Path(entry) for entry in search if entry.startswith("/"))
    return tuple(path for path in named if path.name in ("site-packages", "dist-packages") and os.path.isdir(path))


def libraries(search: str) -> tuple[Path, ...]:
    """The shared libraries in the folders of `search` (LD_LIBRARY_PATH), such as a driver's that /etc/ld.so.cache
    does not list. It comes from the user who started the daemon, so it is trusted. But such a folder may hold
    more than libraries, or be a home folder: so each file is allowed by itself, and the folder is not."""
    found = []
    for folder in sorted({entry for entry in search.split(":") if entry.startswith("/")}):
        with contextlib.suppress(OSError):
            found += sorted(path for path in Path(folder).iterdir() if re.search(r"\.so(\.\d+)*$", path.name))
    return tuple(path for path in found if os.path.isfile(path))


# Code is read again after the fork: diffusers, transformers and CUDA load modules and libraries when first used.
# Reading is all: Landlock's right to execute is not among what `read` gives.
READ = (
    Path(sys.prefix),
    # The standard library, of which some systems keep what is compiled in lib64.
    Path(sys.base_prefix) / "lib",
    Path(sys.base_exec_prefix) / sys.platlibdir,
    *packages(sys.path),
    Path(weave.__file__).parent,
    Path("/usr/lib"),
    Path("/usr/lib64"),
    Path("/usr/local/lib"),
    Path("/usr/local/cuda"),
    # The driver's libraries: NVIDIA's images and GKE have the first, NixOS has links into its store in the second.
    Path("/usr/local/nvidia"),
    Path("/run/opengl-driver"),
    *([Path("/nix/store")] if os.path.isdir("/run/opengl-driver") else []),
    *libraries(os.environ.get("LD_LIBRARY_PATH", "")),
    Path("/opt/rocm"),
    Path("/etc/ld.so.cache"),
    # How many cores and how much memory there are: torch, OpenMP and oneDNN.
    Path("/proc/cpuinfo"),
    Path("/proc/meminfo"),
    Path("/sys/devices/system/cpu"),
    Path("/sys/devices/system/node"),
    # The NVIDIA driver's and ROCm's own view of the card.
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
    """The cards and what CUDA needs with them. Not nvidia-modeset (screens), nvidia-uvm-tools (profilers),
    nvidia-nvlink and nvidia-nvswitch (several cards) and nvidia-caps (MIG, which is not supported)."""
    return tuple(sorted(path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia(ctl|-uvm|\d+)", path.name)))


# NVIDIA's character devices, and for ROCm KFD with the render nodes.
NVIDIA = nvidia()
DEVICES = (
    *NVIDIA,
    Path("/dev/kfd"),
    *sorted(Path("/dev/dri").glob("renderD*")),
    Path("/dev/null"),
)

# What the supervisor leaves its workers to write. CUDA does not start where it cannot name its threads, which is done
# by writing to /proc/PID/task/TID/comm (pthread_setname_np(3)); Landlock knows no patterns, and no PIDs to come.
WRITABLE = (*DEVICES, *([Path("/proc")] if NVIDIA else []))

# PCI's classes, as sysfs writes them, of display controllers and of processing accelerators.
_CLASSES_OF_CARDS = ("0x03", "0x12")


def cards(devices: Path = Path("/sys/bus/pci/devices")) -> list[Path]:
    """Where in /sys the cards are that `devices` has links to."""
    found = []
    for device in sorted(devices.glob("*")):
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith(_CLASSES_OF_CARDS):
                found.append(device.resolve())
    return found


# Read in the worker's own /proc/PID.
OWN = (
    "maps",
    "stat",
    "status",
)


class Rules(NamedTuple):
    """The parameters of landlock.restrict() for one worker."""

    read: tuple[Path, ...]
    read_write: tuple[Path, ...]
    unlisted: tuple[Path, ...]

    def existing(self) -> "Rules":
        """Those of them that Landlock takes up: a rule is about what is there now, and where its links lead."""
        return Rules(*map(_existing, self))

    def leave(self, path: str, *, writes: bool) -> bool:
        """Of existing(): whether the worker may open `path`, in which there are no links."""
        unlisted = () if os.path.isdir(path) else self.unlisted
        rules = (*self.read_write, *unlisted, *(() if writes else self.read))
        return any(Path(path).is_relative_to(rule) for rule in rules)


def rules(pid: int, *models: str | None) -> Rules:
    """All that the worker that is process `pid` may open, with the folders of its model."""
    own = Path(f"/proc/{pid}")
    read = (*READ, *cards(), *(Path(folder) for folder in models if folder is not None), *(own / name for name in OWN))
    # CUDA names its threads, by opening task/TID/comm for reading and writing; the TIDs are not known yet.
    return Rules(read, DEVICES, (own / "task",) if NVIDIA else ())


def _existing(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.resolve(strict=True))
    return tuple(found)
