"""What NVIDIA's device files and libraries give a worker. Nothing here changes a setting of the card."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.gpu import driver
from tests.security.file_attacks import PARENT

_PLACES = ("nvidia*", "nvidia-caps/*", "nvidia-caps-imex-channels/*", "dri/*")
DEVICE_FILES = tuple(
    sorted(path for place in _PLACES for path in Path("/dev").glob(place) if path.is_char_device())
)  # fmt: skip
DEVICES: dict[str, Callable[[], object]] = {
    f"open {path}": lambda path=path: os.open(path, os.O_RDWR) for path in DEVICE_FILES
}
NVML: dict[str, Callable[[], object]] = {
    "NVML: the card's name": driver.name,
    "NVML: the card's UUID": driver.uuid,
    "NVML: memory in use by all": driver.used_mib,
    "NVML: how busy the card is": driver.busy_percent,
    "NVML: the processes that compute": driver.processes,
    "NVML: another process's name": lambda: driver.process_name(PARENT),
}
DRIVER: dict[str, Callable[[], object]] = {**DEVICES, **NVML}
