"""Files of ControlNets that cannot be used: the job fails, the log names the ControlNet and the reason, and the worker
keeps running. `weavectl add` recognises those that can."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.test_weavectl import weavectl
from tests.support.control_nets import as_original_file, as_single_file, make_control, picture
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.reference import assembled, make_small_model
from tests.support.single_files import make_single_file
from weave.client import Client, Control, WeaveError
from weave.models.detect import detect
from weave.protocol.errors import ErrorCode

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Good(NamedTuple):
    """A folder with good ControlNets `sd1`, `sdxl` and `flux`, and a model of sd1."""

    folder: Path

    def copy(self, path: Path, name: str = "sd1") -> Path:
        return Path(shutil.copytree(self.folder / name, path))


class Bad(NamedTuple):
    """Writes the folder or file `path`. The log then has `reason`; tools see it only if it shows `without_model`."""

    write: Callable[[Good, Path], object]
    reason: str
    suffix: str = ""
    without_model: bool = True


def config(**changed: Any) -> Callable[[Good, Path], object]:
    def write(good: Good, path: Path) -> None:
        file = good.copy(path) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return write


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Good, Path], object]:
    def write(good: Good, path: Path) -> None:
        file = good.copy(path) / WEIGHTS
        found = load_file(file)
        change(found)
        save_file(found, file)

    return write


def pickled(good: Good, path: Path) -> None:
    (good.copy(path) / WEIGHTS).unlink()
    torch.save({"conv_in.bias": torch.ones(1)}, path / "diffusion_pytorch_model.bin")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def linked(good: Good, path: Path) -> None:
    (good.copy(path) / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to(good.folder / "sd1" / WEIGHTS)


SAFE = ".safetensors"
ELSEWHERE = ": for another family or size of model"
BAD = {
    "missing": Bad(lambda good, path: None, "missing: missing: No such file or directory"),
    "empty": Bad(lambda good, path: path.mkdir(), "empty: config.json: No such file or directory"),
    "pipe": Bad(lambda good, path: os.mkfifo(path), "pipe: pipe.safetensors: not a regular file", SAFE),
    "pickles": Bad(pickled, "diffusion_pytorch_model.bin is a pickle, which can run code and is never read"),
    "pth": Bad(lambda good, path: torch.save({}, path), "pth: pth.pth: not a .safetensors file", ".pth"),
    "renamed": Bad(lambda good, path: torch.save({}, path), "renamed: renamed.safetensors: header of", SAFE),
    "cut": Bad(lambda good, path: cut(good.copy(path) / WEIGHTS), f"cut: {WEIGHTS}: "),
    "cut-file": Bad(lambda good, path: cut(as_single_file(good.folder / "sd1", path)), "download is incomplete", SAFE),
    "linked": Bad(linked, f"linked: {WEIGHTS}: links to outside the model's folder"),
    "flux-net": Bad(
        lambda good, path: good.copy(path, "flux"),
        "flux-net: config.json: _class_name is 'FluxControlNetModel', expected ControlNetModel",
    ),
    "flux-file": Bad(
        lambda good, path: as_single_file(good.folder / "flux", path),
        "flux-file.safetensors: a ControlNet of family flux, expected a ControlNet of family sd1",
        SAFE,
    ),
    "model": Bad(
        lambda good, path: make_single_file("sd1", good.folder / "model", path),
        "model.safetensors: not a ControlNet that is known, expected a ControlNet of family sd1",
        SAFE,
    ),
    "published": Bad(
        config(cross_attention_dim=2048),
        "cross_attention_dim is 2048, in family sd1 it is 768: of another family",
    ),
    "wide": Bad(config(cross_attention_dim=64), f"is 64, expected 32 (as the model's){ELSEWHERE}", "", False),
    "xl": Bad(lambda good, path: good.copy(path, "sdxl"), f"is 64, expected 32 (as the model's){ELSEWHERE}", "", False),
    "xl-file": Bad(
        lambda good, path: as_original_file(good.folder / "sdxl", path), "is 64, expected 32 (as", SAFE, False
    ),
    "blocks": Bad(config(block_out_channels=[16, 48]), "block_out_channels is [16, 48], expected", "", False),
    "hint": Bad(
        config(conditioning_embedding_out_channels=[4, 8]),
        "conditioning_embedding_out_channels has 2 numbers, expected 4 (as the VAE has blocks)",
        without_model=False,
    ),
    "depth": Bad(config(conditioning_channels=1), "conditioning_channels is 1, expected 3; others are not supported"),
    "code": Bad(config(auto_map={"AutoModel": "x.py"}), "config.json: 'auto_map' is not a known key"),
    "kind": Bad(config(norm_eps="x"), "config.json: norm_eps is 'x', expected a number"),
    "fewer": Bad(tensors(lambda it: it.pop("conv_in.bias")), "1 missing tensors: 'conv_in.bias'", "", False),
    "more": Bad(tensors(lambda it: it.update(x=torch.ones(1))), "1 unexpected tensors: 'x'", "", False),
    "shape": Bad(tensors(lambda it: it.update({"conv_in.bias": torch.ones(3)})), "1 tensors of another", "", False),
    "whole": Bad(
        tensors(lambda it: it.update({"conv_in.bias": torch.ones(16, dtype=torch.int32)})),
        "1 tensors not of floating-point numbers: 'conv_in.bias'",
        without_model=False,
    ),
    "pinned": Bad(lambda good, path: good.copy(path), f"expected {'0' * 64}"),
    "pinned-file": Bad(lambda good, path: as_single_file(good.folder / "sd1", path), f"expected {'0' * 64}", SAFE),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    for family in ("sd1", "sdxl", "flux"):
        model = make_small_model(family, folder / ("model" if family == "sd1" else f"model-{family}"))
        make_control(family, assembled(family, model, torch.float32), folder / family, 1)
    return Good(folder)


@pytest.fixture(scope="module")
def daemon(good: Good, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("bad")
    tables = f'[device]\ndevice = "cpu"\n[models.small]\npath = "{good.folder / "model"}"\nfamily = "sd1"\n'
    tables += f'[controls.good]\npath = "{good.folder / "sd1"}"\nfamily = "sd1"\n'
    for name, bad in BAD.items():
        path = folder / f"{name}{bad.suffix}"
        bad.write(good, path)
        tables += f'[controls.{name}]\npath = "{path}"\nfamily = "sd1"\n'
        if name.startswith("pinned"):
            tables += f'sha256 = {{ "{"path" if bad.suffix else WEIGHTS}" = "{"0" * 64}" }}\n'
    started = Daemon(tables)
    yield started.wait_until_serving()
    assert started.stop() == 0


def image(client: Client, *names: str) -> bytes:
    controls = tuple(Control(id=name, image=picture(1)) for name in names)
    asked: dict[str, Any] = {"model": "small", "width": 64, "height": 64, "steps": 2}
    return images(generate(client, format="raw", control=controls, **asked))[0].data


def logged(daemon: Daemon, name: str) -> list[str]:
    """Why it was refused."""
    return [it["detail"] for it in daemon.events("job_failed") if it["detail"].startswith(f"{name}: ")]


def test_a_bad_file_fails_its_job_and_nothing_else(daemon: Daemon) -> None:
    with daemon.client() as client:
        plain, controlled = image(client), image(client, "good")
        worker = daemon.pid_of("worker")
        for name, bad in BAD.items():
            with pytest.raises(WeaveError) as refused:
                image(client, "good", name)
            assert refused.value.code is ErrorCode.WORKER_FAILED, name
            assert str(refused.value) == "the files of a ControlNet were refused; the daemon's log says which"
            wait_for(lambda: [it for it in logged(daemon, name) if bad.reason in it])  # noqa: B023
        assert (image(client), image(client, "good")) == (plain, controlled) and plain != controlled
        assert daemon.pid_of("worker") == worker


def test_check_config_and_doctor_name_the_bad_files(daemon: Daemon) -> None:
    """Only faults that show without the model."""
    wanted = {name for name, bad in BAD.items() if bad.without_model}
    found = weavectl(daemon, "doctor").stdout.splitlines()
    assert {name for name in BAD if any(line.startswith(f"fail  control {name}: ") for line in found)} == wanted
    checked = weavectl(daemon, "check-config")
    assert {name for name in BAD if f"control {name}: " in checked.stdout} == wanted
    assert (checked.returncode, "is a pickle, which can run code" in checked.stdout) == (4, True)


def test_weavectl_add_recognises_them(daemon: Daemon, good: Good, tmp_path: Path) -> None:
    original = as_original_file(good.folder / "sd1", tmp_path / "Canny_sd15.safetensors")
    # The width of the tiny model does not tell sd1 from sd2, nor from others.
    cases = {good.folder / "sd1": "sd1", good.folder / "flux": "flux", original: "sd1"}
    for path, family in cases.items():
        ended = weavectl(daemon, "add", "--dry-run", "--id=new", str(path))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f'[controls.new]\n    path = "{path}"\n    family = "{family}"\n' in ended.stdout
        assert ended.stdout.endswith('Then: weavectl generate "..." --control new=IMAGE.png\n')
    described = json.loads(weavectl(daemon, "--json", "add", "--dry-run", str(original)).stdout)
    assert (described["class"], described["fits"], described["id"]) == ("ControlNetModel", ["sd2"], "canny_sd15")
    assert described["part"]["numbers"] == sum(tensor.numel() for tensor in load_file(original).values())
    assert detect(good.folder / "sdxl").families == ("sdxl",)
    twice = weavectl(daemon, "add", str(good.folder / "sd1"))
    assert twice.returncode == 4 and "is in the config already, as good" in twice.stdout


@pytest.mark.parametrize("width, family", [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_the_width_tells_the_family(good: Good, tmp_path: Path, width: int, family: str) -> None:
    added = {"addition_embed_type": "text_time"} if family == "sdxl" else {}
    config(cross_attention_dim=width, **added)(good, tmp_path / "net")
    assert detect(tmp_path / "net").families == (family,)
    names = {"input_hint_block.0.weight": torch.ones(1), "a.attn2.to_k.weight": torch.ones(1, width)}
    names |= {"label_emb.0.0.weight": torch.ones(1)} if added else {}
    save_file({f"control_model.{name}": tensor for name, tensor in names.items()}, tmp_path / "net.safetensors")
    assert detect(tmp_path / "net.safetensors").families == (family,)
