"""Krea 2."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import base
from weave.gpu_worker.pipelines.qwen_image import denormalised


class Adapter(base.Adapter):
    """Krea2Pipeline has Qwen-Image's VAE."""

    needs = (*base.Adapter.needs, "_unpack_latents")

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked into a video of one frame, and denormalised."""
        return denormalised(pipeline._unpack_latents(latents, height, width), pipeline.vae.config)
