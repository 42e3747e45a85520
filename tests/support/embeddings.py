"""Files of embeddings, and how diffusers itself loads them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file


class Embedding(NamedTuple):
    """Matrices of vectors for a pipeline's text encoders, by the keys of the file."""

    tensors: dict[str, torch.Tensor]

    def write(self, path: Path) -> Path:
        """As a file."""
        save_file(self.tensors, path)
        return path

    def load(self, pipeline: Any, token: str) -> None:
        """Into the pipeline, for good."""
        for suffix, vectors in zip(("", "_2"), self.tensors.values(), strict=False):
            encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
            pipeline.load_textual_inversion({"any": vectors}, token=token, text_encoder=encoder, tokenizer=tokenizer)


def made(
    *keys: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 2.0
) -> Embedding:
    """Vectors longer than the tokens' own, so that an image shows them."""
    generator = torch.Generator().manual_seed(seed)
    return Embedding({key: (scale * torch.randn(shape, generator=generator)).to(dtype) for key in keys})
