"""A model's files are checked before any of them is loaded."""

import json
import os
from pathlib import Path

import pytest

from tests.support.daemon import DEMO_MODEL
from weave.models.files import ModelFilesRefused, check_model_files, check_sha256


def test_a_file_that_differs_from_its_pin_is_refused() -> None:
    check_model_files(DEMO_MODEL)
    with pytest.raises(ModelFilesRefused, match=r"unet/config.json: sha256 is"):
        check_sha256(DEMO_MODEL, {"unet/config.json": "0" * 64})


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
        check_model_files(tmp_path)


def test_a_pipe_in_a_models_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelFilesRefused, match="not a regular file"):
        check_model_files(tmp_path)
