"""Bria 3.2. For tests: see family.py."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import sd3


class Adapter(sd3.Adapter):
    """BriaPipeline: four latents are packed as one, in a VAE's scale that counts the packing."""

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked, then as SD3's."""
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return super().for_vae(pipeline, unpacked, width, height)
