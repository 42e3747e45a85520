"""Which device files and folders in sysfs a worker may open."""

from pathlib import Path

from weave.sandbox import worker_files


def test_only_the_nvidia_devices_cuda_needs_are_allowed(tmp_path: Path) -> None:
    needed = ["nvidia-uvm", "nvidia0", "nvidia12", "nvidiactl"]
    others = ["nvidia-modeset", "nvidia-uvm-tools", "nvidia-nvlink", "nvidia-nvswitch0", "nvidia-nvswitchctl", "nvidia"]
    for name in (*needed, *others):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia-caps" / "nvidia-cap1").touch()
    assert worker_files.nvidia(tmp_path) == tuple(tmp_path / name for name in needed)


def test_the_cards_are_found_behind_sysfs_links(tmp_path: Path) -> None:
    links = tmp_path / "bus"
    links.mkdir()
    for name, kind in (("gpu", "0x030200"), ("accelerator", "0x120000"), ("network", "0x020000")):
        (tmp_path / "pci0000:00" / name).mkdir(parents=True)
        (tmp_path / "pci0000:00" / name / "class").write_text(f"{kind}\n")
        (links / name).symlink_to(f"../pci0000:00/{name}")
    (links / "gone").symlink_to("../pci0000:00/gone")
    assert worker_files.cards(links) == [tmp_path / "pci0000:00" / name for name in ("accelerator", "gpu")]
