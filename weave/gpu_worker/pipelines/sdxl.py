"""Stable Diffusion XL."""

from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from weave.gpu_worker.pipelines import base
from weave.protocol.inputs import INPAINTING


class Adapter(base.Adapter):
    """StableDiffusionXLPipeline: latents may be normalised, and the VAE overflows in float16."""

    task_needs = MappingProxyType({INPAINTING: ("_encode_vae_image",)})

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """With images, the pipelines may encode in float32, and an error would leave the VAE so. The inpainting
        pipeline does not normalise the latents, but treats them as normalised."""
        dtype = pipeline.vae.dtype
        if "mask_image" in common and _statistics(pipeline.vae) is not None:
            pipeline._encode_vae_image = partial(_encode, pipeline.vae, pipeline._encode_vae_image)
        try:
            super().call(pipeline, arguments, **common)
        finally:
            if pipeline.vae.dtype != dtype:
                pipeline.vae.to(dtype=dtype)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Denormalised if the VAE's config has both a mean and a standard deviation."""
        statistics = _statistics(pipeline.vae)
        if statistics is None:
            return super().for_vae(pipeline, latents, width, height)
        mean, std = (values.to(latents) for values in statistics)
        return latents * std / pipeline.vae.config.scaling_factor + mean

    def decodes_in_float32(self, pipeline: Any) -> bool:
        """Whether the VAE's config sets force_upcast."""
        return bool(pipeline.vae.config.force_upcast)


def _encode(vae: Any, encode: Any, image: torch.Tensor, generator: Any) -> torch.Tensor:
    """What `encode` gives, normalised. `generator` may be a list."""
    latents: torch.Tensor = encode(image, generator=generator)
    statistics = _statistics(vae)
    assert statistics is not None
    mean, std = (values.to(latents) for values in statistics)
    return (latents - mean * vae.config.scaling_factor) / std


def _statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation, for each channel of the latents."""
    mean, std = (vae.config.get(key) for key in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
