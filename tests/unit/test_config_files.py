"""Config files: who may have written them, and their order."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weave.config.load import default_path, load
from weave.config.ownership import read_checked
from weave.config.schema import ConfigError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
MODEL = '[models.one]\npath = "m"\nfamily = "sd1"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "etc" / "weave"
    folder.mkdir(parents=True, mode=0o755)
    path = folder / "weave-compute.toml"
    path.write_text(MODEL)
    path.chmod(0o640)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_checked(path)
    return str(refused.value)


def test_a_file_only_its_owner_can_write_is_read(file: Path) -> None:
    assert read_checked(file) == MODEL.encode()


@pytest.mark.parametrize("mode", [0o660, 0o646, 0o777])
def test_a_file_others_can_write_is_refused_with_the_fix(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert refusal(file) == f"{file}: mode {mode:04o} lets others write to it; fix it with: chmod go-w {file}"


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_others_can_write_is_refused(file: Path, level: int) -> None:
    folder = file.parents[level]
    folder.chmod(0o775)
    assert refusal(file) == f"{folder}: mode 0775 lets others write to it; fix it with: chmod go-w {folder}"


@root_only
def test_another_users_file_or_folder_is_refused_with_its_owner(file: Path) -> None:
    os.chown(file, 4001, -1)
    assert refusal(file) == f"{file}: belongs to UID 4001; fix it with: chown 0 {file}"
    os.chown(file, 0, -1)
    os.chown(file.parent, 4001, -1)
    assert refusal(file) == f"{file.parent}: belongs to UID 4001; fix it with: chown 0 {file.parent}"


def test_file_links_are_refused_and_linked_folders_checked(file: Path, tmp_path: Path) -> None:
    link = file.with_name("link.toml")
    link.symlink_to(file)
    assert "symbolic links are not followed" in refusal(link)
    (tmp_path / "linked").symlink_to(file.parent)
    assert read_checked(tmp_path / "linked" / file.name)
    file.parent.chmod(0o777)
    assert str(file.parent) in refusal(tmp_path / "linked" / file.name)


def test_a_file_that_is_not_regular_is_refused_without_blocking(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    assert refusal(file) == f"{file}: not a regular file"
    file.unlink()
    file.mkdir()
    assert refusal(file) == f"{file}: not a regular file"
    file.rmdir()
    folder = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{folder}/{file.name}")  # too long by its name
    os.close(folder)
    assert str(file) in refusal(file)


def test_a_file_too_large_is_refused(file: Path) -> None:
    file.write_text("#" * (1024 * 1024 + 1))
    assert "larger than 1048576 bytes" in refusal(file)


def test_drop_ins_apply_in_the_order_of_their_names(file: Path) -> None:
    folder = file.parent / "conf.d"
    folder.mkdir()
    (folder / "20-last.toml").write_text('default_model = "two"\n[limits]\nqueue = 3\n')
    (folder / "10-first.toml").write_text(
        '[limits]\nqueue = 2\nconnections = 5\n[models.two]\npath = "/m"\nfamily = "sdxl"\n'
    )
    (folder / "ignored.txt").write_text("not TOML [")
    config = load(file)
    assert (config.limits.queue, config.limits.connections, config.default_model) == (3, 5, "two")
    assert set(config.models) == {"one", "two"} and config.models["one"].path == str(file.parent / "m")


def test_a_drop_in_is_checked_like_any_file_and_named_in_errors(file: Path) -> None:
    folder = file.parent / "conf.d"
    folder.mkdir()
    drop_in = folder / "10.toml"
    drop_in.write_text("[limits]\nqueue = -1\n")
    with pytest.raises(ConfigError, match=r"10\.toml: .*limits\.queue"):
        load(file)
    drop_in.write_text("[limits]\nqueue = 1\n")
    drop_in.chmod(0o666)
    with pytest.raises(ConfigError, match=r"chmod go-w .*10\.toml"):
        load(file)


@pytest.mark.parametrize("drop_in", [False, True])
def test_a_missing_system_config_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop_in: bool
) -> None:
    """Without the main file nothing would set require_mac. A drop-in alone, about something else, changes nothing."""
    path = tmp_path / "weave-compute.toml"
    monkeypatch.setattr(sys.modules[load.__module__], "_SYSTEM_PATH", path)
    if drop_in:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d" / "10.toml").write_text("[limits]\nqueue = 2\n")
    with pytest.raises(ConfigError) as refused:
        load(system=True)
    assert str(refused.value).startswith(f"{path}: there is no such file; in system mode")
    subprocess.run(["sh", "-c", str(refused.value).partition("with: ")[2]], check=True)
    assert load(system=True).system.require_mac


def test_the_system_config_is_read_from_etc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    assert default_path(system=True) == Path("/etc/weave/weave-compute.toml")
    assert default_path() == Path("/nowhere/weave/weave-compute.toml")


def test_a_config_without_models_serves_the_demo_model(file: Path) -> None:
    file.write_text("[limits]\nqueue = 3\n")
    config = load(file)
    assert (list(config.models), config.default_model, config.limits.queue) == (["shapes"], "shapes", 3)
    file.write_text("[models]\n")
    assert load(file).models == {}
