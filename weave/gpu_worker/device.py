"""The device that holds the model. ROCm presents itself to torch as cuda."""

import contextlib
import gc
import os
import resource
from collections.abc import Sequence

import torch
from torch.nn import functional

from weave.config.devices import is_cpu
from weave.models.plans import CONTEXT
from weave.protocol.worker_messages import Memory


def choose_device(setting: str) -> torch.device:
    """`auto` is the first GPU that torch sees, else the CPU. Raises RuntimeError if there is no such GPU."""
    if setting == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device is {setting!r}, but torch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def why_no_gpu() -> str:
    """CUDA's own error, after choose_device found no GPU."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # AssertionError: a build of torch without CUDA
        return str(error)
    return "torch sees no GPU"


def share_of_threads(name: str, names: Sequence[str]) -> int:
    """How many threads the worker on `name` gets: as many as torch has chosen, one per core, but no more than it may
    have processors. Workers on the CPU divide them."""
    threads = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    return max(1, threads // sum(map(is_cpu, names))) if is_cpu(name) else threads


def choose_dtype(device: torch.device, setting: str) -> torch.dtype:
    """`auto`: bfloat16 on a GPU that supports it, else float16; float32 on the CPU, where 16-bit floats are slow."""
    if setting != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[setting]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def warm_up(device: torch.device) -> None:
    """Run the operations that start threads, open device files or load libraries."""
    image = torch.randn(1, 8, 64, 64, device=device)
    functional.conv2d(image, torch.randn(8, 8, 3, 3, device=device))
    matrix = torch.randn(256, 256, device=device)
    query = (matrix @ matrix).view(1, 4, 64, 256)
    functional.scaled_dot_product_attention(query, query, query)
    # At least one element per core: with fewer, OpenMP would start some of its threads after lock_down().
    torch.randn(1 << 20, device=device).exp().sum().item()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # more than any GPU has: torch then queries NVML, which opens files
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)


def memory(device: torch.device, peak: int = 0, memory_bytes: int = 0) -> Memory:
    """On the CPU: this process's peak, and the machine's total; with a limit, the `peak` of the weights, and the
    limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total - free, total)
    if memory_bytes:
        return Memory(peak, memory_bytes)
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, total)


def available(device: torch.device, memory_bytes: int) -> int | None:
    """How many bytes the model and its jobs may use, including those that they use already. `memory_bytes` is the
    config's limit, 0 for none. None: the CPU without a limit."""
    if device.type != "cuda":
        return memory_bytes or None
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device)
    return min(free, max(memory_bytes - CONTEXT, 0)) if memory_bytes else free


def limit(device: torch.device, memory_bytes: int) -> None:
    """Have torch's allocator refuse more than the config allows."""
    if memory_bytes and device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(max(memory_bytes - CONTEXT, 0) / total, 1.0), device)


def has_room(device: torch.device, needed: int) -> bool:
    """Whether `needed` bytes more leave a quarter of a GPU's memory free; the CPU's is taken to be enough."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return free - needed >= total // 4


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU: torch's own exception, or a RuntimeError with the status of cuBLAS or cuDNN. On the CPU: a RuntimeError
    with the message of torch's allocator or of oneDNN."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    messages = (
        *("out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
        "nvml_success ==",  # torch's message where NVML does not answer
        "could not create a primitive",  # oneDNN's, where it has no memory for the code that it generates
    )
    return isinstance(error, RuntimeError) and any(message in text for message in messages)


def is_broken(error: BaseException) -> bool:
    """Whether the driver reported an error from which this process may not recover: after most such errors every later
    call fails, in all jobs."""
    is_drivers = isinstance(error, torch.AcceleratorError) or str(error).startswith(("CUDA error:", "HIP error:"))
    return isinstance(error, RuntimeError) and is_drivers and not is_out_of_memory(error)


def release_memory(device: torch.device) -> None:
    """Free what a failed job left allocated, for the next job."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
