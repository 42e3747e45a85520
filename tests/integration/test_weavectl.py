"""The command as a user runs it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import PROMPT
from weave.client import AsyncClient, WeaveError
from weave.weavectl.options import parser
from weave.weavectl.output import Output

COMMAND = Path(sys.executable).with_name("weavectl")


def weavectl(daemon: Daemon, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(daemon.folder), "XDG_CONFIG_HOME": str(daemon.folder / "config")}
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=folder, timeout=100
    )


def test_generate_writes_the_image_and_prints_its_path(shared_daemon: Daemon, tmp_path: Path) -> None:
    ended = weavectl(
        shared_daemon, "generate", PROMPT, "--model", "shapes", "-o", "a.png", "--seed", "7", folder=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "a.png (seed 7)" in ended.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]


def test_generate_without_a_model_takes_the_default_one(daemon: Daemon, tmp_path: Path) -> None:
    ended = weavectl(daemon, "generate", PROMPT, "--steps", "2", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert os.listdir(tmp_path) == ["weave.png"]


def test_images_are_numbered_and_nothing_is_overwritten(shared_daemon: Daemon, tmp_path: Path) -> None:
    options = ("generate", PROMPT, "--model=shapes", "--steps=2", "--images=2", "--preview=1", "-o", "a.png")
    assert weavectl(shared_daemon, *options, folder=tmp_path).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["a-1.png", "a-2.png"]
    again = weavectl(shared_daemon, *options, folder=tmp_path)
    assert again.returncode == 1 and "a-1.png exists" in again.stderr
    assert weavectl(shared_daemon, *options, "--force", folder=tmp_path).returncode == 0


def test_json_is_an_object_a_line_with_every_event(shared_daemon: Daemon, tmp_path: Path) -> None:
    ended = weavectl(shared_daemon, "--json", "generate", PROMPT, "--model=shapes", "--steps=3", folder=tmp_path)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "loading"] == [
        "queued", *["progress"] * 3, "image", "done"
    ]  # fmt: skip
    assert events[-2]["file"] == "weave.png"


def test_a_refusal_names_field_value_and_bound(shared_daemon: Daemon, tmp_path: Path) -> None:
    ended = weavectl(shared_daemon, "generate", PROMPT, "--model=shapes", "--width=100", folder=tmp_path)
    assert ended.returncode == 1
    assert "width is 100" in ended.stderr and "64" in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_the_job_and_leaves_no_file(
    shared_daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(shared_daemon.folder)}
    command = [COMMAND, "generate", PROMPT, "--model=shapes", "--steps=100", "--images=8"]
    with shared_daemon.client() as client:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_for(lambda: client.status().worker == "running")
        process.send_signal(number)
        assert process.wait(20) == 130
        wait_for(lambda: client.status().worker == "idle", seconds=20)
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_load_status_cancel_and_unload(shared_daemon: Daemon) -> None:
    assert "shapes is loaded" in weavectl(shared_daemon, "load", "shapes").stdout
    status = weavectl(shared_daemon, "status").stdout
    assert "idle" in status and "landlock" in status
    assert json.loads(weavectl(shared_daemon, "--json", "status").stdout)["model"] == "shapes"
    assert "loaded" in weavectl(shared_daemon, "models").stdout
    assert weavectl(shared_daemon, "cancel", "--all").returncode == 0
    assert weavectl(shared_daemon, "cancel", "99999").returncode == 1
    assert weavectl(shared_daemon, "unload").returncode == 0
    assert json.loads(weavectl(shared_daemon, "--json", "status").stdout)["model"] is None


def test_doctor_passes_with_a_good_daemon_and_fails_without(daemon: Daemon) -> None:
    good = weavectl(daemon, "doctor")
    assert good.returncode == 0, good.stdout
    assert {"socket", "daemon", "config", "model", "gpu", "landlock"} <= {
        line.split()[1].strip(":") for line in good.stdout.splitlines()
    }
    daemon.config.parent.mkdir(parents=True)
    daemon.config.write_text('[models.x]\npath = "/nonexistent"\nfamily = "sd1"\n')
    bad = weavectl(daemon, "doctor")
    assert bad.returncode == 4 and "no such model" in bad.stdout
    daemon.config.write_text("[models.x]\nfamily = 5\n")
    checked = weavectl(daemon, "check-config")
    assert checked.returncode == 4 and "models" in checked.stdout


def test_every_fault_of_every_model_is_told_in_one_go(tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(DEMO_MODEL, tmp_path / name)) for name in ("first", "second"))
    (first / "unet/config.json").write_text('{"auto_map": {}, "act_fn": 5}')
    (first / "vae/diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(second / "tokenizer")
    faults = {
        "first": [
            "unet/config.json: 'auto_map' is not a known key; remove it",
            "unet/config.json: act_fn is 5, expected a plain name",
            "vae/diffusion_pytorch_model.safetensors: No such file or directory",
        ],
        "second": [
            "tokenizer: this family needs the folder, and the model does not have it",
            "unet/config.json: sha256 is",
        ],
    }
    config = tmp_path / "weave.toml"
    models = "".join(f'[models.{name}]\npath = "{tmp_path / name}"\nfamily = "sd1"\n' for name in faults)
    config.write_text(f'{models}sha256 = {{ "unet/config.json" = "{"0" * 64}" }}\n')
    config.chmod(0o600)
    expected = [f"model {name}: {fault}" for name, own in faults.items() for fault in own]
    for command in ("check-config", "doctor"):
        ended = subprocess.run([COMMAND, command, "--config", config], capture_output=True, text=True, check=False)
        told = [line.removeprefix("fail  ") for line in ended.stdout.splitlines() if "model " in line]
        assert ended.returncode == 4 and len(told) == len(expected), ended.stdout
        assert all(line.startswith(fault) for line, fault in zip(told, expected, strict=True))
    config.write_text(models.replace('"sd1"', '"sd9"'))
    ended = subprocess.run([COMMAND, "check-config", "--config", config], capture_output=True, text=True, check=False)
    assert all(f"models.{name}.family is 'sd9'; it must be one of" in ended.stdout for name in faults)


@pytest.fixture
def a_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with the packages installed and no running daemon: the config requires AppArmor or SELinux."""
    config = tmp_path / "etc" / "weave-compute.toml"
    config.parent.mkdir()
    config.write_text("[system]\nrequire_mac = true\n[models]\n")
    monkeypatch.setattr(sys.modules["weave.config.load"], "_SYSTEM_PATH", config)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("weave.weavectl.locate.SYSTEM_SOCKET_PATH", tmp_path / "run" / "weave.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    return config


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    options = parser().parse_args(arguments)
    options.run(options, Output(json=False))
    return capsys.readouterr().out


def test_doctor_explains_why_the_system_daemon_may_not_serve(
    a_system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = asked(capsys, "doctor")
    assert f"{a_system}, 0 models" in told and "fail  daemon" in told
    assert "with require_mac the daemon exits unless AppArmor or SELinux confines it" in told
    assert "systemctl reset-failed" in told and "systemctl enable --now weave-compute.socket" in told
    assert asked(capsys, "check-config") == f"good: {a_system}: \n"


def test_doctor_prefers_the_users_own_config(a_system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = a_system.parents[1] / "home" / "weave" / "weave-compute.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[models]\n")
    assert asked(capsys, "check-config") == f"good: {own}: \n"
    assert "require_mac" not in asked(capsys, "doctor")


def test_no_daemon_is_exit_status_3(tmp_path: Path) -> None:
    ended = subprocess.run([COMMAND, "--socket", tmp_path / "s", "status"], capture_output=True, text=True, check=False)
    assert ended.returncode == 3 and str(tmp_path / "s") in ended.stderr


def test_both_clients_explain_a_refused_connection() -> None:
    daemon = Daemon("[limits]\nconnections_per_uid = 1\n[models]\n").wait_until_serving()

    async def ask() -> None:
        async with AsyncClient(daemon.socket) as second:
            await asyncio.sleep(0.2)
            await second.status()

    try:
        with daemon.client() as first:
            assert first.status().connections == 1
            with daemon.client() as second, pytest.raises(WeaveError, match="connections_per_uid is 1"):
                time.sleep(0.2)
                second.status()
            with pytest.raises(WeaveError, match="connections_per_uid is 1"):
                asyncio.run(ask())
    finally:
        daemon.stop()
