"""weavectl add: what it says of a folder, what it writes, and that the daemon then serves the model."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import pytest
from safetensors.torch import save_file

from tests.integration.test_real_folders import cached, copied
from tests.integration.test_weavectl import COMMAND, weavectl
from tests.support import tiny_models
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import PROMPT
from tests.support.reference import make_small_model, write_index
from tests.support.single_files import converted, make_single_file
from tests.support.users import ALICE
from weave.config.load import load
from weave.models.assets import all_checks, source_of
from weave.models.faults import collect
from weave.weavectl.known import KNOWN, download_command
from weave.weavectl.options import parser
from weave.weavectl.output import Output

Run = Callable[..., subprocess.CompletedProcess[str]]
DROP_IN = "config/weave/conf.d/mine.toml"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command, for a user without a config or a daemon."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | home, timeout=100)

    return run


def shown(ended: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """The lines that describe the model, by their first word or two."""
    found: dict[str, list[str]] = {}
    for line in ended.stdout.partition("\n\n")[0].splitlines():
        found.setdefault(line[:12].strip(), []).append(line[12:])
    return found


def test_a_model_that_was_added_is_served(daemon: Daemon, tmp_path: Path) -> None:
    model = copied(tmp_path, "My Model (v1)")
    (model / "LICENSE.md").write_text("x")
    ended = weavectl(daemon, "add", str(model), "--title", "Mine")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    drop_in = daemon.folder / "config/weave/conf.d/my-model-v1.toml"
    assert f"{drop_in}:" in ended.stdout and shown(ended)["licence"] == ["LICENSE.md"]
    assert drop_in.read_text() == f'[models.my-model-v1]\npath = "{model}"\nfamily = "sd1"\ntitle = "Mine"\n'
    assert drop_in.stat().st_mode & 0o777 == 0o600 and drop_in.parent.stat().st_mode & 0o777 == 0o700
    # What `pkill -HUP -x weave-compute` signals.
    everyone = (daemon.process.pid, *daemon.processes())
    named = [pid for pid in everyone if Path(f"/proc/{pid}/comm").read_text() == "weave-compute\n"]
    assert named == [daemon.process.pid]
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: daemon.events("reloaded") != [])
    assert "my-model-v1" in weavectl(daemon, "models").stdout
    options = ("--model=my-model-v1", "--steps=1", "--width=64", "--height=64")
    made = weavectl(daemon, "generate", PROMPT, *options, folder=tmp_path)
    assert made.returncode == 0, made.stderr


def test_a_dry_run_says_the_same_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    planned = run("add", DEMO_MODEL, "--id=mine", "--dry-run")
    assert planned.returncode == 0 and "Not written (--dry-run)." in planned.stdout
    assert not (tmp_path / "config").exists()
    written = run("add", DEMO_MODEL, "--id=mine")
    toml = (tmp_path / DROP_IN).read_text()
    assert all(f"    {line}\n" in planned.stdout for line in toml.splitlines())
    assert shown(planned) == shown(written)


@pytest.mark.parametrize("name", ["models--weave--shapes", "models--weave--shapes/snapshots/0123abcd"])
def test_the_hubs_cache_is_added_by_its_snapshot(run: Run, tmp_path: Path, name: str) -> None:
    snapshot = cached(tmp_path)
    shutil.copytree(snapshot, snapshot.with_name("newer"), symlinks=True)
    (tmp_path / "models--weave--shapes/refs").mkdir()
    (tmp_path / "models--weave--shapes/refs/main").write_text(snapshot.name)
    ended = run("--json", "add", tmp_path / name)
    added = json.loads(ended.stdout)
    assert ended.returncode == 0 and added["path"] == str(snapshot)
    assert added["id"] == "shapes" and 'title = "weave/shapes"' in added["toml"]
    size = sum(file.stat().st_size for file in DEMO_MODEL.rglob("*") if file.is_file())
    assert added["size"] == size and added["faults"] == []


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("damaged", [False, True])
def test_the_family_is_told_from_the_components(run: Run, tmp_path: Path, family: str, damaged: bool) -> None:
    model = tiny_models.make(family, tmp_path / "model")
    if damaged:
        shutil.rmtree(model / "vae")
        (model / "text_encoder/config.json").write_text("{")
    ended = run("add", model, "--dry-run")
    assert shown(ended)["family"] == [family]
    assert len(shown(ended).get("fault", [])) == (2 if damaged else 0)


def test_an_index_tells_the_family_of_a_damaged_model(run: Run, tmp_path: Path) -> None:
    model = tiny_models.make("sdxl", tmp_path / "model")
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    for part in ("tokenizer_2", "text_encoder_2", "unet"):
        shutil.rmtree(model / part)
    assert shown(run("add", model))["family"] == ["sdxl"]
    (model / "model_index.json").write_text('{"_class_name": "StableVideoDiffusionPipeline"}')
    assert run("add", model).stdout.startswith(
        "model_index.json: _class_name is 'StableVideoDiffusionPipeline', expected"
    )


@pytest.mark.parametrize(("class_name", "takes"), [("FluxPipeline", False), ("FluxKontextPipeline", True)])
def test_kontext_is_recognised_by_its_index(run: Run, tmp_path: Path, class_name: str, takes: bool) -> None:
    model = tiny_models.make("flux", tmp_path / "model")
    write_index("flux", model, _class_name=class_name)
    added = json.loads(run("--json", "add", model, "-n").stdout)
    assert added["faults"] == [] and ("references = true\n" in added["toml"]) is takes


def test_memory_is_that_of_the_dtype_it_is_loaded_in(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "weave.toml"
    model = tiny_models.make("flux", tmp_path / "model")
    numbers = sum(part["numbers"] for part in json.loads(run("--json", "add", model, "-n").stdout)["parts"].values())
    t5_wo = 32 * 37  # transformers keeps it in float32
    for dtype, needed in {"float32": 4 * numbers, "bfloat16": 2 * numbers, "float16": 2 * numbers + 2 * t5_wo}.items():
        config.write_text(f'[device]\ndtype = "{dtype}"\n[models]\n')
        config.chmod(0o600)
        memory = json.loads(run("--json", "add", model, "-n", "--config", config).stdout)["memory"]
        assert memory[dtype]["weights"] == needed and len(memory) == 1


def test_everything_wrong_is_shown_and_nothing_written(run: Run, tmp_path: Path) -> None:
    model = copied(tmp_path, "broken", "v1.ckpt")
    unet = model / "unet/config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"in_channels": 9, "auto_map": {}}))
    (model / "vae/diffusion_pytorch_model.safetensors").unlink()
    (model / "text_encoder/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    shutil.rmtree(model / "scheduler")
    ended = run("add", model)
    assert ended.returncode == 4 and "Not added: fix the faults first." in ended.stdout
    assert shown(ended)["fault"] == [
        "scheduler/scheduler_config.json: No such file or directory",
        "unet/config.json: 'auto_map' is not a known key; remove it",
        "unet/config.json: in_channels is 9, expected 4 (the VAE's latent_channels)",
        "text_encoder/model.safetensors: a git-lfs pointer, not the file that it stands for; run git lfs pull",
        "vae/diffusion_pytorch_model.safetensors: No such file or directory",
    ]
    assert shown(ended)["never read"] == ["v1.ckpt"] and "memory" not in shown(ended)
    assert not (tmp_path / "config").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_fault_like_any_other(run: Run, tmp_path: Path) -> None:
    model = copied(tmp_path, "model")
    (model / "vae/config.json").chmod(0)
    (model / "unet").chmod(0)
    faults = shown(run("add", model))["fault"]
    (model / "unet").chmod(0o700)
    assert faults == [
        "unet/config.json: Permission denied",
        "vae/config.json: Permission denied",
        "unet/diffusion_pytorch_model.safetensors: Permission denied",
    ]


def test_a_default_scheduler_that_would_not_fit_is_replaced(run: Run, tmp_path: Path) -> None:
    """The family's default, euler, is for other models than those with EDM's noise schedule."""
    model = tiny_models.make("sdxl", tmp_path / "model")
    diffusers.EDMDPMSolverMultistepScheduler().save_pretrained(model / "scheduler")
    assert run("add", model, "--id=mine").returncode == 0
    toml = (tmp_path / DROP_IN).read_text()
    assert toml.endswith('defaults.scheduler = "edm_dpmpp_2m"\n')
    assert run("check-config").returncode == 0
    for wrong in ("", 'defaults.scheduler = "dpmpp_2m"\n'):
        (tmp_path / DROP_IN).write_text(toml.replace('defaults.scheduler = "edm_dpmpp_2m"\n', wrong))
        told = (
            "does not fit the model's EDMDPMSolverMultistepScheduler: use one of edm_euler, edm_dpmpp_2m; set the model"
        )
        ended = run("check-config")
        assert (
            ended.returncode == 4 and f"the default scheduler is {'dpmpp_2m' if wrong else 'euler'}: " in ended.stdout
        )
        assert told in ended.stdout and told in run("doctor").stdout
    file = make_single_file("sdxl", model, tmp_path / "cosxl.safetensors", {"edm_vpred.sigma_max": 120.0})
    assert 'defaults.scheduler = "edm_euler"' in run("add", file, "--layout", model, "-n").stdout


def test_no_file_and_no_model_of_the_config_is_overwritten(run: Run, tmp_path: Path) -> None:
    assert run("add", DEMO_MODEL, "--id=mine").returncode == 0
    again = run("add", DEMO_MODEL)
    assert again.returncode == 4 and "is in the config already, as mine" in again.stdout
    assert "models.mine is in the config already" in run("add", DEMO_MODEL, "--id=mine").stdout
    (tmp_path / DROP_IN).with_name("other.toml").write_text("")
    assert "other.toml exists, and is not overwritten" in run("add", DEMO_MODEL, "--id=other").stdout
    assert (tmp_path / DROP_IN).with_name("other.toml").read_text() == ""
    # From the folder's name: the next free ID.
    assert json.loads(run("--json", "add", copied(tmp_path, "Mine")).stdout)["id"] == "mine-2"


def test_a_config_that_would_be_refused_is_not_written(run: Run, tmp_path: Path) -> None:
    main = tmp_path / "config/weave/weave-compute.toml"
    main.parent.mkdir(parents=True, mode=0o700)
    main.write_text('default_model = "shapes"\n')
    ended = run("add", DEMO_MODEL, "--id=mine")
    assert ended.returncode == 4 and "default_model is 'shapes', which is not in [models]" in ended.stdout
    main.unlink()
    assert "title holds U+202E" in run("add", DEMO_MODEL, "--id=mine", "--title=\u202eevil").stdout
    main.parent.chmod(0o777)
    assert "lets others write to it; fix it with: chmod go-w" in run("add", DEMO_MODEL, "--id=mine").stdout
    assert not (tmp_path / DROP_IN).exists()


def test_names_and_configs_cannot_control_the_terminal(run: Run, tmp_path: Path) -> None:
    model = copied(tmp_path, "model")
    (model / "\x1b[2Jv1.ckpt").touch()
    (model / "LICENSE\u202e").touch()
    (model / "vae/config.json").write_text(json.dumps({"\x1b[2J": 1}))
    ended = run("add", model, "--dry-run")
    assert all(line.isprintable() for line in ended.stdout.splitlines())
    assert "\\x1b[2Jv1.ckpt" in shown(ended)["never read"] and "LICENSE\\u202e" in shown(ended)["licence"]
    refused = run("add", copied(tmp_path, "\u202eevil"))
    assert refused.returncode == 4 and "holds U+202E, which cannot be shown; rename the folder" in refused.stdout
    assert all(line.isprintable() for line in refused.stdout.splitlines())


@pytest.mark.parametrize("path", ["/nonexistent", "/etc", "/etc/passwd"])
def test_what_is_no_model_is_refused(run: Run, path: str) -> None:
    ended = run("add", path)
    assert ended.returncode == 4 and path.rpartition("/")[2] in ended.stdout and len(ended.stdout.splitlines()) == 1


def test_wrong_usage_is_explained(run: Run) -> None:
    for arguments in ((), ("--known", "/etc"), ("/etc", "--id=../x")):
        assert run("add", *arguments).returncode == 2


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which only the system has a config. Its folders are in `tmp_path`."""
    config = tmp_path / "etc" / "weave-compute.toml"
    config.parent.mkdir()
    config.write_text("[system]\nrequire_mac = true\n")
    monkeypatch.setattr(sys.modules["weave.config.load"], "_SYSTEM_PATH", config)
    monkeypatch.setattr("weave.weavectl.add._SYSTEM_MODELS", tmp_path / "var" / "models")
    monkeypatch.setattr("weave.weavectl.locate.SYSTEM_SOCKET_PATH", tmp_path / "run" / "weave.sock")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    return config


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    options = parser().parse_args(arguments)
    assert options.run(options, Output(json=False)) == 0
    return capsys.readouterr().out.splitlines()


