"""Files of embeddings that cannot be used: the job fails, the log names the embedding and the reason, and the worker
lives on."""

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
from weave.client import Client, WeaveError
from weave.protocol.errors import ErrorCode

KEY, WIDTH = "emb_params", 32


class Bad(NamedTuple):
    """Writes the file `path`, given the tensor of a good one. The log then has `reason`. `suffix` is the file's."""

    write: Callable[[Path, torch.Tensor], object]
    reason: str
    suffix: str = "safetensors"


def of(tensors: dict[str, torch.Tensor]) -> Callable[[Path, torch.Tensor], object]:
    return lambda path, _: save_file(tensors, path)


def pickled(path: Path, good: torch.Tensor) -> None:
    torch.save({"string_to_param": {"*": good}, "name": "x"}, path)


NEVER_READ = "not a .safetensors file; other formats can run code and are never read"
BAD = {
    "missing": Bad(lambda path, _: None, "missing: missing.safetensors: No such file or directory"),
    "pipe": Bad(lambda path, _: os.mkfifo(path), "pipe: pipe.safetensors: not a regular file"),
    "web-ui": Bad(pickled, f"web-ui: web-ui.pt: {NEVER_READ}", "pt"),
    "older": Bad(pickled, f"older: older.bin: {NEVER_READ}", "bin"),
    "pickle": Bad(pickled, "pickle: pickle.safetensors: header of"),
    "pinned": Bad(lambda path, good: save_file({KEY: good}, path), f"expected {'0' * 64}"),
    "wide": Bad(
        of({KEY: torch.ones(1, 768)}),
        f"wide: '{KEY}' has vectors of 768 numbers, text_encoder takes {WIDTH}: of another family",
    ),
    "pair": Bad(
        of({"clip_l": torch.ones(1, WIDTH), "clip_g": torch.ones(1, WIDTH)}),
        "pair: pair.safetensors: is for 2 text encoders, those of family sd1 have 1: of another family",
    ),
    "many": Bad(
        of({KEY: torch.ones(76, WIDTH)}), f"many.safetensors: '{KEY}' has 76 vectors; at most 75 fit into a prompt"
    ),
    "none": Bad(of({KEY: torch.ones(0, WIDTH)}), f"'{KEY}' is of shape [0, {WIDTH}], expected [vectors, width]"),
    "deep": Bad(of({KEY: torch.ones(1, 1, WIDTH)}), f"'{KEY}' is of shape [1, 1, {WIDTH}], expected [vectors, width]"),
    "integers": Bad(
        of({KEY: torch.ones(1, WIDTH, dtype=torch.int8)}), f"'{KEY}' is of I8, expected one of F16, BF16, F32, F64"
    ),
    "nan": Bad(of({KEY: torch.full((1, WIDTH), float("nan"))}), f"nan: '{KEY}' is not finite in float32"),
    "infinite": Bad(of({KEY: torch.full((1, WIDTH), float("-inf"))}), f"infinite: '{KEY}' is not finite in float32"),
    "two": Bad(
        of({KEY: torch.ones(1, WIDTH), "other": torch.ones(1, WIDTH)}),
        "two.safetensors: has 2 tensors, expected those of an embedding: one, or clip_l and clip_g",
    ),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("embeddings")
    model = make_small_model("sd1", folder / "sd1")
    good = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({KEY: good}, folder / "good.safetensors")
    # With it a job for another scheduler, which does not support "sample", fails when it has begun.
    diffusers.DDIMScheduler(prediction_type="sample").save_pretrained(model / "scheduler")
    config = f'[device]\ndevice = "cpu"\n[models.small]\npath = "{model}"\nfamily = "sd1"\n'
    config += f'[embeddings.good]\npath = "{folder}/good.safetensors"\nfamily = "sd1"\n'
    for name, bad in BAD.items():
        path = folder / f"{name}.{bad.suffix}"
        bad.write(path, good)
        config += f'[embeddings.{name}]\npath = "{path}"\nfamily = "sd1"\n'
    started = Daemon(config.replace('pinned.safetensors"\n', f'pinned.safetensors"\nsha256 = "{"0" * 64}"\n'))
    yield started.wait_until_serving()
    assert started.stop() == 0


def image(client: Client, *names: str, **more: Any) -> bytes:
    asked: dict[str, Any] = {"model": "small", "width": 64, "height": 64, "steps": 2, "scheduler": "ddim", **more}
    prompt = f"a circle, good, {' '.join(names)}"
    return images(generate(client, prompt, format="raw", embeddings=names, **asked))[0].data


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_its_job_and_nothing_else(daemon: Daemon, name: str) -> None:
    with daemon.client() as client:
        plain, changed = image(client), image(client, "good")
        worker = daemon.pid_of("worker")
        with pytest.raises(WeaveError) as refused:
            image(client, "good", name)
        assert refused.value.code is ErrorCode.WORKER_FAILED
        assert str(refused.value) == "the file of an embedding was refused; the daemon's log says which"
        assert wait_for(lambda: [it for it in daemon.events("job_failed") if BAD[name].reason in it["detail"]])
        assert (image(client), image(client, "good")) == (plain, changed) and plain != changed
        assert daemon.pid_of("worker") == worker


def test_after_a_failure_the_model_is_as_before(daemon: Daemon) -> None:
    with daemon.client() as client:
        plain = image(client)
        with pytest.raises(WeaveError, match="rules out"):
            image(client, "good", scheduler="pndm")
        assert image(client) == plain


def test_check_config_and_doctor_name_the_bad_files(daemon: Daemon) -> None:
    """As far as they show without the model."""
    wanted = BAD.keys() - {"wide", "nan", "infinite"}
    found = weavectl(daemon, "doctor").stdout.splitlines()
    assert {name for name in BAD if any(line.startswith(f"fail  embedding {name}: ") for line in found)} == wanted
    checked = weavectl(daemon, "check-config")
    assert {name for name in BAD if f"embedding {name}: " in checked.stdout} == wanted
    assert (checked.returncode, f"web-ui.pt: {NEVER_READ}" in checked.stdout) == (4, True)
