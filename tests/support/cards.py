"""The files by which the NVIDIA driver and the kernel describe cards, in a folder that stands in for /."""

from pathlib import Path

UUID = "GPU-{0:08x}-0000-0000-0000-000000000000"


def make_card(root: Path, address: str, minor: int, processors: str, uuid: str) -> None:
    """The files of the driver's kernel module (its nv-procfs.c, as NVIDIA publishes it) and of sysfs."""
    described = root / "proc/driver/nvidia/gpus" / address
    described.mkdir(parents=True)
    fields = {"Model": "Card", "IRQ": "0", "GPU UUID": uuid, "Bus Location": address, "Device Minor": str(minor)}
    (described / "information").write_text("".join(f"{name}: \t {value}\n" for name, value in fields.items()))
    (root / "dev").mkdir(exist_ok=True)
    (root / f"dev/nvidia{minor}").touch()
    near = root / "sys/bus/pci/devices" / address
    near.mkdir(parents=True)
    (near / "local_cpulist").write_text(f"{processors}\n")
