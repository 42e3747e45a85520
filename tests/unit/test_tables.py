"""Decisions that need no daemon, and what the imports of each process bring with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.daemon import DEMO_MODEL
from weave.gpu_worker import device
from weave.models.files import ModelFilesRefused, check_model_files, check_sha256
from weave.sandbox import worker_files


def test_importing_every_family_leaves_one_thread_and_no_cuda() -> None:
    code = (
        "import os; from weave.gpu_worker.environment import OFFLINE_ENVIRONMENT as e; os.environ.update(e);"
        "from weave.gpu_worker.classes import import_family; from weave.models.families import FAMILIES;"
        "[import_family(name) for name in FAMILIES];"
        "import torch; print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(
    "module, families", [("broker.__main__", False), ("supervisor.main", True), ("weavectl.doctor", True)]
)
def test_torch_is_the_workers_alone_and_the_broker_knows_no_families(module: str, families: bool) -> None:
    code = f"import weave.{module}, sys; print('torch' in sys.modules, 'weave.models' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", str(families)]


@pytest.mark.parametrize(
    "there, setting, expected", [(True, "auto", "cuda:0"), (False, "auto", "cpu"), (True, "cpu", "cpu")]
)
def test_the_device_is_chosen(monkeypatch: pytest.MonkeyPatch, there: bool, setting: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert str(device.choose_device(setting)) == expected


def test_a_gpu_that_is_not_there_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.choose_device("cuda") == torch.device("cuda:0")
    with pytest.raises(RuntimeError, match=r"cuda:1.*1 GPUs"):
        device.choose_device("cuda:1")


@pytest.mark.parametrize(
    "where, bf16, setting, expected",
    [
        ("cpu", True, "auto", torch.float32),
        ("cuda", True, "auto", torch.bfloat16),
        ("cuda", False, "auto", torch.float16),
        ("cuda", True, "float32", torch.float32),
    ],
)
def test_the_dtype_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, where: str, bf16: bool, setting: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert device.choose_dtype(torch.device(where), setting) == expected


def test_running_out_of_memory_is_known_for_what_it_is() -> None:
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert device.is_out_of_memory(MemoryError())
    assert device.is_out_of_memory(RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"))
    assert device.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert device.is_out_of_memory(real.value)
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_file_that_is_not_what_was_pinned_is_refused() -> None:
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


def test_of_nvidias_devices_only_the_cards_and_what_cuda_needs_are_left(tmp_path: Path) -> None:
    needed = ["nvidia-uvm", "nvidia0", "nvidia12", "nvidiactl"]
    others = ["nvidia-modeset", "nvidia-uvm-tools", "nvidia-nvlink", "nvidia-nvswitch0", "nvidia-nvswitchctl", "nvidia"]
    for name in (*needed, *others):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia-caps" / "nvidia-cap1").touch()
    assert worker_files.nvidia(tmp_path) == tuple(tmp_path / name for name in needed)


def test_the_cards_are_found_where_sysfs_really_has_them(tmp_path: Path) -> None:
    links = tmp_path / "bus"
    links.mkdir()
    for name, kind in (("gpu", "0x030200"), ("accelerator", "0x120000"), ("network", "0x020000")):
        (tmp_path / "pci0000:00" / name).mkdir(parents=True)
        (tmp_path / "pci0000:00" / name / "class").write_text(f"{kind}\n")
        (links / name).symlink_to(f"../pci0000:00/{name}")
    (links / "gone").symlink_to("../pci0000:00/gone")
    assert worker_files.cards(links) == [tmp_path / "pci0000:00" / name for name in ("accelerator", "gpu")]
