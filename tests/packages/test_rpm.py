"""The .rpms, by rpm itself, in a tree that has what they need under Fedora's names."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.conftest import built, names
from tests.packages.tree import CONFIG, USERS, Tree, differences, run

FROM_THE_DISTRIBUTION = {"/usr/bin/python3.11", "libcap", "libgcc", "libseccomp", "libstdc++", "systemd", "zlib"}


def rpm(tree: Tree, *arguments: str | Path) -> str:
    """With /proc in the tree, which systemd-tmpfiles wants."""
    inside = 'mount -t proc proc "$0/proc" && exec rpm --root "$0" "$@"'
    return run("unshare", "--mount", "sh", "-c", inside, tree.path, *arguments)


@pytest.fixture(scope="module")
def installed(tree: Tree, bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    folder = tmp_path_factory.mktemp("trees")
    own = tree.copy(folder / "rpm")
    rpm(own, "--initdb")
    rpm(own, "--install", distribution(folder))
    rpm(own, "--install", *(built(f"{name}-[0-9]*.rpm") for name in names()))
    yield own
    run("rm", "-rf", own.path)


def distribution(folder: Path) -> Path:
    """A package without files that provides what comes from the distribution, so that rpm checks all else."""
    names = ", ".join(sorted(FROM_THE_DISTRIBUTION))
    described = "name: distribution\narch: noarch\nversion: 1\nrelease: 1\nmaintainer: nobody <nobody@localhost>\n"
    (folder / "nfpm.yaml").write_text(f"{described}description: none\nprovides: [{names}]\n")
    target = folder / "distribution.rpm"
    nfpm = Path(sys.executable).with_name("nfpm")
    run(nfpm, "package", "--config", folder / "nfpm.yaml", "--packager", "rpm", "--target", target)
    return target


def said_by(package: Path, what: str) -> set[str]:
    lines = run("rpm", "--query", what, "--package", package).splitlines()
    return {line for line in lines if not line.startswith("rpmlib(")}


def test_requirements_have_fedoras_names_and_the_same_python() -> None:
    torch = built("weave-compute-torch-*.rpm")
    (abi,) = (name for name in said_by(torch, "--provides") if name.endswith("-python3.11"))
    assert said_by(torch, "--requires") == {"libgcc", "libstdc++"}
    assert said_by(built("weave-compute-[0-9]*.rpm"), "--requires") == FROM_THE_DISTRIBUTION | {abi}


def test_two_builds_of_torch_cannot_be_there_together() -> None:
    package = built("weave-compute-torch-*.rpm")
    assert "weave-compute-torch" in said_by(package, "--provides") & said_by(package, "--conflicts")


def test_all_is_as_the_packages_say(installed: Tree) -> None:
    for name in names():
        assert rpm(installed, "--verify", name) == ""
    assert installed.run("weave-compute", "--check-config", "--system") == "good: 1 models\n"
    assert installed.run("getent", "passwd", "weave-gpu").endswith("/nologin\n")


def test_selinux_has_the_module_and_apparmor_no_profile(installed: Tree) -> None:
    files = installed.files()
    assert "usr/share/selinux/packages/weave_compute.pp" in files
    assert "usr/share/selinux/devel/include/contrib/weave_compute.if" in files
    assert "etc/apparmor.d/weave-compute" not in files


def test_erasing_leaves_only_the_config_and_the_audit(installed: Tree, bare: dict[str, str], later: Path) -> None:
    config = installed.path / CONFIG
    mine = config.read_text() + 'allowed_users = ["0"]\n'
    config.write_text(mine)
    rpm(installed, "--upgrade", *later.glob("*.rpm"))
    assert rpm(installed, "--query", "weave-compute").startswith("weave-compute-0.1.0-2")
    assert config.read_text() == mine
    new = Path(f"{config}.rpmnew")
    assert "socket_mode" in new.read_text()
    new.unlink()
    audit = installed.path / "var/log/weave/audit.log"
    audit.write_text("{}\n")

    rpm(installed, "--erase", *names())
    # These belong to Fedora's own packages, so ours do not remove them.
    theirs = {"usr/lib/systemd/user", "usr/lib/sysusers.d"}
    # The shells' folders for completions are in Fedora's filesystem.
    theirs |= {"usr/share/fish", "usr/share/fish/vendor_completions.d", "usr/share/zsh", "usr/share/zsh/site-functions"}
    left = {"etc/weave", f"{CONFIG}.rpmsave", "var/log/weave", "var/log/weave/audit.log"}
    assert differences(bare, installed.files()) - USERS - theirs == left
