"""Chroma. For tests: see family.py."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import sd3


class Adapter(sd3.Adapter):
    """ChromaPipeline: four latents are packed as one."""

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked, then as SD3's."""
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return super().for_vae(pipeline, unpacked, width, height)
