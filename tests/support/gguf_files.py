"""GGUF files, written by the published package `gguf`, with blocks of random bytes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support import original_transformers as originals

# Where the scales of a block are, in float16, and the largest that give numbers of about the size of weights.
_SCALES = {
    "Q8_0": {0: 1e-3},
    "Q4_0": {0: 1e-2},
    "Q4_1": {0: 6e-3, 2: -5e-2},
    "Q5_0": {0: 5e-3},
    "Q5_1": {0: 3e-3, 2: -5e-2},
    "Q4_K": {0: 2e-4, 2: 1e-3},
    "Q5_K": {0: 1e-4, 2: 1e-3},
    "Q6_K": {208: 3e-5},
}
_LAST_OF_BLOCK = re.compile(r"\.ff|feed_forward|_mlp\.net|proj_out|mlp\.2")
_ORIGINAL: dict[str, Callable[[originals.Tensors], originals.Tensors]] = {
    "flux": originals.flux,
    "z-image": originals.z_image,
    "qwen-image": dict,
}


class Kinds(NamedTuple):
    """The types of matrices: those of attention and modulation, and those after them. `other` is for rows that do not
    consist of blocks."""

    first: str
    second: str
    other: str


def wide_transformer(family: str) -> Any:
    """As in tiny_models, with rows of 256 numbers."""
    torch.manual_seed(1)
    heads: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
    if family == "flux":
        return diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            **heads,
        )
    if family == "z-image":
        sizes = {"n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32}
        return diffusers.ZImageTransformer2DModel(in_channels=4, dim=256, axes_dims=[32, 48, 48], **sizes)
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, joint_attention_dim=32, **heads
    )


def blocks_of(kind: str, rows: int, columns: int, seed: np.random.Generator) -> np.ndarray[Any, Any]:
    """The bytes of rows."""
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = seed.integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    for at, largest in _SCALES[kind].items():
        scales = (largest * seed.uniform(0.5, 1, data.shape[:2])).astype(np.float16)
        data[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def make_gguf(family: str, model: Path, file: Path, kinds: Kinds, prefix: str = "") -> Path:
    """Gives `model`, a folder, a transformer in float32, and writes the same one to `file`, in blocks and by the names
    of its authors."""
    seed = np.random.default_rng(0)
    transformer = wide_transformer(family)
    transformer.save_pretrained(model / "transformer")
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    plain: dict[str, torch.Tensor] = {}
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(weights).items():
        kind = _kind(name, tensor, kinds)
        if kind in ("F32", "F16", "BF16"):
            dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
            stored[name] = tensor.to(dtype)
            plain[name] = stored[name].float()
            continue
        data = blocks_of(kind, tensor.shape[0], tensor.shape[1], seed)
        stored[name] = torch.from_numpy(data)
        plain[name] = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).copy())
    save_file(plain, weights)
    by_name = _ORIGINAL[family](stored)
    kind_of = _ORIGINAL[family]({name: _marked(tensor, name, plain, kinds) for name, tensor in stored.items()})
    found = {name: _KINDS[int(kind_of[name].flatten()[0])] if it.dim() == 2 else "F32" for name, it in by_name.items()}
    write(file, {prefix + name: (it, found[name]) for name, it in by_name.items()})
    return file


_KINDS = (*_SCALES, "F32", "F16", "BF16")


def _marked(tensor: torch.Tensor, name: str, plain: dict[str, torch.Tensor], kinds: Kinds) -> torch.Tensor:
    """A tensor of as many rows, with the number of its type."""
    return torch.full((len(tensor), 1), _KINDS.index(_kind(name, plain[name], kinds)))


def _kind(name: str, tensor: torch.Tensor, kinds: Kinds) -> str:
    if tensor.dim() != 2 or not name.endswith(".weight"):
        return "F32"
    wanted = kinds.second if _LAST_OF_BLOCK.search(name) else kinds.first
    return wanted if tensor.shape[1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0] == 0 else kinds.other


def write(file: Path, tensors: dict[str, tuple[torch.Tensor, str]], metadata: dict[str, str] | None = None) -> Path:
    """Tensors in blocks are given as the bytes of rows."""
    writer = gguf.GGUFWriter(file, "flux")
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, (tensor, kind) in tensors.items():
        data = (tensor.view(torch.uint8) if kind == "BF16" else tensor).contiguous().numpy()
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
