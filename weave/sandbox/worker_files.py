"""All files that a GPU worker may still open, beside its own model: the program itself, and the GPU."""

import sys
from pathlib import Path

import weave

# Code is read again after the fork: diffusers, transformers and CUDA load modules and libraries when first used.
# Reading is all: Landlock's right to execute is not among what `read` gives.
READ = (
    Path(sys.prefix),
    Path(sys.base_prefix) / "lib",
    Path(weave.__file__).parent,
    Path("/usr/lib"),
    Path("/usr/lib64"),
    Path("/usr/local/lib"),
    Path("/usr/local/cuda"),
    Path("/opt/rocm"),
    Path("/etc/ld.so.cache"),
    # How many cores and how much memory there are: torch, OpenMP and oneDNN.
    Path("/proc/cpuinfo"),
    Path("/proc/meminfo"),
    Path("/sys/devices/system/cpu"),
    Path("/sys/devices/system/node"),
    # The NVIDIA driver's and ROCm's own view of the card.
    Path("/proc/driver/nvidia"),
    Path("/proc/devices"),
    Path("/sys/bus/pci/devices"),
    Path("/sys/class/kfd"),
    Path("/sys/devices/virtual/kfd"),
    Path("/dev/urandom"),
)

# NVIDIA's character devices, and for ROCm KFD with the render nodes.
DEVICES = (
    *sorted(Path("/dev").glob("nvidia*")),
    Path("/dev/kfd"),
    *sorted(Path("/dev/dri").glob("renderD*")),
    Path("/dev/null"),
)