def root_commands(said: list[str]) -> list[str]:
    """Those that root must run: the indented lines after the drop-in's."""
    start = next(number for number, line in enumerate(said) if line.startswith("Nothing is written"))
    return [line[4:] for line in said[start:] if line.startswith("    ")]


def test_in_system_mode_root_gets_the_commands(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copied(tmp_path, "it's mine")
    commands = root_commands(asked(capsys, "add", str(source), "--id", "mine"))
    assert commands[-2:] == [
        f"runuser -u weave-gpu -- find -L {tmp_path}/var/models/mine ! -readable", "systemctl reload weave-compute"
    ]  # fmt: skip
    assert not (system.parent / "conf.d").exists()
    placed = copied(tmp_path / "var/models", "placed")
    assert root_commands(asked(capsys, "add", str(placed)))[0] == f"chmod -R a+rX {placed}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run what root must run")
@pytest.mark.parametrize("path", [True, False], ids=["a file in parts", "a folder with another part"])
def test_in_system_mode_parts_are_copied_too(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: bool
) -> None:
    layout = make_small_model("sd1", tmp_path / "layout")
    file = make_single_file("sd1", layout, tmp_path / "model.safetensors")
    vae = tmp_path / "vae.safetensors"
    save_file(converted("sd1", layout, "vae"), vae)
    given = (str(file), "--layout", str(layout)) if path else (str(layout),)
    commands = root_commands(asked(capsys, "add", *given, "--part", f"vae={vae}", "--id", "mine"))[:-2]
    ended = subprocess.run(["sh", "-uc", "\n".join(commands)], check=False, capture_output=True, text=True)
    added = load(system=True).models["mine"]
    copied = source_of(added.path, added.layout, added.parts)
    assert ended.returncode == 0, ended.stderr
    top = tmp_path / "var/models/mine"
    assert all(place.is_relative_to(top) for place in (copied.path, *copied.parts.values()))
    assert collect(all_checks("sd1", copied, "float32", {}))[0] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run what root must run")
