"""The two machines: each is made, booted and asked once, by whichever of its tests comes first."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packages.conftest import built
from tests.packages.tree import ROOT, run
from tests.vm import machine
from tests.vm.guest import CONFIG

Answers = dict[str, Any]
USERS = (
    ("groupadd", "--system", "weave"),
    ("useradd", "--create-home", "--groups", "weave", "alice"),
    ("useradd", "--create-home", "eve"),
)
# What the rpm's own scripts do where SELinux is on, which it is not while the tree is made.
LOAD_MODULE = ("semodule", "--noreload", "--install", "/usr/share/selinux/packages/weave_compute.pp")
UNIT = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
SELinuxContext=-unconfined_u:unconfined_r:unconfined_t:s0
TimeoutStartSec=infinity
ExecStart=/usr/bin/python3 -B /opt/weave-vm/guest.py {mac}
ExecStopPost=/usr/bin/systemctl poweroff --no-block
"""


def put_tests(tree: Path, mac: str) -> None:
    """Users, and the unit that runs tests/vm/guest.py after boot."""
    for command in USERS:
        run("chroot", tree, *command)
    home = tree / "opt" / "weave-vm"
    (home / "source").mkdir(parents=True)
    for name in ("guest.py", "attack.py"):
        shutil.copy(ROOT / "tests" / "vm" / name, home)
    for name in ("tests", "models"):
        shutil.copytree(ROOT / name, home / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    units = tree / "etc" / "systemd" / "system"
    (units / "weave-vm.service").write_text(UNIT.format(mac=mac))
    (units / "default.target.wants").mkdir(exist_ok=True)
    (units / "default.target.wants" / "weave-vm.service").symlink_to("../weave-vm.service")


def answers(tree: Path, kernel_options: str, seconds: float) -> Answers:
    lines = machine.boot(tree, machine.image_of(tree), kernel_options, seconds=seconds)
    shutil.rmtree(tree)
    for line in lines[:-1]:
        print(f"{line['seconds']:7.1f} s  {line['step']}")
    return {line["step"]: line["found"] for line in lines[:-1]}


@pytest.fixture(scope="session")
def apparmor() -> Iterator[Answers]:
    """torch is installed before the boot, which takes its unpacking off the slow machine; all else after it."""
    tree = machine.debian_tree("apparmor")
    run("dpkg", f"--root={tree}", "--install", built("weave-compute-torch-*.deb"))
    put_tests(tree, "apparmor")
    for name in ("weave-compute", "weave-compute-model-shapes"):
        target = tree / "opt" / "weave-vm" / "packages"
        target.mkdir(exist_ok=True)
        shutil.copy(built(f"{name}_*.deb"), target)
    yield answers(tree, "apparmor=1 security=apparmor", 1200)


@pytest.fixture(scope="session")
def selinux() -> Iterator[Answers]:
    """The same files that the .rpm holds, installed by rpm itself, on Debian: Fedora's tree cannot be had everywhere.
    Every file is labelled before the image is made."""
    tree = machine.debian_tree("selinux")
    put_tests(tree, "selinux")
    packages = [
        built("weave-compute-torch-*.rpm"),
        *(built(f"{name}-[0-9]*.rpm") for name in ("weave-compute", "weave-compute-model-shapes")),
    ]
    run("rpm", f"--root={tree}", "--initdb")
    run("rpm", f"--root={tree}", "--install", "--nodeps", *packages)
    run("chroot", tree, *LOAD_MODULE)
    (tree / "etc/weave/conf.d/vm.toml").write_text(CONFIG)
    (tree / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=default\n")
    contexts = tree / "etc/selinux/default/contexts/files/file_contexts"
    run("setfiles", "-F", "-r", tree, contexts, tree)
    yield answers(tree, "security=selinux selinux=1 enforcing=1", 1200)
