"""Stable Diffusion XL."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import base


class Adapter(base.Adapter):
    """StableDiffusionXLPipeline: latents may be normalised, and the VAE overflows in float16."""

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Denormalised if the VAE's config has both a mean and a standard deviation."""
        config = pipeline.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return super().for_vae(pipeline, latents, width, height)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype) for values in (mean, std))
        return latents * std / config.scaling_factor + mean

    def decodes_in_float32(self, pipeline: Any) -> bool:
        """Whether the VAE's config sets force_upcast."""
        return bool(pipeline.vae.config.force_upcast)
