"""The ioctl(2) requests that a GPU's libraries make of its drivers, by number.

NVIDIA's are those that gVisor's nvproxy passes on for `compute` and `utility`, for drivers from 535 on.
Its tables differ by driver version in the sizes of the structs, which a request includes and which are not compared
here, and in the numbers whose lines say so: an older driver refuses those itself. ROCm's are those in the kernel's
headers that computing may need. None of this has run on a GPU.

A filter sees the request and not the struct behind it: NV_ESC_RM_CONTROL alone has hundreds of commands. To add a
number, see CONTRIBUTING.md.
"""

import errno
from collections.abc import Iterator

from weave.sandbox.seccomp import INT, Call, Condition, Refusal

# nv_escape.h, nv-ioctl-numbers.h. Not NV_ESC_IOCTL_XFER_CMD (0xd3), which carries any other request; not
# NV_ESC_EXPORT_TO_DMABUF_FD (0xd9), which shares memory with other devices.
_NVIDIA = {
    0x27: "NV_ESC_RM_ALLOC_MEMORY",
    0x29: "NV_ESC_RM_FREE",
    0x2A: "NV_ESC_RM_CONTROL",
    0x2B: "NV_ESC_RM_ALLOC",
    0x34: "NV_ESC_RM_DUP_OBJECT",
    0x35: "NV_ESC_RM_SHARE",
    0x4A: "NV_ESC_RM_VID_HEAP_CONTROL",
    0x4E: "NV_ESC_RM_MAP_MEMORY",
    0x4F: "NV_ESC_RM_UNMAP_MEMORY",
    0x5E: "NV_ESC_RM_UPDATE_DEVICE_MAPPING_INFO",
    0xC8: "NV_ESC_CARD_INFO",
    0xC9: "NV_ESC_REGISTER_FD",
    0xCE: "NV_ESC_ALLOC_OS_EVENT",
    0xCF: "NV_ESC_FREE_OS_EVENT",
    0xD2: "NV_ESC_CHECK_VERSION_STR",
    0xD4: "NV_ESC_ATTACH_GPUS_TO_FD",
    0xD6: "NV_ESC_SYS_PARAMS",
    0xD7: "NV_ESC_NUMA_INFO",
    0xDA: "NV_ESC_WAIT_OPEN_COMPLETE",  # from driver 550 on
}
# uvm_ioctl.h. These are plain numbers, without type and size. Not UVM_TOOLS_READ_PROCESS_MEMORY (62) and its
# counterpart (63), which reach into other processes.
_UNIFIED_MEMORY = {
    23: "UVM_CREATE_RANGE_GROUP",
    24: "UVM_DESTROY_RANGE_GROUP",
    25: "UVM_REGISTER_GPU_VASPACE",
    26: "UVM_UNREGISTER_GPU_VASPACE",
    27: "UVM_REGISTER_CHANNEL",
    28: "UVM_UNREGISTER_CHANNEL",
    29: "UVM_ENABLE_PEER_ACCESS",
    30: "UVM_DISABLE_PEER_ACCESS",
    31: "UVM_SET_RANGE_GROUP",
    33: "UVM_MAP_EXTERNAL_ALLOCATION",
    34: "UVM_FREE",
    37: "UVM_REGISTER_GPU",
    38: "UVM_UNREGISTER_GPU",
    39: "UVM_PAGEABLE_MEM_ACCESS",
    42: "UVM_SET_PREFERRED_LOCATION",
    43: "UVM_UNSET_PREFERRED_LOCATION",
    44: "UVM_ENABLE_READ_DUPLICATION",
    45: "UVM_DISABLE_READ_DUPLICATION",
    46: "UVM_SET_ACCESSED_BY",
    47: "UVM_UNSET_ACCESSED_BY",
    51: "UVM_MIGRATE",
    53: "UVM_MIGRATE_RANGE_GROUP",
    65: "UVM_MAP_DYNAMIC_PARALLELISM_REGION",
    66: "UVM_UNMAP_EXTERNAL",
    68: "UVM_ALLOC_SEMAPHORE_POOL",
    70: "UVM_PAGEABLE_MEM_ACCESS_ON_GPU",
    71: "UVM_POPULATE_PAGEABLE",
    72: "UVM_VALIDATE_VA_RANGE",
    73: "UVM_CREATE_EXTERNAL_RANGE",
    74: "UVM_MAP_EXTERNAL_SPARSE",
    75: "UVM_MM_INITIALIZE",
    0x30000001: "UVM_INITIALIZE",
    0x30000002: "UVM_DEINITIALIZE",
}
# kfd_ioctl.h. Not the debugger's (0x0d to 0x10, 0x26), nor those of checkpoints (0x22).
_KFD = {
    0x01: "AMDKFD_IOC_GET_VERSION",
    0x02: "AMDKFD_IOC_CREATE_QUEUE",
    0x03: "AMDKFD_IOC_DESTROY_QUEUE",
    0x04: "AMDKFD_IOC_SET_MEMORY_POLICY",
    0x05: "AMDKFD_IOC_GET_CLOCK_COUNTERS",
    0x06: "AMDKFD_IOC_GET_PROCESS_APERTURES",
    0x07: "AMDKFD_IOC_UPDATE_QUEUE",
    0x08: "AMDKFD_IOC_CREATE_EVENT",
    0x09: "AMDKFD_IOC_DESTROY_EVENT",
    0x0A: "AMDKFD_IOC_SET_EVENT",
    0x0B: "AMDKFD_IOC_RESET_EVENT",
    0x0C: "AMDKFD_IOC_WAIT_EVENTS",
    0x11: "AMDKFD_IOC_SET_SCRATCH_BACKING_VA",
    0x12: "AMDKFD_IOC_GET_TILE_CONFIG",
    0x13: "AMDKFD_IOC_SET_TRAP_HANDLER",
    0x14: "AMDKFD_IOC_GET_PROCESS_APERTURES_NEW",
    0x15: "AMDKFD_IOC_ACQUIRE_VM",
    0x16: "AMDKFD_IOC_ALLOC_MEMORY_OF_GPU",
    0x17: "AMDKFD_IOC_FREE_MEMORY_OF_GPU",
    0x18: "AMDKFD_IOC_MAP_MEMORY_TO_GPU",
    0x19: "AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU",
    0x1A: "AMDKFD_IOC_SET_CU_MASK",
    0x1B: "AMDKFD_IOC_GET_QUEUE_WAVE_STATE",
    0x1C: "AMDKFD_IOC_GET_DMABUF_INFO",
    0x1D: "AMDKFD_IOC_IMPORT_DMABUF",
    0x1E: "AMDKFD_IOC_ALLOC_QUEUE_GWS",
    0x20: "AMDKFD_IOC_SVM",
    0x21: "AMDKFD_IOC_SET_XNACK_MODE",
    0x23: "AMDKFD_IOC_AVAILABLE_MEMORY",
    0x24: "AMDKFD_IOC_EXPORT_DMABUF",
    0x25: "AMDKFD_IOC_RUNTIME_ENABLE",
}
# drm.h, amdgpu_drm.h. Not DRM_IOCTL_AMDGPU_CS (0x44): compute goes through KFD's queues.
_DRM = {
    0x00: "DRM_IOCTL_VERSION",
    0x05: "DRM_IOCTL_GET_CLIENT",
    0x09: "DRM_IOCTL_GEM_CLOSE",
    0x0C: "DRM_IOCTL_GET_CAP",
    0x2D: "DRM_IOCTL_PRIME_HANDLE_TO_FD",
    0x2E: "DRM_IOCTL_PRIME_FD_TO_HANDLE",
    0x40: "DRM_IOCTL_AMDGPU_GEM_CREATE",
    0x41: "DRM_IOCTL_AMDGPU_GEM_MMAP",
    0x45: "DRM_IOCTL_AMDGPU_INFO",
    0x46: "DRM_IOCTL_AMDGPU_GEM_METADATA",
    0x48: "DRM_IOCTL_AMDGPU_GEM_VA",
    0x53: "DRM_IOCTL_AMDGPU_VM",
}

# By the type in a request, its second-lowest byte: which bits of a request are compared, and the numbers.
_DRIVERS = {
    ord("F"): (0xFFFF, _NVIDIA),
    0: (INT, _UNIFIED_MEMORY),
    ord("K"): (0xFFFF, _KFD),
    ord("d"): (0xFFFF, _DRM),
}

CALLS = tuple(
    Call("ioctl", name, (Condition(1, driver << 8 | number, mask),))
    for driver, (mask, numbers) in _DRIVERS.items()
    for number, name in numbers.items()
)


def refusals(calls: tuple[Call | Refusal, ...]) -> Iterator[Refusal]:
    """For each number of these drivers that is not in `calls`, the error that a driver returns for unknown numbers.
    Libraries try such numbers; without these lines, that would end the worker."""
    requests = [call.conditions[0].value for call in calls if call.name == "ioctl"]
    for driver, (mask, _) in _DRIVERS.items():
        listed = {request & mask for request in requests}
        for number in range(256):
            if (request := driver << 8 | number) not in listed:
                yield Refusal("ioctl", errno.EINVAL, "not known", (Condition(1, request, mask),))
