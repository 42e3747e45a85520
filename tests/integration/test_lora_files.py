"""Files of LoRAs that cannot be used: the job fails, the log names the LoRA and the reason, and the worker lives on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from tests.integration.test_weavectl import weavectl
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.reference import make_small_model
from weave.client import Client, RequestedLora, WeaveError
from weave.protocol.errors import ErrorCode

NAME = "lora_unet_mid_block_resnets_0_conv1"
DOWN, UP = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"
OTHER = "lora_unet_down_blocks_9_resnets_0_conv1"


class Bad(NamedTuple):
    """Writes the file `path`, given the tensors of a good one. The log then has `reason`."""

    write: Callable[[Path, dict[str, torch.Tensor]], object]
    reason: str


def renamed(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.replace(NAME, name): tensor for key, tensor in tensors.items()}


def cut(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1])


BAD = {
    "missing": Bad(lambda path, _: None, "missing: missing.safetensors: No such file or directory"),
    "folder": Bad(lambda path, _: path.mkdir(), "folder: folder.safetensors: not a regular file"),
    "pipe": Bad(lambda path, _: os.mkfifo(path), "pipe: pipe.safetensors: not a regular file"),
    "cut": Bad(cut, "cut: cut.safetensors: "),
    "empty": Bad(lambda path, _: path.touch(), "empty: empty.safetensors: header of 0 bytes"),
    "pickle": Bad(lambda path, good: torch.save(good, path), "pickle: pickle.safetensors: header of"),
    "pinned": Bad(lambda path, good: save_file(good, path), f"expected {'0' * 64}"),
    "dora": Bad(
        lambda path, good: save_file(good | {f"{NAME}.dora_scale": torch.ones(16, 1)}, path),
        f"dora: '{NAME}.dora_scale' belongs to DoRA, which is not supported",
    ),
    "unknown": Bad(
        lambda path, good: save_file(good | {"x.weight": torch.ones(1)}, path),
        "unknown: 'x.weight' is not a known key of a LoRA",
    ),
    "other-model": Bad(
        lambda path, good: save_file(renamed(good, OTHER), path),
        f"other-model: '{OTHER}.lora_down.weight' is for a layer that the model does not have",
    ),
    "shape": Bad(
        lambda path, good: save_file(good | {DOWN: torch.ones(2, 31, 3, 3)}, path),
        f"shape: '{DOWN}' is of shape [2, 31, 3, 3], expected [2, 32, 3, 3]",
    ),
    "integers": Bad(
        lambda path, good: save_file(good | {UP: torch.ones(32, 2, 1, 1, dtype=torch.int8)}, path),
        f"integers: '{UP}' is of I8, expected one of F16, BF16, F32, F64",
    ),
    "alpha": Bad(
        lambda path, good: save_file(good | {f"{NAME}.alpha": torch.tensor(float("inf"))}, path),
        f"alpha: '{NAME}.alpha' is not finite",
    ),
    "rslora": Bad(
        lambda path, good: save_file(good, path, {"lora_adapter_metadata": '{"unet.use_rslora": true}'}),
        "rslora: lora_adapter_metadata has use_rslora True, which is not supported",
    ),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("loras")
    model = make_small_model("sd1", folder / "sd1")
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    shape = unet.get_submodule("mid_block.resnets.0.conv1").weight.shape
    good = {DOWN: torch.ones(2, *shape[1:]), UP: torch.ones(shape[0], 2, 1, 1)}
    save_file(good, folder / "good.safetensors")
    for name, bad in BAD.items():
        bad.write(folder / f"{name}.safetensors", dict(good))
    # With it a job for another scheduler, which does not support "sample", fails when it has begun.
    diffusers.DDIMScheduler(prediction_type="sample").save_pretrained(model / "scheduler")
    config = f'[device]\ndevice = "cpu"\n[models.small]\npath = "{model}"\nfamily = "sd1"\n'
    config += "".join(
        f'[loras.{name}]\npath = "{folder / name}.safetensors"\nfamily = "sd1"\n' for name in ("good", *BAD)
    )
    started = Daemon(config.replace('pinned.safetensors"\n', f'pinned.safetensors"\nsha256 = "{"0" * 64}"\n'))
    yield started.wait_until_serving()
    assert started.stop() == 0


def image(client: Client, *loras: str, **more: Any) -> bytes:
    asked: dict[str, Any] = {"model": "small", "width": 64, "height": 64, "steps": 2, "scheduler": "ddim", **more}
    return images(generate(client, format="raw", loras=tuple(map(RequestedLora, loras)), **asked))[0].data


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_its_job_and_nothing_else(daemon: Daemon, name: str) -> None:
    with daemon.client() as client:
        plain, changed = image(client), image(client, "good")
        worker = daemon.pid_of("worker")
        with pytest.raises(WeaveError) as refused:
            image(client, "good", name)
        assert refused.value.code is ErrorCode.WORKER_FAILED
        assert str(refused.value) == "the file of a LoRA was refused; the daemon's log says which"
        assert wait_for(lambda: [it for it in daemon.events("job_failed") if BAD[name].reason in it["detail"]])
        assert (image(client), image(client, "good")) == (plain, changed) and plain != changed
        assert daemon.pid_of("worker") == worker


def test_after_a_failure_the_weights_are_the_models_again(daemon: Daemon) -> None:
    with daemon.client() as client:
        plain = image(client)
        with pytest.raises(WeaveError, match="rules out"):
            image(client, "good", scheduler="pndm")
        assert image(client) == plain


def test_check_config_and_doctor_name_the_bad_files(daemon: Daemon) -> None:
    """As far as they show without the model."""
    wanted = BAD.keys() - {"other-model", "shape", "alpha"}
    found = weavectl(daemon, "doctor").stdout.splitlines()
    assert {name for name in BAD if any(line.startswith(f"fail  lora {name}: ") for line in found)} == wanted
    checked = weavectl(daemon, "check-config")
    assert {name for name in BAD if f"lora {name}: " in checked.stdout} == wanted
    assert (checked.returncode, "missing.safetensors: No such file" in checked.stdout) == (4, True)
