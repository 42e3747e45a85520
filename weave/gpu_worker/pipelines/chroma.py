"""Chroma."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import sd3


class Adapter(sd3.Adapter):
    """ChromaPipeline packs four latents into one."""

    needs = (*sd3.Adapter.needs, "_unpack_latents")

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """ChromaInpaintPipeline fails without this key of FLUX.1's transformer, which it does not use."""
        if "guidance_embeds" not in pipeline.transformer.config:
            pipeline.transformer.register_to_config(guidance_embeds=False)
        super().call(pipeline, arguments, **common)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked, then shifted as SD3's."""
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return super().for_vae(pipeline, unpacked, width, height)
