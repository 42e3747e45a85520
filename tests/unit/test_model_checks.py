"""A model's files are checked before any of them is loaded."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.daemon import DEMO_MODEL
from weave.models.assets import Source, all_checks, find_assets
from weave.models.faults import collect
from weave.models.files import ModelFilesRefused, check_safetensors_header, find_file, linked_files
from weave.models.layouts import unread_files
from weave.models.memory import blocks
from weave.models.weights import choose_weights


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})


HEADERS = {
    "shorter than its length": "\xff\x00\x00\x00\x00\x00\x00\x00{}",
    "huge": "\xff" * 8 + "{}",
    "empty": "",
    "not JSON": "{hello",
    "a hole": f'{{"a": {tensor(1, 2, [1])}}}',
    "an overlap": f'{{"a": {tensor(0, 2, [2])}, "b": {tensor(1, 2, [1])}}}',
    "a shape that lies": f'{{"a": {tensor(0, 2, [1000], "F32")}}}',
    "a negative size": f'{{"a": {tensor(0, 2, [-2])}}}',
    "a side that no file has": f'{{"a": {tensor(0, 0, [2**60, 0])}, "b": {tensor(0, 2, [2])}}}',
    "a side of many digits": f'{{"a": {tensor(0, 0, [10**400, 0])}, "b": {tensor(0, 2, [2])}}}',
    "an unknown dtype": f'{{"a": {tensor(0, 2, [2], "object")}}}',
    "a name twice": f'{{"a": {tensor(0, 2, [2])}, "a": {tensor(0, 2, [2])}}}',
    "no data": f'{{"a": {tensor(0, 9, [9])}}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_file_with_a_bad_header_is_refused(tmp_path: Path, name: str) -> None:
    data = HEADERS[name].encode("latin-1")
    if data.startswith(b"{"):
        data = len(data).to_bytes(8, "little") + data + b"12"
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFilesRefused, match=r"model\.safetensors"):
        check_safetensors_header(tmp_path / "model.safetensors")


def test_a_name_of_thousands_of_numbers_is_split_no_deeper() -> None:
    assert sum(blocks({f"{'0.' * 2000}{number}.weight": 1 for number in range(100)}).values()) == 100


SOUND = len(b"{}").to_bytes(8, "little") + b"{}"


def test_only_a_folders_own_regular_files_are_opened(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "vae").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (model / "vae/file").write_text("x")
    os.mkfifo(model / "pipe")
    for name, target in {"inside": "vae/file", "outside": "../secret", "gone": "x", "loop": "loop"}.items():
        (model / name).symlink_to(target)
    (model / "folder").symlink_to(tmp_path)
    assert find_file(model, "inside").read_text() == "x"
    refusals = {
        "outside": "links to outside",
        "folder/secret": "links to outside",
        "gone": "the download is incomplete",
        "loop": "loop",
        "pipe": "not a regular file",
        "vae": "not a regular file",
        "none": "No such file",
    }
    for name, reason in refusals.items():
        with pytest.raises(ModelFilesRefused, match=rf"^{name}: .*{reason}"):
            find_file(model, name)


def hub_cache(folder: Path) -> tuple[Path, Path]:
    """A snapshot whose file links to a blob, and that blob."""
    blob, snapshot = folder / "models--a--b/blobs/0123", folder / "models--a--b/snapshots/main"
    for path in (blob.parent, snapshot / "vae"):
        path.mkdir(parents=True)
    blob.write_text("x")
    (snapshot / "vae/file").symlink_to("../../../blobs/0123")
    return snapshot, blob


def test_a_snapshot_in_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blob = hub_cache(tmp_path)
    (blob.parent / "another").write_text("x")
    (blob.parent / "folder").mkdir()
    (tmp_path / "secret").write_text("x")
    for name, target in {"outside": tmp_path / "secret", "folder": blob.parent / "folder", "loop": "loop"}.items():
        (snapshot / name).symlink_to(target)
    assert find_file(snapshot, "vae/file").read_text() == "x"
    assert linked_files(snapshot) == (blob,)
    with pytest.raises(ModelFilesRefused, match="links to outside"):
        find_file(snapshot, "outside")


def test_outside_the_hubs_cache_a_folder_of_blobs_is_outside(tmp_path: Path) -> None:
    snapshot, _ = hub_cache(tmp_path)
    moved = snapshot.rename(snapshot.parent.parent / "main")
    (moved / "link").symlink_to("../blobs/0123")
    assert linked_files(moved) == ()
    with pytest.raises(ModelFilesRefused, match="links to outside"):
        find_file(moved, "link")


CHOICES = {
    "float32": [("", "fp16", "bf16"), ("fp16", "bf16"), ("bf16",)],
    "auto": [("", "fp16", "bf16"), ("fp16", "bf16"), ("bf16",)],
    "float16": [("fp16", "", "bf16"), ("", "bf16"), ("bf16",)],
    "bfloat16": [("bf16", "", "fp16"), ("", "fp16"), ("fp16",)],
}


@pytest.mark.parametrize("dtype", CHOICES)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_variant_closest_to_the_dtype_is_chosen(tmp_path: Path, dtype: str, sharded: bool) -> None:
    part = tmp_path / "vae"
    for variants in CHOICES[dtype]:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for variant in variants:
            name = f"model.{variant}" if variant else "model"
            if sharded:
                index = {"weight_map": {"a": f"{name}-1.safetensors", "b": f"{name}-2.safetensors"}}
                (part / f"model.safetensors.index{f'.{variant}' if variant else ''}.json").write_text(json.dumps(index))
            for file in (f"{name}-1", f"{name}-2") if sharded else (name,):
                (part / f"{file}.safetensors").write_bytes(SOUND)
        name = f"vae/model.{variants[0]}" if variants[0] else "vae/model"
        files = (f"{name}-1.safetensors", f"{name}-2.safetensors") if sharded else (f"{name}.safetensors",)
        assert choose_weights(tmp_path, "vae", "model", dtype) == files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
UNUSABLE: dict[str, tuple[dict[str, bytes], str]] = {
    "none": ({}, r"^text_encoder/model.safetensors: No such file or directory$"),
    "a pickle": ({"pytorch_model.bin": b"PK"}, r"pytorch_model.bin is a pickle"),
    "a git-lfs pointer": ({"model.safetensors": POINTER}, r"^text_encoder/model.safetensors: a git-lfs pointer"),
    "cut off": (
        {"model.safetensors": b"\x40" + 7 * b"\0" + b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(64)},
        r"^text_encoder/model.safetensors: 0 bytes of data, the header describes 4; the download is incomplete",
    ),
    "a shard missing": (
        {"model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'},
        r"^text_encoder/model-1.safetensors: No such file",
    ),
    "an index that names a file outside": (
        {"model.safetensors.index.json": b'{"weight_map": {"a": "../secret.safetensors"}}'},
        r"^text_encoder/model.safetensors.index.json: weight_map must give",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_weights_are_named_as_what_they_are(tmp_path: Path, name: str) -> None:
    files, reason = UNUSABLE[name]
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(SOUND)
    for file, data in files.items():
        (tmp_path / "text_encoder" / file).write_bytes(data)
    faults, _ = collect(all_checks("sd1", Source(tmp_path), "float32", {}))
    assert any(re.search(reason, fault) for fault in faults), faults


def test_files_that_are_never_read_are_listed(tmp_path: Path) -> None:
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    beside = (".git/HEAD", ".cache/huggingface/x.metadata", ".gitattributes", "README.md", "LICENSE", "images/a.png")
    unread = ("safety_checker/pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1.ckpt", "v1.yaml")
    for name in (*beside, *unread):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(SOUND)
    weights = find_assets("sd1", Source(model), "float32").files()
    assert sorted(unread_files("sd1", model, weights)) == sorted(unread)
