"""The .debs in a Debian tree: installed, run, upgraded, removed, purged."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.conftest import built, names
from tests.packages.tree import CONFIG, ROOT, USERS, Tree, differences, run

DRAW = """
weave-compute --system 2>/tmp/log & daemon=$!
until grep -q '"serving"' /tmp/log; do kill -0 $daemon || exit 1; sleep 0.1; done
weavectl generate 'a red circle on a blue background' --output /tmp/circle.png
weavectl --json status
kill $daemon
wait $daemon
"""

# Whose the libraries outside our packages are.
OWNERS = {
    **dict.fromkeys(("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"), "libc6"),
    **{"ld-linux-x86-64.so.2": "libc6", "ld-linux-aarch64.so.1": "libc6", "libcap.so.2": "libcap2"},
    **{"libgcc_s.so.1": "libgcc-s1", "libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g"},
}
# As administrators leave them behind: additions, aa-disable, aa-complain.
LEFT_IN_APPARMOR = (
    *("local/weave-compute-supervisor", "local/weave-compute-worker"),
    *("disable/weave-compute", "force-complain/weave-compute"),
)


@pytest.fixture(scope="module")
def installed(tree: Tree, bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    own = tree.copy(tmp_path_factory.mktemp("trees") / "deb")
    debs = own.take(*(built(f"{name}_*.deb") for name in names()))
    own.run("apt-get", "install", "-y", *debs)
    yield own
    run("rm", "-rf", own.path)


def test_files_belong_to_root_and_only_root_can_write_them(installed: Tree, bare: dict[str, str]) -> None:
    ours = {name: kind for name, kind in installed.files().items() if name not in bare.keys() | USERS}
    assert len(ours) > 10_000
    assert {kind.split()[0] for kind in ours.values()} == {"0:0"}
    # Links have all bits set; their targets count.
    writable = {name for name, kind in ours.items() if int(kind[-3:], 8) & 0o022 and not kind.endswith("120777")}
    assert writable == set()


def test_torch_must_have_the_locked_version_and_python() -> None:
    torch = re.findall(r"^torch==([^\s;]+)", (ROOT / "requirements-torch.lock").read_text(), re.MULTILINE)[0]
    depends, provides = (
        run("dpkg-deb", "--field", built(package), field).strip().split(", ")
        for package, field in (("weave-compute_*.deb", "Depends"), ("weave-compute-torch-*.deb", "Provides"))
    )
    (python,) = (name.split()[0] for name in depends if name.startswith("python"))
    (wanted,) = (name for name in depends if name.startswith("weave-compute-torch"))
    assert wanted in provides and wanted.endswith(f"-{torch}-{python}")


def test_every_needed_library_is_included_or_a_dependency(installed: Tree) -> None:
    listed = {name: installed.run("dpkg-query", "--listfiles", name).split() for name in names()[:2]}
    libraries = {name: [file for file in files if re.search(r"\.so(\.|$)", file)] for name, files in listed.items()}
    inside = {Path(file).name for files in libraries.values() for file in files}
    for name, files in libraries.items():
        said = run("readelf", "--dynamic", *(f"{installed.path}{file}" for file in files))
        outside = set(re.findall(r"\(NEEDED\) .*\[(.+)\]", said)) - inside
        depends = installed.run("dpkg-query", "--show", "--showformat=${Depends}", name).split(", ")
        assert "libc.so.6" in outside and {OWNERS[library] for library in outside} <= set(depends)


def test_folders_and_users_are_as_the_daemon_requires(installed: Tree) -> None:
    files = installed.files()
    for folder in ("etc/weave", "etc/weave/conf.d", "run/weave", "var/log/weave", "var/lib/weave/models"):
        assert files[folder] == "0:0 40755"
    assert files[CONFIG] == files["etc/apparmor.d/weave-compute"] == "0:0 100644"
    for user in ("weave", "weave-gpu"):
        name, _, uid, gid, _, home, shell = installed.run("getent", "passwd", user).strip().split(":")
        assert 0 < int(uid) < 1000 and home == "/" and shell.endswith("nologin")
        assert installed.run("getent", "group", name).split(":")[2] == gid


def test_only_the_socket_is_enabled(installed: Tree) -> None:
    enabled = {name for name in installed.files() if name.startswith("etc/systemd/") and "weave" in name}
    assert enabled == {"etc/systemd/system/sockets.target.wants/weave-compute.socket"}


def test_the_config_is_good(installed: Tree) -> None:
    assert installed.run("weave-compute", "--check-config", "--system") == "good: 1 models\n"


def test_without_apparmor_the_daemon_refuses_to_serve(installed: Tree) -> None:
    with pytest.raises(AssertionError, match=r"(?s)status 78.*system\.require_mac is true"):
        installed.run("weave-compute", "--system")


def test_the_installed_daemon_generates_an_image(installed: Tree) -> None:
    drop_in = installed.path / "etc/weave/conf.d/no-mac.toml"
    drop_in.write_text("[system]\nrequire_mac = false\n")
    try:
        said = installed.run("sh", "-e", "-c", DRAW)
    finally:
        drop_in.unlink()
    assert (installed.path / "tmp/circle.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(said.splitlines()[-1])["version"]


def test_upgrade_and_removal_keep_the_config_and_purge_does_not(
    installed: Tree, bare: dict[str, str], later: Path
) -> None:
    config = installed.path / CONFIG
    mine = config.read_text() + 'allowed_users = ["0"]\n'
    config.write_text(mine)
    (deb,) = installed.take(*later.glob("*.deb"))
    installed.run("apt-get", "install", "-y", "-o", "Dpkg::Options::=--force-confold", deb)
    assert installed.run("dpkg-query", "--show", "--showformat=${Version}", "weave-compute").endswith("-2")
    assert config.read_text() == mine
    assert "socket_mode" in Path(f"{config}.dpkg-dist").read_text()
    assert installed.run("weave-compute", "--check-config", "--system") == "good: 1 models\n"

    installed.run("apt-get", "remove", "-y", *names())
    assert config.read_text() == mine
    assert not (installed.path / "usr/lib/weave-compute").exists()

    log = installed.path / "var/log/weave/audit.log"
    log.write_text("{}\n")
    for name in LEFT_IN_APPARMOR:
        (installed.path / "etc/apparmor.d" / name).write_text("")
    installed.run("dpkg", "--purge", "weave-compute")
    assert differences(bare, installed.files()) <= USERS
