"""Stable Diffusion 3."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import base


class Adapter(base.Adapter):
    """StableDiffusion3Pipeline: the VAE may shift its latents."""

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Scaled, then shifted if the VAE's config has a shift."""
        latents = super().for_vae(pipeline, latents, width, height)
        shift = pipeline.vae.config.shift_factor
        return latents if shift is None else latents + shift
