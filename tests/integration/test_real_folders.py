"""Folders as people have them: from the Hub's cache, from `hf download`, from git."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_weavectl import weavectl
from tests.support.builds import build
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import PROMPT, generate, images
from tests.support.seams import before
from tests.support.system import MODEL
from weave.client import WeaveError

DOWNLOADED, CLONED, CACHED, VARIANT = "downloaded", "cloned", "cached", "variant"
# Tokenizers whose config says nothing about the length of a prompt, or what transformers writes for "no limit".
NO_LENGTH, HUGE_LENGTH = "no-length", "huge-length"
UNET = "unet/diffusion_pytorch_model.safetensors"
# No link leads to this blob: it belongs to another revision.
OTHER_BLOB = "0" * 64
# A worker that opens one of its model's blobs, and the other one.
TRY_BLOBS = before(
    "gpu_worker/loading.py",
    "load_pipeline",
    f"""
    from weave import log
    own = (source.path / "{UNET}").resolve()
    found = []
    for blob in (own, own.with_name("{OTHER_BLOB}")):
        try:
            open(blob, "rb").close()
            found.append("opened")
        except OSError as error:
            found.append(error.strerror)
    log.write("worker", "tried_blobs", model=source.path.name, found=found)
    """,
)


def copied(folder: Path, name: str, *added: str) -> Path:
    """The `added` files are pipes that nothing writes to: a process that opens one waits until its job's deadline."""
    model = Path(shutil.copytree(DEMO_MODEL, folder / name))
    for file in added:
        (model / file).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(model / file)
    return model


def cached(folder: Path) -> Path:
    """As huggingface_hub stores it: each file is a link to a blob."""
    store = folder / "models--weave--shapes"
    (store / "blobs").mkdir(parents=True)
    for file in (path for path in DEMO_MODEL.rglob("*") if path.is_file()):
        blob = store / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = store / "snapshots/0123abcd" / file.relative_to(DEMO_MODEL)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return store / "snapshots/0123abcd"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    variant = copied(folder, VARIANT)
    for file in list(variant.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    no_length, huge_length = copied(folder, NO_LENGTH), copied(folder, HUGE_LENGTH)
    config = no_length / "tokenizer/tokenizer_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in values.items() if key != "model_max_length"}))
    (huge_length / "tokenizer/tokenizer_config.json").write_text(json.dumps(values | {"model_max_length": int(1e30)}))
    return {
        DOWNLOADED: copied(folder, DOWNLOADED, ".cache/huggingface/download/unet/config.json.metadata", "v1.yaml"),
        CLONED: copied(folder, CLONED, ".git/HEAD", "unet/diffusion_pytorch_model.bin", "v1.ckpt", "x.py"),
        CACHED: cached(folder),
        VARIANT: variant,
        NO_LENGTH: no_length,
        HUGE_LENGTH: huge_length,
    }


@pytest.fixture(scope="module")
def daemon(folders: dict[str, Path]) -> Iterator[Daemon]:
    tables = [
        MODEL.replace("[models.shapes]", f"[models.{name}]").replace(str(DEMO_MODEL), str(path))
        for name, path in folders.items()
    ]
    found = Daemon("\n".join([MODEL, *tables]), command=build((TRY_BLOBS,))).wait_until_serving()
    yield found
    assert found.stop() == 0


@pytest.mark.parametrize("name", [DOWNLOADED, CLONED, CACHED, VARIANT, NO_LENGTH, HUGE_LENGTH])
def test_each_folder_gives_the_same_image(daemon: Daemon, name: str) -> None:
    """Also of a prompt that is longer than the encoder takes."""
    options: dict[str, Any] = {"prompt": f"{PROMPT}, " * 40, "seed": 3, "steps": 2, "format": "raw"}
    with daemon.client() as client:
        expected = images(generate(client, model="shapes", **options))[0].data
        assert images(generate(client, model=name, **options))[0].data == expected


def test_doctor_names_the_files_that_are_never_read(daemon: Daemon) -> None:
    said = weavectl(daemon, "doctor").stdout.splitlines()
    lines = {name: next(line for line in said if f"model {name}:" in line) for name in (CLONED, CACHED, DOWNLOADED)}
    assert all(line.startswith("ok") for line in lines.values())
    assert "(never read: v1.ckpt, x.py, unet/diffusion_pytorch_model.bin)" in lines[CLONED]
    assert "(never read: v1.yaml)" in lines[DOWNLOADED] and "never read" not in lines[CACHED]


def test_a_worker_opens_no_blob_of_another_revision(daemon: Daemon, folders: dict[str, Path]) -> None:
    model = folders[CACHED]
    (model / UNET).resolve().with_name(OTHER_BLOB).write_bytes(b"x")
    with daemon.client() as client:
        client.unload()
        client.load_model(CACHED)
    tried = [line["found"] for line in daemon.events("tried_blobs") if line["model"] == model.name]
    assert tried[-1] == ["opened", "Permission denied"]


def test_a_link_to_nothing_is_an_incomplete_download(daemon: Daemon, folders: dict[str, Path]) -> None:
    link = folders[CACHED] / UNET
    target = os.readlink(link)
    link.unlink()
    link.symlink_to(f"{target}.incomplete")
    with daemon.client() as client:
        client.unload()
        with pytest.raises(WeaveError):
            client.load_model(CACHED)
        wait_for(lambda: daemon.events("job_failed") != [])  # another process writes the log
        assert "the download is incomplete" in daemon.events("job_failed")[-1]["detail"]
        link.unlink()
        link.symlink_to(target)
        client.load_model(CACHED)
