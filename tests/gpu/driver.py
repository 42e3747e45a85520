"""The NVIDIA driver's figures for the first card, by NVML: this process needs no CUDA context for it, which would
itself take VRAM. It only reads; nothing here changes a setting of the card. https://docs.nvidia.com/deploy/nvml-api/"""

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any

MIB = 1024 * 1024


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@functools.cache
def _nvml() -> ctypes.CDLL:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    _check(library.nvmlInit_v2(), "nvmlInit_v2")
    return library


@functools.cache
def _card() -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(_nvml().nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)), "nvmlDeviceGetHandleByIndex_v2")
    return handle


def _check(status: int, call: str) -> None:
    if status:
        raise OSError(f"{call}: NVML error {status}")


def _ask(call: str, answer: Any) -> Any:
    _check(getattr(_nvml(), call)(_card(), ctypes.byref(answer)), call)
    return answer


def version() -> str:
    text = ctypes.create_string_buffer(100)
    _check(_nvml().nvmlSystemGetDriverVersion(text, len(text)), "nvmlSystemGetDriverVersion")
    return text.value.decode()


def used_mib() -> int:
    """VRAM in use by all processes."""
    return int(_ask("nvmlDeviceGetMemoryInfo", _Memory()).used) // MIB


def free_mib() -> int:
    return int(_ask("nvmlDeviceGetMemoryInfo", _Memory()).free) // MIB


def name() -> str:
    return _text("nvmlDeviceGetName")


def uuid() -> str:
    return _text("nvmlDeviceGetUUID")


def _text(call: str) -> str:
    text = ctypes.create_string_buffer(100)
    _check(getattr(_nvml(), call)(_card(), text, len(text)), call)
    return text.value.decode()


def processes() -> dict[int, int]:
    """The VRAM of each process that has a CUDA context, in bytes, by its PID."""
    count, found = ctypes.c_uint(100), (_Process * 100)()
    call = "nvmlDeviceGetComputeRunningProcesses_v3"
    _check(getattr(_nvml(), call)(_card(), ctypes.byref(count), found), call)
    return {process.pid: process.used for process in found[: count.value]}


def process_name(pid: int) -> str:
    text = ctypes.create_string_buffer(200)
    _check(_nvml().nvmlSystemGetProcessName(ctypes.c_uint(pid), text, len(text)), "nvmlSystemGetProcessName")
    return text.value.decode(errors="replace")


def busy_percent() -> int:
    """Over the driver's last sampling period, a sixth of a second to one second."""
    return int(_ask("nvmlDeviceGetUtilizationRates", _Utilization()).gpu)


def seconds_until(condition: Callable[[], bool], limit: float) -> float | None:
    """Seconds until it held; None if it never did."""
    start = time.monotonic()
    while time.monotonic() < start + limit:
        if condition():
            return round(time.monotonic() - start, 3)
        time.sleep(0.005)
    return None
