"""A virtual machine of a Debian tree: built without loop devices, booted by QEMU, queried through its serial ports."""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.packages.tree import ROOT, base, locked, run

CACHE = ROOT / ".cache" / "vm"
# Packages for a service manager, a boot and the two systems of mandatory access control; the daemon's own needs are in
# its package.
DEBIAN = (
    *("systemd", "systemd-sysv", "udev", "dbus", "libnss-systemd", "libpam-systemd", "kmod", "procps", "adduser"),
    *("linux-image-cloud-amd64", "initramfs-tools", "python3", "libcap2", "libseccomp2", "apparmor", "auditd"),
    *("selinux-policy-default", "selinux-policy-dev", "policycoreutils", "selinux-utils", "semodule-utils", "rpm"),
)
IMAGE_SIZE = "6G"
# KVM where it works: make vm-test ACCEL=kvm. QEMU's own translation is ten times slower and works everywhere.
ACCELERATION = os.environ.get("ACCEL", "tcg,thread=multi")

_held = ExitStack()


def debian_tree(name: str) -> Path:
    """A fresh tree for `name`, locked by this process until it exits."""
    _held.enter_context(locked(CACHE / f"{name}.lock"))
    tree = CACHE / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    run("tar", "--extract", "--xattrs", "--xattrs-include=*", "--directory", tree, "--file", base(*DEBIAN))
    return tree


def image_of(tree: Path) -> Path:
    """A file system with the tree in it, its extended attributes (SELinux's labels) included."""
    image = tree.with_suffix(".img")
    image.unlink(missing_ok=True)
    run("truncate", "--size", IMAGE_SIZE, image)
    run("mkfs.ext4", "-q", "-F", "-d", tree, image)
    return image


def boot(tree: Path, image: Path, kernel_options: str, *, seconds: float) -> list[dict[str, Any]]:
    """Run the machine until it powers itself off. Returns the output of its second serial port: one JSON object a line.
    The console's text is next to the image. Raises RuntimeError with the end of it if the machine did not shut down in
    order."""
    console, answers = image.with_suffix(".console"), image.with_suffix(".answers")
    answers.unlink(missing_ok=True)
    command = [
        *("qemu-system-x86_64", "-accel", ACCELERATION, "-cpu", "max", "-smp", "2", "-m", "4096", "-nic", "none"),
        *("-kernel", str(*tree.glob("boot/vmlinuz-*")), "-initrd", str(*tree.glob("boot/initrd.img-*"))),
        *("-append", f"root=/dev/vda rw console=ttyS0 quiet {kernel_options}"),
        *("-drive", f"file={image},format=raw,if=virtio,cache=unsafe"),
        *("-display", "none", "-no-reboot", "-serial", f"file:{console}", "-serial", f"file:{answers}"),
    ]
    try:
        run(*command, timeout=seconds)
        lines = [json.loads(line) for line in answers.read_text().splitlines()]
    except (AssertionError, subprocess.TimeoutExpired, FileNotFoundError) as error:
        text = console.read_text(errors="replace") if console.exists() else ""
        raise RuntimeError(f"{error}\nthe console's end:\n{text[-3000:]}") from None
    if not lines or lines[-1]["step"] != "end":
        raise RuntimeError(f"the machine ended early: {lines[-1:]}\n{console.read_text(errors='replace')[-3000:]}")
    return lines
