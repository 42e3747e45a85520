"""Blocks are dequantised to the same values as by the published package `gguf`, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from weave.gpu_worker.gguf_blocks import rows_of
from weave.models.gguf import BLOCKS, UNPACKED

KINDS = [kind for kind in BLOCKS if kind not in UNPACKED]


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_give_the_same_numbers(kind: str) -> None:
    seed = np.random.default_rng(KINDS.index(kind))
    data = seed.integers(0, 256, (64, 4 * BLOCKS[kind].bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    found = rows_of(kind, torch.from_numpy(data)).numpy()
    assert found.shape == expected.shape == (64, 4 * BLOCKS[kind].numbers) and found.dtype == expected.dtype
    # Scales of random bytes may be no numbers at all.
    same = found.view(np.uint32) == expected.view(np.uint32)
    assert np.all(same | (np.isnan(found) & np.isnan(expected)))
    assert np.isfinite(found).mean() > 0.9


def test_the_blocks_are_the_published_ones() -> None:
    assert all(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == block for kind, block in BLOCKS.items())