def test_roots_commands_copy_what_the_owner_may_read(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], users: None
) -> None:
    source = copied(Path(tempfile.mkdtemp(prefix="weave-test-")), "it's mine")
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    (source / "link.txt").symlink_to(secret)
    for above in source.parents[:2]:
        above.chmod(0o755)
    for path in (source, *source.rglob("*")):
        shutil.chown(path, ALICE) if not path.is_symlink() else None
    commands = root_commands(asked(capsys, "add", str(source), "--id", "mine"))[:-2]
    ended = subprocess.run(["sh", "-uc", "umask 077\n" + "\n".join(commands)], check=False)
    model = load(system=True).models["mine"]
    assert ended.returncode == 0 and (model.family, model.title) == ("sd1", "it's mine")
    copies = {path.relative_to(model.path): path for path in Path(model.path).rglob("*")}
    assert {path.relative_to(source) for path in source.rglob("*")} - {Path("link.txt")} == copies.keys()
    assert all(path.stat().st_mode & 0o004 for path in copies.values())


@pytest.fixture(scope="module")
def known() -> Iterator[str]:
    yield subprocess.run([COMMAND, "add", "--known"], capture_output=True, text=True, check=True).stdout


def test_known_models_come_with_licence_sizes_and_command(known: str) -> None:
    for model in KNOWN:
        start = known.index(f"{model.repository}\n")
        assert model.licence in known[start:].splitlines()[1]
        assert "download about" in known[start:].splitlines()[2]
        assert download_command(model) == known[start:].splitlines()[3].strip()


def test_a_known_models_command_fits_the_tool() -> None:
    """With options that it has, for files that the family reads."""
    tool = Path(sys.executable).with_name("hf")
    help_text = subprocess.run([tool, "download", "--help"], capture_output=True, text=True, check=True).stdout
    for model in KNOWN:
        words = shlex.split(download_command(model))
        assert words[:3] == ["hf", "download", model.repository]
        assert all(word in help_text for word in words if word.startswith("--"))
