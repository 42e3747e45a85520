"""Dequantises the blocks of GGUF files to float32.

Format: github.com/ggml-org/ggml, the block_* structs in src/ggml-common.h and dequantize_row_* in src/ggml-quants.c. In
a block of 256 values (the K types) each group of 32 or 16 values has its own scale.
"""

from collections.abc import Callable, Sequence

import torch

from weave.models.gguf import BLOCKS


def rows_of(kind: str, data: torch.Tensor) -> torch.Tensor:
    """The dequantised rows. Each row of `data` has the bytes of one, in blocks of the type `kind`."""
    block = BLOCKS[kind]
    return _KINDS[kind](data.reshape(-1, block.bytes)).reshape(len(data), -1)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """float16 values, two bytes each."""
    return data.view(torch.float16).float()


def _shifted(data: torch.Tensor, shifts: Sequence[int], mask: int) -> torch.Tensor:
    """All bytes shifted right by each of the `shifts`, and masked. The shifts become a new dimension before the last
    one."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=data.device).view(-1, 1)
    return (data.unsqueeze(-2) >> by) & mask


def _high_bits(data: torch.Tensor) -> torch.Tensor:
    """The 32 bits in four bytes, each as 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return (((data.unsqueeze(-1) >> shifts) & 1) << 4).flatten(1)


def _q4(data: torch.Tensor) -> torch.Tensor:
    """32 values of 4 bits in 16 bytes: the low nibbles of all bytes come first."""
    return _shifted(data, (0, 4), 0x0F).flatten(1)


def _q8_0(data: torch.Tensor) -> torch.Tensor:
    return _halves(data[:, :2]) * data[:, 2:].view(torch.int8).float()


def _q4_0(data: torch.Tensor) -> torch.Tensor:
    return _halves(data[:, :2]) * (_q4(data[:, 2:]).float() - 8)


def _q4_1(data: torch.Tensor) -> torch.Tensor:
    return _halves(data[:, :2]) * _q4(data[:, 4:]).float() + _halves(data[:, 2:4])


def _q5_0(data: torch.Tensor) -> torch.Tensor:
    return _halves(data[:, :2]) * ((_q4(data[:, 6:]) | _high_bits(data[:, 2:6])).float() - 16)


def _q5_1(data: torch.Tensor) -> torch.Tensor:
    return _halves(data[:, :2]) * (_q4(data[:, 8:]) | _high_bits(data[:, 4:8])).float() + _halves(data[:, 2:4])


def _scales_of_k(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of each of eight groups of 32 values: 6 bits each, in twelve bytes, multiplied by float16
    factors."""
    low, mins, high = data[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    minimums = torch.cat([mins & 0x3F, (high >> 4) | ((mins >> 2) & 0x30)], dim=1)
    scale, minimum = _halves(data[:, :2]) * scales.float(), _halves(data[:, 2:4]) * minimums.float()
    return scale.unsqueeze(-1), minimum.unsqueeze(-1)


def _q4_of_k(data: torch.Tensor) -> torch.Tensor:
    """Eight groups of 32 values of 4 bits; two groups share 32 bytes."""
    return _shifted(data.unflatten(1, (4, 32)), (0, 4), 0x0F).flatten(1, 2)


def _q4_k(data: torch.Tensor) -> torch.Tensor:
    scale, minimum = _scales_of_k(data)
    return scale * _q4_of_k(data[:, 16:]).float() - minimum


def _q5_k(data: torch.Tensor) -> torch.Tensor:
    scale, minimum = _scales_of_k(data)
    high = _shifted(data[:, 16:48], range(8), 1) << 4
    return scale * (_q4_of_k(data[:, 48:]) | high).float() - minimum


def _q6_k(data: torch.Tensor) -> torch.Tensor:
    """Sixteen groups of 16 values, with 4 bits in `low` and 2 in `high`."""
    low = _shifted(data[:, :128].unflatten(1, (2, 64)), (0, 4), 0x0F).reshape(-1, 8, 32)
    high = _shifted(data[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).reshape(-1, 8, 32) << 4
    scale = _halves(data[:, 208:]) * data[:, 192:208].view(torch.int8).float()
    return scale.unsqueeze(-1) * ((low | high).reshape(-1, 16, 16).float() - 32)


_KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
