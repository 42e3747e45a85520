"""The two machines: each is built, booted and queried once, for the first of its tests."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packages.conftest import built
from tests.packages.tree import ROOT, run
from tests.support.seams import applied, before, replaced
from tests.vm import machine
from tests.vm.guest import CONFIG

Answers = dict[str, Any]
IMPORT = "from weave import attack\n"
# Each process attacks before it locks itself in. The supervisor's Landlock, which the others inherit, is taken away.
ARMED = (
    before("broker/__main__.py", "main", IMPORT + "attack.run('broker')"),
    before("gpu_worker/worker.py", "close_descriptors_except", IMPORT + "attack.run('worker')"),
    before("supervisor/main.py", "open_client_socket", IMPORT + "attack.run('supervisor')"),
    replaced("sandbox/landlock.py", "restrict_changes", "return 'none'"),
)
USERS = (
    ("groupadd", "--system", "weave"),
    ("useradd", "--create-home", "--groups", "weave", "alice"),
    ("useradd", "--create-home", "eve"),
)
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


def put_tests(tree: Path, mac: str, *packages: Path) -> None:
    """Users, and the unit that runs tests/vm/guest.py after boot; packages that it installs."""
    for command in USERS:
        run("chroot", tree, *command)
    home = tree / "opt" / "weave-vm"
    for folder in ("source", "packages"):
        (home / folder).mkdir(parents=True)
    for package in packages:
        shutil.copy(package, home / "packages")
    for name in ("guest.py", "attack.py"):
        shutil.copy(ROOT / "tests" / "vm" / name, home)
    for module, changed in applied(ARMED).items():
        (home / "armed" / module).parent.mkdir(parents=True, exist_ok=True)
        (home / "armed" / module).write_text(changed)
    for name in ("tests", "models"):
        shutil.copytree(ROOT / name, home / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    units = tree / "etc" / "systemd" / "system"
    (units / "weave-vm.service").write_text(UNIT.format(mac=mac))
    (units / "default.target.wants").mkdir(exist_ok=True)
    (units / "default.target.wants" / "weave-vm.service").symlink_to("../weave-vm.service")


def next_release(deb: Path, folder: Path) -> None:
    """The same files, but for the version, a default, and one AppArmor profile more. Packed for speed."""
    tree = folder / "tree"
    run("dpkg-deb", "--raw-extract", deb, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1.later", control.read_text()))
    for file, more in (("weave/weave-compute.toml", "# More."), ("apparmor.d/weave-compute", "profile weave-later {}")):
        with (tree / "etc" / file).open("a") as text:
            text.write(f"{more}\n")
    run("dpkg-deb", "--build", "-Zzstd", "-z1", tree, folder)
    shutil.rmtree(tree)


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
    put_tests(tree, "apparmor", *(built(f"{name}_*.deb") for name in ("weave-compute", "weave-compute-model-shapes")))
    later = tree / "opt" / "weave-vm" / "packages" / "later"
    later.mkdir()
    next_release(built("weave-compute_*.deb"), later)
    yield answers(tree, "apparmor=1 security=apparmor", 1800)


@pytest.fixture(scope="session")
def selinux() -> Iterator[Answers]:
    """The .rpms by rpm itself, on Debian: Fedora's tree cannot be had everywhere. SELinux is off while they are put in,
    as in every build of an image; each file is labelled before the image is made."""
    tree = machine.debian_tree("selinux")
    model = built("weave-compute-model-shapes-[0-9]*.rpm")
    put_tests(tree, "selinux", model)
    run("rpm", f"--root={tree}", "--initdb")
    packages = (built("weave-compute-torch-*.rpm"), built("weave-compute-[0-9]*.rpm"), model)
    said = run("sh", "-c", 'exec rpm "$@" 2>&1', "rpm", f"--root={tree}", "--install", "--nodeps", *packages)
    (tree / "etc/weave/conf.d/vm.toml").write_text(CONFIG)
    (tree / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=default\n")
    contexts = tree / "etc/selinux/default/contexts/files/file_contexts"
    run("setfiles", "-F", "-r", tree, contexts, tree)
    yield answers(tree, "security=selinux selinux=1 enforcing=1", 1800) | {"install": said}
