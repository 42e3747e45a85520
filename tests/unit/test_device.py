"""Which device and dtype a worker uses, and which errors mean that its memory is full."""

import pytest
import torch

from weave.gpu_worker import device


@pytest.mark.parametrize(
    "there, setting, expected", [(True, "auto", "cuda:0"), (False, "auto", "cpu"), (True, "cpu", "cpu")]
)
def test_the_device_is_chosen(monkeypatch: pytest.MonkeyPatch, there: bool, setting: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert str(device.choose_device(setting)) == expected


def test_a_missing_gpu_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_out_of_memory_errors_are_recognised() -> None:
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert device.is_out_of_memory(MemoryError())
    assert device.is_out_of_memory(RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"))
    assert device.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert device.is_out_of_memory(real.value)
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize("needed, room", [(0, True), (50, True), (51, False), (100, False)])
def test_a_quarter_of_a_gpus_memory_is_left_free(monkeypatch: pytest.MonkeyPatch, needed: int, room: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (75, 100))
    assert device.has_room(torch.device("cuda:0"), needed) is room
    assert device.has_room(torch.device("cpu"), needed)
