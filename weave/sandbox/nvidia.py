"""NVIDIA cards as the driver and the kernel describe them: what a worker needs to be bound to one of them."""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

# "0000:3b:00.0", as in /sys/bus/pci/devices: domain, bus, device, function in hex.
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Card(NamedTuple):
    """`minor` is the number of its device file, `uuid` what CUDA_VISIBLE_DEVICES may name it by: None until the driver
    has initialised the card."""

    address: str
    minor: int
    uuid: str | None

    @property
    def file(self) -> str:
        """The name of its device file in /dev."""
        return f"nvidia{self.minor}"


def cards(root: Path = Path("/")) -> list[Card]:
    """Those with a device file, in PCI order, in which CUDA numbers them with CUDA_DEVICE_ORDER=PCI_BUS_ID. Empty
    without NVIDIA's driver, and where it does not describe them, as in WSL 2."""
    found = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*"), key=lambda folder: _numbers(folder.name)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (folder / "information").read_text().splitlines()
            fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
            uuid = fields.get("GPU UUID", "")
            card = Card(folder.name, int(fields["Device Minor"]), uuid if _UUID.fullmatch(uuid) else None)
            if _ADDRESS.fullmatch(card.address) and (root / "dev" / card.file).exists():
                found.append(card)
    return found


def card_of(device: str, root: Path = Path("/")) -> Card | None:
    """The card of the device cuda:N. None if it is not known: no number is given, the driver does not list the card, or
    CUDA_VISIBLE_DEVICES gives the numbers another meaning."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number or "CUDA_VISIBLE_DEVICES" in os.environ:
        return None
    found = cards(root)
    return found[int(number)] if int(number) < len(found) else None


def near_processors(card: Card, root: Path = Path("/")) -> set[int]:
    """The processors of the card's NUMA node; empty if the kernel does not report it."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        text = (root / "sys/bus/pci/devices" / card.address / "local_cpulist").read_text().strip()
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def _numbers(address: str) -> list[int]:
    try:
        return [int(part, 16) for part in re.split(r"[:.]", address)]
    except ValueError:
        return []
